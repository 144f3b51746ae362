// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Names that fit more or less than one image.

use anyhow::{Result, ensure};
use resnap_integration::image::{
    Built, Compression, Entry, ImageBuilder, Layer, digest, hello, tar_entry,
};
use serde_json::json;

use super::{assert_error, unpack};
use crate::node::{Node, unique};
use crate::suite::live_tests;

live_tests! {
    One: a_digest_finds_a_tag,
    Containerd: an_id_selects_the_complete_image,
}

/// A reference with a digest finds the image that is there under a tag.
fn a_digest_finds_a_tag(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    let target = image.target();
    let other = digest(b"another");
    for name in [
        format!("hello@{target}"),
        format!("docker.io/library/hello:1@{target}"),
        // The digest counts.
        format!("hello:2@{target}"),
    ] {
        let check = node.resnap(&["check", "--json", &name])?.json()?;
        ensure!(check[0]["image"] == json!(image.reference), "{check}");
    }
    for name in [format!("hello:1@{other}"), format!("hello@{other}")] {
        let is = format!("{} is {target}", image.reference);
        let says = [&*format!("no image {name:?}"), &*is];
        let output = unpack(node, &name, "native")?;
        assert_error(output, "NotFound", &says, "name one of these tags")?;
    }
    // The message does not mention another repository with the same content.
    let output = unpack(node, &format!("other@{target}"), "native")?;
    let error = output.error()?;
    let message = error["message"].as_str().unwrap_or_default();
    ensure!(error["kind"] == "NotFound", "{error}");
    ensure!(!message.contains(&image.reference), "{error}");
    node.assert_nothing_left("native")
}

/// Imports the image with its layers compressed differently: its config is the same.
fn twins(node: &Node) -> Result<[Built; 2]> {
    let tars = ["lower", "upper"]
        .map(|name| tar_entry::pack(&[Entry::dir("./"), Entry::file(name, name)]));
    let [lower, upper] = tars;
    let (lower, upper) = (lower?, upper?);
    let image = |name: &str, compression| {
        let image = ImageBuilder::new(&format!("docker.io/library/{name}:1"))
            .layer(Layer::new(&lower, compression)?)
            .layer(Layer::new(&upper, compression)?)
            .write(&node.containerd.scratch().join(unique(name)))?;
        node.import(&image)?;
        anyhow::Ok(image)
    };
    Ok([
        image("gzip", Compression::Gzip)?,
        image("zstd", Compression::Zstd)?,
    ])
}

/// An ID names a config, which may be reached by several manifests: one that is all there is
/// taken.
fn an_id_selects_the_complete_image(node: &Node) -> Result<()> {
    let [gzip, zstd] = twins(node)?;
    ensure!(gzip.config == zstd.config && gzip.manifest != zstd.manifest);
    // As the CRI keeps it.
    node.ctr(&["images", "tag", &gzip.reference, &gzip.config])?;
    let missing = &gzip.layers[1].digest;
    node.ctr(&["content", "rm", missing])?;
    let hex = gzip.config.trim_start_matches("sha256:");
    for id in [&gzip.config, hex, &hex[..12]] {
        let report = node.unpack("native", id)?;
        ensure!(report["manifest"] == json!(zstd.manifest), "{report}");
        ensure!(report["reference"] == json!(zstd.reference), "{report}");
        // Garbage collection may remove the layers below.
        let remove = [
            "snapshots",
            "--snapshotter",
            "native",
            "rm",
            zstd.chain_id(),
        ];
        node.ctr(&remove)?;
    }
    // An explicit name is not replaced by the other one.
    let output = unpack(node, &gzip.reference, "native")?;
    assert_error(output, "NotFound", &[missing], "content fetch")?;
    // If both lack a blob, both are reported.
    let also = &zstd.layers[1].digest;
    node.ctr(&["content", "rm", also])?;
    for id in [&gzip.config, &hex[..12]] {
        let output = unpack(node, id, "native")?;
        let says = [
            &*gzip.reference,
            &*gzip.manifest,
            missing,
            &*zstd.reference,
            &*zstd.manifest,
            also,
        ];
        assert_error(output, "NotFound", &says, "content fetch")?;
    }
    node.assert_no_active_snapshot("native")
}
