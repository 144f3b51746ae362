// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images that are not evicted.

use anyhow::{Context as _, Result, ensure};
use resnap_integration::image::{Built, hello, many};
use serde_json::Value;

use super::{FROM, resnap};
use crate::missing::discard;
use crate::node::Node;
use crate::suite::live_tests;

live_tests! {
    One: evict_refuses_pinned_and_sandbox_images,
    Containerd: evict_refuses_images_without_layers,
    Containerd: evict_accepts_images_that_can_be_copied_back,
    Containerd: evict_names_all_images_that_go_together,
}

fn unpacked(node: &Node, image: Built) -> Result<Built> {
    node.import(&image)?;
    node.unpack_by_containerd(FROM, &image.reference)?;
    Ok(image)
}

/// Runs `resnap evict` of an image, and returns its exit code and the document.
fn evict(node: &Node, config: &str, image: &str) -> Result<(Option<i32>, Value)> {
    evict_from(node, FROM, config, image)
}

fn evict_from(
    node: &Node,
    snapshotter: &str,
    config: &str,
    image: &str,
) -> Result<(Option<i32>, Value)> {
    let arguments = ["evict", "--json", image, "--snapshotter", snapshotter];
    let output = resnap(node, config, &arguments)?;
    let document = serde_json::from_str(&output.stdout);
    Ok((
        output.code,
        document.with_context(|| format!("{output:?}"))?,
    ))
}

/// Checks that an image is refused for a reason with these parts, and that nothing is removed.
fn is_refused(node: &Node, config: &str, image: &str, parts: &[&str]) -> Result<()> {
    let before = node.snapshots(FROM)?;
    let (code, document) = evict(node, config, image)?;
    let chain = &document["chains"][0];
    ensure!(
        code == Some(2) && chain["state"] == "refused",
        "{document:#}"
    );
    let text = chain["refusal"].as_str().unwrap_or_default();
    for part in parts {
        ensure!(text.contains(part), "{part:?} is not in {text}");
    }
    node.collect_garbage()?;
    ensure!(node.snapshots(FROM)? == before, "something was removed");
    Ok(())
}

fn evict_refuses_pinned_and_sandbox_images(node: &Node) -> Result<()> {
    let image = unpacked(node, hello()?)?.reference;
    let sandbox = format!("cri.sandbox_image = {image:?}\n");
    let stays = ["sandbox image", "containerd's configuration"];
    is_refused(node, &sandbox, "hello:1", &stays)?;
    node.ctr(&["images", "label", &image, "io.cri-containerd.pinned=pinned"])?;
    is_refused(node, &sandbox, "hello:1", &stays)?;
    let unpin = ["images", "label", &image, "io.cri-containerd.pinned="];
    let step = format!("`ctr --namespace {} {}`", node.namespace, unpin.join(" "));
    is_refused(node, "", &image, &["is pinned", &step])?;
    // The next step of the refusal works.
    node.ctr(&unpin)?;
    let (code, document) = evict(node, "", &image)?;
    ensure!(code == Some(0), "{document:#}");
    ensure!(node.snapshots(FROM)?.is_empty(), "{document:#}");
    // Nothing is left to do.
    let (code, document) = evict(node, "", &image)?;
    ensure!(code == Some(0), "{document:#}");
    ensure!(document["chains"][0]["state"] == "absent", "{document:#}");
    node.assert_nothing_left(FROM)
}

fn evict_refuses_images_without_layers(node: &Node) -> Result<()> {
    let image = unpacked(node, hello()?)?;
    discard(node, &image)?;
    let lowest = &*image.layers[0].digest;
    let name = &*image.reference;
    is_refused(node, "", name, &[name, lowest, "always = true"])?;
    let no_source = "cri.always = true\nsources.order = [\"archive\", \"sibling\"]\n";
    is_refused(
        node,
        no_source,
        name,
        &[name, lowest, "archive: ", "sibling: "],
    )?;
    let archive = image.archive.to_string_lossy();
    let config = format!("cri.always = true\nsources.archives = [{archive:?}]\n");
    let (code, document) = evict(node, &config, name)?;
    ensure!(code == Some(0), "{document:#}");
    ensure!(node.snapshots(FROM)?.is_empty(), "{document:#}");
    node.assert_nothing_left(FROM)
}

/// Handlers with a snapshotter of their own are prepared by resnap, here with copies.
fn evict_accepts_images_that_can_be_copied_back(node: &Node) -> Result<()> {
    let image = unpacked(node, hello()?)?;
    let name = &*image.reference;
    node.unpack("native", name)?;
    discard(node, &image)?;
    let none = "sources.order = []\n";
    let (code, document) = evict_from(node, "native", none, name)?;
    ensure!(code == Some(2), "{document:#}");
    let (code, document) = evict_from(node, "native", "", name)?;
    ensure!(code == Some(0), "{document:#}");
    ensure!(document["snapshots"] == image.layers.len(), "{document:#}");
    ensure!(node.snapshots("native")?.is_empty(), "{document:#}");
    let unpack = ["unpack", "--json", name, "--snapshotter", "native"];
    resnap(node, "", &unpack)?.ok()?;
    node.assert_nothing_left("native")?;
    node.assert_nothing_left(FROM)
}

fn evict_names_all_images_that_go_together(node: &Node) -> Result<()> {
    let image = unpacked(node, many(2)?)?.reference;
    let upper = unpacked(node, many(3)?)?;
    let other = "docker.io/library/another:1";
    node.ctr(&["images", "tag", &image, other])?;
    let dry = ["evict", "another:1", "--snapshotter", FROM, "--dry-run"];
    let table = node.resnap(&dry)?.ok()?;
    for part in [
        other,
        &image,
        "would evict",
        "layers of other images",
        "would be freed",
    ] {
        ensure!(table.contains(part), "{part:?} is not in {table}");
    }
    let (code, document) = evict(node, "", "another:1")?;
    ensure!(code == Some(0), "{document:#}");
    let chain = &document["chains"][0];
    ensure!(chain["images"][0] == other, "{document:#}");
    ensure!(chain["images"][1] == *image, "{document:#}");
    // They are the lower layers of another image.
    ensure!(
        chain["snapshots"] == 0 && chain["kept"] == 2,
        "{document:#}"
    );
    let (code, document) = evict(node, "", &upper.reference)?;
    ensure!(code == Some(0), "{document:#}");
    ensure!(document["snapshots"] == 3, "{document:#}");
    let unknown = node.resnap(&["evict", "--json", "none:1", "--snapshotter", FROM])?;
    ensure!(unknown.kind()? == "NotFound", "{unknown:?}");
    let unknown = node.resnap(&["evict", "--json", &image, "--snapshotter", "none"])?;
    ensure!(unknown.kind()? == "FailedPrecondition", "{unknown:?}");
    node.assert_nothing_left(FROM)
}
