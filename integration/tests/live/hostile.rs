// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images that are broken, absurd or meant to harm.

pub(crate) mod layers;
pub(crate) mod neighbours;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;

use anyhow::{Context as _, Result, ensure};
use flate2::write::GzEncoder;
use resnap_integration::image::tar_entry::{self, Entry};
use resnap_integration::image::{
    Built, HELLO_SAYS, ImageBuilder, Layer, digest, hello, host_platform,
};
use resnap_integration::tap::{Action, Method, Point};
use serde_json::{Value, json};
use tonic::Status;

use crate::command::run_to_end;
use crate::errors::{assert_error, unpack};
use crate::node::{Node, unique};
use crate::suite::live_tests;

live_tests! {
    Containerd: corrupt_layers,
    Containerd: too_large_a_manifest,
    Containerd: indexes_nested_too_deep,
    Containerd: too_many_layers,
    Containerd: damaged_blobs,
    Containerd: control_characters_are_not_printed,
    Containerd: a_snapshotter_with_contradictory_answers,
}

const ON: &str = "native";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The blobs of an image that no builder makes.
#[derive(Default)]
pub(crate) struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    /// Adds a blob, and answers with its descriptor.
    pub(crate) fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let (digest, size) = (digest(&bytes), bytes.len());
        self.0.insert(digest.clone(), bytes);
        json!({ "mediaType": media_type, "digest": digest, "size": size })
    }

    fn add_json(&mut self, media_type: &str, value: &Value) -> Value {
        self.add(media_type, value.to_string().into_bytes())
    }

    /// Returns an image of these layers, for this machine.
    pub(crate) fn add_image(&mut self, layers: &[Value], diff_ids: &[String]) -> Value {
        let config = self.add_config(diff_ids);
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        self.add_json(MANIFEST, &manifest)
    }

    fn add_config(&mut self, diff_ids: &[String]) -> Value {
        let (os, architecture) = host_platform();
        let config = json!({
            "os": os,
            "architecture": architecture,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        self.add_json(CONFIG, &config)
    }

    fn add_index(&mut self, manifest: &Value) -> Value {
        self.add_json(
            INDEX,
            &json!({ "schemaVersion": 2, "manifests": [manifest] }),
        )
    }

    /// Puts all on the node, `target` as the image `name`.
    pub(crate) fn import(self, node: &Node, name: &str, target: Value) -> Result<()> {
        self.import_all(node, vec![(name.to_owned(), target)])
    }

    /// Imports several images.
    fn import_all(self, node: &Node, targets: Vec<(String, Value)>) -> Result<()> {
        let targets = targets.into_iter().map(|(name, mut target)| {
            target["annotations"] = json!({ "io.containerd.image.name": name });
            target
        });
        let manifests: Vec<_> = targets.collect();
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        let layout = json!({ "imageLayoutVersion": "1.0.0" });
        let mut entries = vec![
            Entry::file("oci-layout", layout.to_string()),
            Entry::file("index.json", index.to_string()),
        ];
        let blobs = self.0.into_iter();
        entries.extend(blobs.map(|(digest, bytes)| {
            Entry::file(format!("blobs/{}", digest.replace(':', "/")), bytes)
        }));
        let path = node.containerd.scratch().join(unique("hostile"));
        File::create(&path)?.write_all(&tar_entry::pack(&entries)?)?;
        let path = path.to_string_lossy();
        node.ctr(&["images", "import", "--all-platforms", "--no-unpack", &path])?;
        Ok(())
    }
}

/// Returns the digest of a descriptor.
fn of(descriptor: &Value) -> String {
    descriptor["digest"].as_str().unwrap_or_default().to_owned()
}

fn corrupt_layers(node: &Node) -> Result<()> {
    let tar = tar_entry::pack(&[Entry::dir("./"), Entry::file("name", "x".repeat(5000))])?;
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&tar)?;
    let whole = encoder.finish()?;
    let (half, crc) = (whole.len() / 2, whole.len() - 8);
    let mut flipped = whole.clone();
    flipped[crc] ^= 1;
    let name = "docker.io/library/corrupt:1";
    for blob in [
        whole[..half].to_vec(),
        [&whole[..half], &[0xff; 100]].concat(),
        flipped,
        b"not compressed at all".to_vec(),
    ] {
        let mut blobs = Blobs::default();
        let layer = blobs.add(GZIP, blob);
        let says = [name, &of(&layer), "layer 1 of 1", ON];
        let says = says.map(str::to_owned);
        let target = blobs.add_image(&[layer], &[digest(&tar)]);
        blobs.import(node, name, target)?;
        let output = unpack(node, name, ON)?;
        let kind = output.kind()?;
        assert_error(output, &kind, &says.each_ref().map(String::as_str), "again")?;
        node.assert_nothing_left(ON)?;
    }
    Ok(())
}

fn too_large_a_manifest(node: &Node) -> Result<()> {
    let name = "docker.io/library/large:1";
    let mut blobs = Blobs::default();
    let config = blobs.add_config(&[]);
    let mut manifest = json!({ "schemaVersion": 2, "config": config, "layers": [] })
        .to_string()
        .into_bytes();
    manifest.resize((8 << 20) + 1, b' ');
    let target = blobs.add(MANIFEST, manifest);
    let digest = of(&target);
    blobs.import(node, name, target)?;
    let says = [name, &digest, "8388609 bytes", "at most 8388608"];
    let output = unpack(node, name, ON)?;
    assert_error(output, "ResourceExhausted", &says, "build it again")?;
    node.assert_nothing_left(ON)
}

fn indexes_nested_too_deep(node: &Node) -> Result<()> {
    let name = "docker.io/library/deep:1";
    for (depth, fits) in [(8, true), (9, false)] {
        let mut blobs = Blobs::default();
        let mut target = blobs.add_image(&[], &[]);
        for _ in 0..depth {
            target = blobs.add_index(&target);
        }
        blobs.import(node, name, target)?;
        let output = unpack(node, name, ON)?;
        if fits {
            output.ok()?;
        } else {
            let says = [name, "nested more than 8 deep"];
            assert_error(output, "ResourceExhausted", &says, "build it again")?;
        }
        node.assert_nothing_left(ON)?;
    }
    Ok(())
}

fn too_many_layers(node: &Node) -> Result<()> {
    let name = "docker.io/library/tall:1";
    let tar = tar_entry::pack(&[Entry::dir("./")])?;
    let layers = 4097;
    let mut blobs = Blobs::default();
    let layer = blobs.add("application/vnd.oci.image.layer.v1.tar", tar.clone());
    let target = blobs.add_image(&vec![layer; layers], &vec![digest(&tar); layers]);
    let manifest = of(&target);
    blobs.import(node, name, target)?;
    let says = [name, &manifest, "4097 layers", "at most 4096"];
    let output = unpack(node, name, ON)?;
    assert_error(output, "InvalidArgument", &says, "build it again")?;
    node.assert_nothing_left(ON)
}

/// Returns an image with blobs that no other test has.
fn own(node: &Node) -> Result<Built> {
    let archive = node.containerd.scratch().join(unique("own"));
    let file = Entry::file("name", &node.namespace);
    let image = ImageBuilder::new("docker.io/library/own:1")
        .layer(Layer::of(&[Entry::dir("./"), file])?)
        .env("OWNER", &node.namespace)
        .write(&archive)?;
    node.import(&image)?;
    Ok(image)
}

fn damaged_blobs(node: &Node) -> Result<()> {
    let image = own(node)?;
    let blobs = "io.containerd.content.v1.content/blobs";
    let blobs = node.containerd.root().join(blobs);
    let layer = &image.layers[0].digest;
    for digest in [&image.manifest, &image.config, layer] {
        let path = blobs.join(digest.replace(':', "/"));
        let good = std::fs::read(&path)?;
        let mut bad = good.clone();
        if digest == layer {
            let middle = bad.len() / 2;
            bad[middle..].fill(0);
        } else {
            // JSON still, and as long: only the digest tells.
            let text = String::from_utf8(good.clone())?;
            bad = text.replacen("sha256:", "sha256:f", 1).into_bytes();
            bad.truncate(good.len());
        }
        std::fs::write(&path, &bad)?;
        let output = unpack(node, &image.reference, ON)?;
        let says = [&*image.reference, digest, "bytes have the digest"];
        assert_error(output, "DataLoss", &says, "content rm")?;
        node.assert_nothing_left(ON)?;
        std::fs::write(&path, good)?;
    }
    node.unpack(ON, &image.reference)?;
    node.assert_nothing_left(ON)
}

fn control_characters_are_not_printed(node: &Node) -> Result<()> {
    let name = "docker.io/library/loud:1";
    let mut blobs = Blobs::default();
    let mut image = blobs.add_image(&[], &[]);
    let evil = "\u{1b}[2J\u{7}\u{202e}evil\nresnap: all is well";
    image["platform"] = json!({ "os": "linux", "architecture": evil });
    let target = blobs.add_index(&image);
    blobs.import(node, name, target)?;
    let harmful = |char: char| char != '\n' && (char.is_control() || char == '\u{202e}');
    for arguments in [
        &["unpack", name, "--snapshotter", ON][..],
        &["check", name],
        &["images"],
    ] {
        let output = node.resnap(arguments)?;
        let text = [output.stdout, output.stderr].concat();
        // A table shows the start of it only.
        let shown = text.contains("evil") || arguments == ["images"];
        ensure!(shown, "{text:?}");
        ensure!(!text.contains(harmful), "{text:?}");
        let forged = text.lines().any(|line| line == "resnap: all is well");
        ensure!(!forged, "{text:?}");
    }
    // Nor off those that a program writes to.
    let output = node.resnap(&["unpack", "--json", name, "--snapshotter", ON])?;
    let last = output
        .stdout
        .lines()
        .last()
        .context("nothing was printed")?;
    let error: Value = serde_json::from_str(last)?;
    let message = error["error"]["message"].as_str().unwrap_or_default();
    let is_safe = message.contains("evil") && !message.contains(harmful);
    ensure!(is_safe && !message.contains('\n'), "{message:?}");
    node.assert_nothing_left(ON)
}

fn a_snapshotter_with_contradictory_answers(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    let exists = || Action::Fail(Status::already_exists("says the snapshotter"));
    let answered = |times: u64| {
        let tap = node.containerd.tap()?;
        for nth in 1..=times {
            tap.on(Method::PREPARE, nth, Point::Before, exists());
        }
        let mut command = node.resnap_command()?;
        command
            .env("CONTAINERD_ADDRESS", tap.socket())
            .args(["unpack", "--json", &image.reference])
            .args(["--snapshotter", ON]);
        let output = run_to_end(&mut command)?;
        tap.finish()?;
        Ok::<_, anyhow::Error>(output)
    };
    let base = &image.layers[0].chain_id;
    let says = [&*image.reference, base, ON, "no such snapshot"];
    assert_error(answered(3)?, "FailedPrecondition", &says, "restart native")?;
    node.assert_nothing_left(ON)?;
    // A garbage collection between two calls may look like that.
    answered(2)?.ok()?;
    node.assert_nothing_left(ON)?;
    let output = node.run(ON, &image.reference)?;
    ensure!(output == HELLO_SAYS, "it says {output:?}");
    Ok(())
}
