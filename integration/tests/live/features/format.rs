// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images in the EROFS image format, a draft, which no released containerd takes.

use anyhow::{Context as _, Result, ensure};
use resnap_integration::image::{
    Built, Compression, Entry, ImageBuilder, Layer, Part, digest, tar_entry,
};
use serde_json::{Value, json};

use super::{assert_copied, assert_only_on_erofs};
use crate::errors::{assert_error, unpack};
use crate::node::{Node, unique};
use crate::poll::{DEADLINE, eventually};
use crate::suite::live_tests;
use crate::unpack::assert_labels;

live_tests! {
    Erofs: features_the_erofs_image_format_is_supported,
    Erofs: features_unsupported_parts_of_the_erofs_image_format,
}

const ROLE: &str = "org.erofs.role";

/// The annotation with the digest of a compressed layer's content.
const UNCOMPRESSED: &str = "org.erofs.uncompressed-digest";

fn builder(name: &str, compression: Compression) -> Result<(ImageBuilder, Vec<String>)> {
    let mut diff_ids = Vec::new();
    let mut image =
        ImageBuilder::new(&format!("docker.io/library/{name}:1")).os_features(["erofs"]);
    for text in ["lower", "upper"] {
        let tar = tar_entry::pack(&[Entry::dir("./"), Entry::file(text, text)])?;
        let layer = Layer::erofs(&tar, compression)?;
        diff_ids.push(layer.diff_id.clone());
        image = image.layer(layer);
    }
    // The top layer has no role.
    let image = image.annotate_layer(0, ROLE, "overlay-lower");
    Ok((image.edit(Part::Manifest, of_the_format), diff_ids))
}

fn of_the_format(manifest: &mut Value) {
    for layer in manifest["layers"].as_array_mut().into_iter().flatten() {
        let kind = layer["mediaType"].as_str().unwrap_or_default();
        layer["mediaType"] = json!(kind.replace("vnd.erofs.layer.v1", "vnd.erofs"));
    }
}

fn without_diff_ids(config: &mut Value) {
    if let Some(config) = config.as_object_mut() {
        config.remove("rootfs");
    }
}

fn write(node: &Node, image: ImageBuilder) -> Result<Built> {
    let image = image.write(&node.containerd.scratch().join(unique("format")))?;
    node.import(&image)?;
    Ok(image)
}

fn warnings(node: &Node, image: &Built) -> Result<String> {
    let check = node.resnap(&["check", &image.reference])?.ok()?;
    let lines = check.lines().filter(|line| line.starts_with("warning: "));
    Ok(lines.collect())
}

/// The layers are taken as those of containerd's own type are, with diff IDs from the config or
/// their own.
fn features_the_erofs_image_format_is_supported(node: &Node) -> Result<()> {
    let (image, _) = builder("raw", Compression::None)?;
    let raw = write(node, image)?;
    assert_only_on_erofs(node, &raw, &raw, &[])?;
    assert_labels(node, "erofs", &raw, &[])?;
    let told = warnings(node, &raw)?;
    ensure!(
        told.contains("nothing of type \"application/vnd.erofs\" for"),
        "{told:?}"
    );

    let (image, diff_ids) = builder("zstd", Compression::Zstd)?;
    let image = image
        .annotate_layer(0, UNCOMPRESSED, &diff_ids[0])
        .annotate_layer(1, UNCOMPRESSED, &diff_ids[1])
        .edit(Part::Config, without_diff_ids);
    let zstd = write(node, image)?;
    ensure!(zstd.chain_id() == raw.chain_id(), "{zstd:?}");
    node.unpack("erofs", &zstd.reference)?;
    eventually("all of it is removed", DEADLINE, || {
        for layer in raw.layers.iter().rev() {
            let remove = ["snapshots", "--snapshotter", "erofs", "rm", &layer.chain_id];
            // Garbage collection may be faster, or at it just then.
            let _ = node.ctr(&remove);
        }
        Ok(node.snapshots("erofs")?.is_empty())
    })?;
    node.unpack("erofs", &zstd.reference)?;
    assert_labels(node, "erofs", &zstd, &[])?;
    assert_copied(node, &zstd)?;
    node.assert_nothing_left("erofs")
}

/// Parts that are not supported are named before anything is done.
fn features_unsupported_parts_of_the_erofs_image_format(node: &Node) -> Result<()> {
    let index: fn(&mut Value) = |manifest| {
        manifest["layers"][0]["mediaType"] = json!("application/vnd.erofs.chunk-index.v1");
    };
    let tar: fn(&mut Value) = |manifest| {
        manifest["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar");
    };
    let none: fn(&mut Value) = |_| ();
    for (role, edit, says) in [
        (
            "device",
            none,
            "\"application/vnd.erofs\" in the role \"device\"",
        ),
        ("device", tar, "layer.v1.tar\" in the role \"device\""),
        ("overlay-data", none, "in the role \"overlay-data\""),
        ("upper", none, "in the role \"upper\""),
        (
            "overlay-lower",
            index,
            "application/vnd.erofs.chunk-index.v1",
        ),
    ] {
        let (image, _) = builder("refused", Compression::None)?;
        let image = image
            .annotate_layer(0, ROLE, role)
            .edit(Part::Manifest, edit);
        let image = write(node, image)?;
        let says = [
            &*image.reference,
            &*image.layers[0].digest,
            says,
            "not supported",
        ];
        let output = unpack(node, &image.reference, "erofs")?;
        assert_error(output, "Unimplemented", &says, "build it without")?;
    }
    let other = digest(b"another");
    let (image, _) = builder("disagrees", Compression::None)?;
    let image = write(node, image.annotate_layer(1, UNCOMPRESSED, &other))?;
    let diff_id = &image.layers[1].diff_id;
    let output = unpack(node, &image.reference, "erofs")?;
    assert_error(
        output,
        "InvalidArgument",
        &[&other, diff_id],
        "build it again",
    )?;
    let (image, _) = builder("silent", Compression::Zstd)?;
    let image = write(node, image.edit(Part::Config, without_diff_ids))?;
    let output = unpack(node, &image.reference, "erofs")?;
    let says = [&*image.layers[0].digest, "says its diff ID"];
    assert_error(output, "InvalidArgument", &says, "build it again")?;
    ensure!(node.snapshots("erofs")?.is_empty());
    node.assert_nothing_left("erofs")
        .context("something is left")
}
