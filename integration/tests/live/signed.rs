// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers with signatures of their publisher, whose artifacts come from a registry or an archive.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Cursor, Read as _, Write as _};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use flate2::read::MultiGzDecoder;
use resnap_core::Digest;
use resnap_erofs::{Memory, NoLower, Writer};
use resnap_integration::cri::Cri;
use resnap_integration::debian::{output, provision};
use resnap_integration::image::{
    Artifact, ArtifactNames, Built, HELLO_SAYS, LayerPayloads, hello, pause,
};
use resnap_integration::registry::Registry;
use resnap_layer::Layer;
use resnap_verity::{BlockSize, Work, append};

use crate::command::run_to_end;
use crate::errors::assert_error;
use crate::integrity::{try_unpack, unpack};
use crate::missing::{assert_outcome, discard, fetched, pushed};
use crate::node::{Node, unique};
use crate::served::Served;
use crate::suite::live_tests;

live_tests! {
    Erofs: signed_layers_are_made_of_artifacts_of_a_registry,
    Erofs: signed_layers_are_made_of_artifacts_on_disk,
    Erofs: signed_layers_are_refused_with_reasons,
    Erofs: signed_layers_replace_others_by_a_repair,
    Erofs: signed_artifacts_are_used_only_if_signers_are_trusted,
    Erofs: signed_images_keep_their_artifact,
    ErofsHandler: signed_layers_are_verified_before_each_container,
}

/// A publisher of artifacts.
struct Publisher {
    dir: PathBuf,
}

impl Publisher {
    fn new(node: &Node, name: &str) -> Result<Self> {
        let dir = node.containerd.scratch().join(unique(name));
        fs::create_dir(&dir)?;
        let publisher = Self { dir };
        let subject = format!("/CN={name}");
        let purpose = "extendedKeyUsage=codeSigning";
        publisher.openssl(&[
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out",
            "cert.pem", "-days", "30", "-subj", &subject, "-addext", purpose,
        ])?;
        Ok(publisher)
    }

    fn openssl(&self, arguments: &[&str]) -> Result<String> {
        let program = provision()?.tools().join("openssl");
        output(Command::new(program).args(arguments).current_dir(&self.dir))
    }

    fn sign(&self, root_hash: &str) -> Result<Vec<u8>> {
        let name = unique("root");
        fs::write(self.dir.join(&name), root_hash)?;
        self.openssl(&[
            "smime",
            "-sign",
            "-noattr",
            "-binary",
            "-in",
            &name,
            "-inkey",
            "key.pem",
            "-signer",
            "cert.pem",
            "-outform",
            "der",
            "-out",
            "signature",
        ])?;
        Ok(fs::read(self.dir.join("signature"))?)
    }

    /// Returns the payloads of all layers of an image.
    fn payloads(&self, image: &Built, names: ArtifactNames) -> Result<Vec<LayerPayloads>> {
        let multiple = match names {
            ArtifactNames::Containerd => 4096,
            ArtifactNames::Notary => 512,
        };
        let layers = image.layers.iter().enumerate().map(|(index, layer)| {
            let mut tar = Vec::new();
            let blob = image.blob(&layer.digest)?;
            match blob.starts_with(&[0x1f, 0x8b]) {
                true => _ = MultiGzDecoder::new(&blob[..]).read_to_end(&mut tar)?,
                false => tar = blob,
            }
            let mut writer = Writer::new(Cursor::new(Vec::new()), Box::new(Memory::new(1 << 26)))?;
            if index == 0 {
                writer = writer.lowest();
            }
            let mut writer = writer.index();
            writer.add(&mut Layer::new(&tar[..], Default::default()))?;
            // Other tests share the content of their containerd, and publish the same image.
            let name = Digest::sha256(format!("{:?} {index}", self.dir).as_bytes()).to_string();
            let uuid: [u8; 16] = name.as_bytes()[10..26].try_into()?;
            let index = writer.finish(&mut NoLower, uuid)?.0.into_inner();
            let mut file = tempfile::tempfile()?;
            file.write_all(&index)?;
            file.write_all(&tar)?;
            let size = (index.len() + tar.len()).next_multiple_of(multiple) as u64;
            file.set_len(size)?;
            let check = || Ok(());
            let tree = append(&file, size, BlockSize::B512, uuid, None, Work::new(&check))?;
            let root_hash = tree.root_hash.to_string();
            Ok(LayerPayloads {
                layer: layer.digest.clone(),
                index,
                tree: vec![0; 512],
                signature: self.sign(&root_hash)?,
                root_hash,
            })
        });
        layers.collect()
    }

    /// Returns a configuration that needs signatures of this publisher.
    fn config(&self, more: &str) -> String {
        let certificate = self.dir.join("cert.pem");
        format!(
            "sources.order = [\"archive\", \"registry\"]\n\
             snapshotters.erofs.integrity = \"signed\"\n\
             integrity.signers = [{certificate:?}]\n{more}"
        )
    }
}

/// An image in a registry, and the publisher of its artifacts.
struct Published {
    registry: Registry,
    image: Built,
    publisher: Publisher,
}

impl Published {
    fn new(node: &Node, image: &Built) -> Result<Self> {
        let dir = node.containerd.scratch().join(unique("registry"));
        let registry = Registry::start(node.containerd.dist(), &dir)?;
        let image = pushed(node, &registry, image, "signed:1")?;
        Ok(Self {
            publisher: Publisher::new(node, "publisher")?,
            registry,
            image,
        })
    }

    fn push(&self, artifact: &Artifact) -> Result<()> {
        artifact.push(&self.registry, "signed")
    }

    /// Puts the image on a node, by its reference in the registry.
    fn import(&self, node: &Node) -> Result<()> {
        node.import(&self.image)?;
        let name = &hello()?.reference;
        node.ctr(&["images", "tag", "--force", name, &self.image.reference])?;
        Ok(())
    }
}

/// Checks that all layers of the image have the proofs that these payloads are of.
fn assert_signed(node: &Node, image: &Built, payloads: &[LayerPayloads]) -> Result<()> {
    for (layer, payload) in image.layers.iter().zip(payloads) {
        let labels = node.labels("erofs", &layer.chain_id)?;
        let label = |name: &str| labels.get(&format!("resnap.io/verity-{name}")).cloned();
        ensure!(
            label("root-hash").as_ref() == Some(&payload.root_hash),
            "{labels:?}"
        );
        ensure!(label("origin").as_deref() == Some("artifact"), "{labels:?}");
        let signer = label("signer").unwrap_or_default();
        ensure!(signer.contains("CN=publisher"), "{labels:?}");
    }
    Ok(())
}

fn assert_nothing(node: &Node) -> Result<()> {
    let snapshots = node.snapshots("erofs")?;
    ensure!(snapshots.is_empty(), "{snapshots:?}");
    node.assert_nothing_left("erofs")
}

fn signed_layers_are_made_of_artifacts_of_a_registry(node: &Node) -> Result<()> {
    let published = Published::new(node, &hello()?)?;
    let Published {
        registry,
        image,
        publisher,
    } = &published;
    let mut known = BTreeSet::new();
    for names in [ArtifactNames::Notary, ArtifactNames::Containerd] {
        let payloads = publisher.payloads(image, names)?;
        published.push(&Artifact::new(image, names, &payloads)?)?;
        // The set that is proposed for containerd goes first.
        let node = &node.in_new_namespace();
        published.import(node)?;
        let before = registry.requests()?.len();
        let report = unpack(node, &publisher.config(""), image, &[])?;
        assert_outcome(&report, "applied")?;
        assert_signed(node, image, &payloads)?;
        let says = node.run("erofs", &image.reference)?;
        ensure!(says == HELLO_SAYS, "{says:?}");
        // Trees are not needed: the whole device is hashed for the comparison.
        let blobs = fetched(registry, before)?;
        let signatures = payloads.iter().map(|layer| &layer.signature);
        let signatures = signatures.filter(|_| names == ArtifactNames::Containerd);
        let indexes = payloads.iter().map(|layer| &layer.index);
        let needed = signatures.chain(indexes);
        let mut needed: BTreeSet<_> = needed
            .map(|bytes| Digest::sha256(bytes).to_string())
            .collect();
        // Another namespace of the node has them.
        needed.retain(|blob| !known.contains(blob));
        ensure!(blobs == needed, "{blobs:?} instead of {needed:?}");
        known.extend(blobs.iter().cloned());
        node.assert_nothing_left("erofs")?;
        // The image keeps the artifact.
        node.collect_garbage()?;
        let content = node.ctr(&["content", "ls", "-q"])?;
        ensure!(blobs.iter().all(|blob| content.contains(blob)), "{content}");
        let report = unpack(node, &publisher.config(""), image, &[])?;
        assert_outcome(&report, "existed")?;
    }
    Ok(())
}

fn signed_layers_are_made_of_artifacts_on_disk(node: &Node) -> Result<()> {
    let image = hello()?;
    let publisher = Publisher::new(node, "publisher")?;
    let payloads = publisher.payloads(&image, ArtifactNames::Containerd)?;
    let artifact = Artifact::new(&image, ArtifactNames::Containerd, &payloads)?;
    let archive = node.containerd.scratch().join(unique("artifact"));
    artifact.write_archive(&archive)?;
    node.import(&image)?;
    let archives = format!("sources.archives = [{archive:?}]\n");
    let report = unpack(node, &publisher.config(&archives), &image, &[])?;
    assert_outcome(&report, "applied")?;
    assert_signed(node, &image, &payloads)?;
    node.assert_nothing_left("erofs")
}

fn signed_layers_are_refused_with_reasons(node: &Node) -> Result<()> {
    let published = Published::new(node, &hello()?)?;
    let (image, publisher) = (&published.image, &published.publisher);
    let stranger = Publisher::new(node, "stranger")?;
    let names = ArtifactNames::Containerd;
    let good = publisher.payloads(image, names)?;
    let refused = |artifacts: &[Vec<LayerPayloads>], says: &[&str]| {
        let published = Published::new(node, &hello()?)?;
        let image = &published.image;
        for payloads in artifacts {
            published.push(&Artifact::new(image, names, payloads)?)?;
        }
        let node = node.in_new_namespace();
        published.import(&node)?;
        let output = try_unpack(&node, &publisher.config(""), image, &[])?;
        assert_error(output, "FailedPrecondition", says, "")?;
        assert_nothing(&node)
    };
    let change = |change: &dyn Fn(&mut Vec<LayerPayloads>) -> Result<()>| {
        let mut payloads = good.clone();
        change(&mut payloads)?;
        Ok::<_, anyhow::Error>(payloads)
    };
    let digest = &image.layers[1].digest;
    refused(
        &[],
        &[
            "no signature",
            "no source has an artifact",
            "registry: it has none",
        ],
    )?;
    let unsigned = change(&|payloads| {
        payloads[1].signature = stranger.sign(&payloads[1].root_hash)?;
        Ok(())
    })?;
    refused(&[unsigned], &[digest, &good[1].root_hash, "stranger"])?;
    let swapped = change(&|payloads| {
        payloads[1].signature = payloads[0].signature.clone();
        Ok(())
    })?;
    refused(
        &[swapped],
        &[digest, &good[1].root_hash, "is not of the root hash"],
    )?;
    // Signed, and of another device.
    let other_layer = change(&|payloads| {
        payloads[1].root_hash = payloads[0].root_hash.clone();
        payloads[1].signature = payloads[0].signature.clone();
        Ok(())
    })?;
    let says = [
        digest,
        &*good[1].root_hash,
        &*good[0].root_hash,
        "is signed",
    ];
    refused_late(node, &published, publisher, &other_layer, &says)?;
    let other_index = change(&|payloads| {
        let last = payloads[1].index.last_mut().context("no index")?;
        *last ^= 1;
        Ok(())
    })?;
    refused_late(
        node,
        &published,
        publisher,
        &other_index,
        &[digest, "is signed"],
    )?;
    let incomplete = change(&|payloads| {
        payloads.pop();
        Ok(())
    })?;
    let last = &image.layers.last().context("no layers")?.digest;
    refused(&[incomplete], &[last, "it has nothing for the layer"])?;
    let garbage = change(&|payloads| {
        payloads[0].signature = b"no signature".to_vec();
        Ok(())
    })?;
    refused(&[garbage], &[&image.layers[0].digest, "signature"])?;
    // Two publications that are both signed.
    let mut second = good.clone();
    let twice = publisher.payloads(&hello()?, ArtifactNames::Notary)?;
    second[0].clone_from(&twice[0]);
    if second[0].root_hash != good[0].root_hash {
        refused(
            &[good.clone(), second],
            &["both signed", "different root hashes"],
        )?;
    }
    Ok(())
}

/// Checks a refusal that comes when a layer is written. The layers below it stay.
fn refused_late(
    node: &Node,
    published: &Published,
    publisher: &Publisher,
    payloads: &[LayerPayloads],
    says: &[&str],
) -> Result<()> {
    let artifact = Artifact::new(&published.image, ArtifactNames::Containerd, payloads)?;
    let archive = node.containerd.scratch().join(unique("artifact"));
    artifact.write_archive(&archive)?;
    let node = node.in_new_namespace();
    published.import(&node)?;
    let archives = format!("sources.archives = [{archive:?}]\n");
    let config = publisher.config(&archives);
    let error = try_unpack(&node, &config, &published.image, &[])?;
    let text = format!("{error:?}");
    ensure!(error.code == Some(2), "{error:?}");
    ensure!(
        says.iter().all(|says| text.contains(says)),
        "{says:?}: {error:?}"
    );
    let snapshots = node.snapshots("erofs")?;
    ensure!(snapshots.len() == 1, "{snapshots:?}");
    node.assert_no_active_snapshot("erofs")?;
    // Its signatures were those of the publisher. It is not the artifact of the image for that.
    let names = ArtifactNames::Containerd;
    let good = publisher.payloads(&published.image, names)?;
    let right = node.containerd.scratch().join(unique("artifact"));
    Artifact::new(&published.image, names, &good)?.write_archive(&right)?;
    let config = publisher.config(&format!("sources.archives = [{right:?}]\n"));
    unpack(&node, &config, &published.image, &[])?;
    assert_signed(&node, &published.image, &good)
}

fn signed_layers_replace_others_by_a_repair(node: &Node) -> Result<()> {
    let published = Published::new(node, &hello()?)?;
    let (image, publisher) = (&published.image, &published.publisher);
    published.import(node)?;
    node.unpack("erofs", &image.reference)?;
    let config = publisher.config("");
    let output = try_unpack(node, &config, image, &[])?;
    assert_error(
        output,
        "FailedPrecondition",
        &["without the proof"],
        "--repair",
    )?;
    // Nothing is removed before there are signatures.
    let before: BTreeSet<_> = node.snapshots("erofs")?.into_keys().collect();
    let output = try_unpack(node, &config, image, &["--repair"])?;
    assert_error(
        output,
        "FailedPrecondition",
        &["no source has an artifact"],
        "",
    )?;
    let after: BTreeSet<_> = node.snapshots("erofs")?.into_keys().collect();
    ensure!(before == after, "{before:?} became {after:?}");
    let payloads = publisher.payloads(image, ArtifactNames::Containerd)?;
    let artifact = Artifact::new(image, ArtifactNames::Containerd, &payloads)?;
    let archive = node.containerd.scratch().join(unique("artifact"));
    artifact.write_archive(&archive)?;
    let config = publisher.config(&format!("sources.archives = [{archive:?}]\n"));
    let report = unpack(node, &config, image, &["--repair"])?;
    assert_outcome(&report, "applied")?;
    assert_signed(node, image, &payloads)
}

fn signed_artifacts_are_used_only_if_signers_are_trusted(node: &Node) -> Result<()> {
    let published = Published::new(node, &hello()?)?;
    let (image, publisher) = (&published.image, &published.publisher);
    let payloads = publisher.payloads(image, ArtifactNames::Containerd)?;
    published.push(&Artifact::new(image, ArtifactNames::Containerd, &payloads)?)?;
    let stranger = Publisher::new(node, "stranger")?;
    let verity = "snapshotters.erofs.integrity = \"verity\"\n\
                  sources.order = [\"archive\", \"registry\"]\n";
    let signers = |publisher: &Publisher| {
        format!(
            "{verity}integrity.signers = [{:?}]\n",
            publisher.dir.join("cert.pem")
        )
    };
    // Whoever may push may attach the signatures of the publisher and other indexes.
    let mut wrong = payloads.clone();
    *wrong[1].index.last_mut().context("no index")? ^= 1;
    let archive = node.containerd.scratch().join(unique("artifact"));
    Artifact::new(image, ArtifactNames::Containerd, &wrong)?.write_archive(&archive)?;
    let archives = format!("{}sources.archives = [{archive:?}]\n", signers(publisher));
    for (config, origin) in [
        (verity.to_owned(), "generated"),
        (archives, "generated"),
        (signers(&stranger), "generated"),
        (signers(publisher), "artifact"),
    ] {
        let node = node.in_new_namespace();
        published.import(&node)?;
        let report = unpack(&node, &config, image, &[])?;
        assert_outcome(&report, "applied")?;
        // The first layer may come before the wrong one.
        for layer in &image.layers[1..] {
            let labels = node.labels("erofs", &layer.chain_id)?;
            ensure!(
                labels["resnap.io/verity-origin"] == origin,
                "{config}: {labels:?}"
            );
        }
        let says = node.run("erofs", &image.reference)?;
        ensure!(says == HELLO_SAYS, "{says:?}");
    }
    Ok(())
}

fn signed_images_keep_their_artifact(node: &Node) -> Result<()> {
    let published = Published::new(node, &hello()?)?;
    let (image, publisher) = (&published.image, &published.publisher);
    let names = ArtifactNames::Notary;
    let payloads = publisher.payloads(image, names)?;
    published.push(&Artifact::new(image, names, &payloads)?)?;
    published.import(node)?;
    let config = publisher.config("");
    unpack(node, &config, image, &[])?;
    // Another one comes, which would go first.
    let others = publisher.payloads(image, ArtifactNames::Containerd)?;
    published.push(&Artifact::new(image, ArtifactNames::Containerd, &others)?)?;
    let mut evict = node.configured_command(&config)?;
    evict.args(["evict", &image.reference, "-s", "erofs"]);
    run_to_end(&mut evict)?.ok()?;
    ensure!(node.snapshots("erofs")?.is_empty(), "nothing was evicted");
    let report = unpack(node, &config, image, &[])?;
    assert_outcome(&report, "applied")?;
    assert_signed(node, image, &payloads)
}

fn signed_layers_are_verified_before_each_container(node: &Node) -> Result<()> {
    let node = &Node {
        containerd: node.containerd.clone(),
        namespace: "k8s.io".to_owned(),
    };
    let (image, publisher) = (hello()?, Publisher::new(node, "publisher")?);
    let mut archives = Vec::new();
    for image in [&image, &pause()?] {
        node.import(image)?;
        let payloads = publisher.payloads(image, ArtifactNames::Containerd)?;
        let artifact = Artifact::new(image, ArtifactNames::Containerd, &payloads)?;
        let archive = node.containerd.scratch().join(unique("artifact"));
        artifact.write_archive(&archive)?;
        archives.push(archive);
    }
    let config = publisher.config(&format!("sources.archives = {archives:?}\n"));
    let served = Served::with_dm_verity(node, &config)?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
    let sandbox = cri.run_pod_sandbox("erofs", "pod")?;
    let exit = cri.run(&sandbox, "first", &image.reference, &[])?;
    ensure!(exit.output.trim() == HELLO_SAYS.trim(), "{exit:?}");
    // Sidecars are replaced, as by somebody who has replaced the images as well.
    let snapshots = node.snapshotter_root("erofs").join("snapshots");
    let mut replaced = 0;
    for snapshot in fs::read_dir(snapshots)? {
        let path = snapshot?.path().join("layer.erofs.dmverity");
        if File::open(&path).is_ok() {
            let text = fs::read_to_string(&path)?;
            let digit = text.find(": \"").context("no root hash")? + 3;
            let other = if &text[digit..=digit] == "0" {
                "1"
            } else {
                "0"
            };
            fs::write(
                &path,
                format!("{}{other}{}", &text[..digit], &text[digit + 1..]),
            )?;
            replaced += 1;
        }
    }
    ensure!(replaced > 0, "there are no sidecars");
    let refused = cri.create_container(&sandbox, "second", &image.reference, &[]);
    let text = format!("{:#}", refused.err().context("a container of other files")?);
    ensure!(text.contains("and its label"), "{text}");
    cri.remove_all()?;
    drop(cri);
    served.stop()?;
    discard(node, &image)
}
