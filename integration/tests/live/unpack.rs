// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The main job: an image that is on the node, made ready on another snapshotter.

pub(crate) mod unusual;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::image::{
    self, Built, BuiltLayer, EDGE_CASES_CLOCK, EDGE_CASES_MKFS, EDGE_CASES_SAYS, Entry, HELLO_SAYS,
    ImageBuilder, Index, Layer, MANY_MAX, ROOT_CLOCK, WEB_SAYS, edge_cases, edge_cases_mkfs, hello,
    many, shared_pair, web,
};
use resnap_integration::tree::{Expected, compare, surprises};
use serde_json::{Value, json};

use crate::node::{Node, host_platform, unique};
use crate::suite::live_tests;

live_tests! {
    Containerd: every_layer_has_its_labels,
    Containerd: the_tree_equals_that_of_a_pull,
    Erofs: erofs_equals_overlayfs,
    Erofs: edge_cases_on_erofs_equal_overlayfs,
    One: many_layers_fit_into_labels,
    Containerd: existing_layers_are_not_unpacked_again,
    Containerd: shared_layers_are_made_once,
    Containerd: garbage_collection_follows_the_image,
    Containerd: docker_media_types_and_platforms,
    Containerd: a_single_manifest_is_accepted,
    Containerd: annotations_for_snapshotters_become_labels,
}

/// Returns the labels that a layer has to have, and no others.
pub(crate) fn expected_labels(image: &Built, index: usize) -> BTreeMap<String, String> {
    let layer = &image.layers[index];
    let cri = |name| format!("containerd.io/snapshot/cri.{name}");
    let mut labels = BTreeMap::from([
        (
            "containerd.io/snapshot.ref".to_owned(),
            layer.chain_id.clone(),
        ),
        (
            "containerd.io/snapshot/diff-id".to_owned(),
            layer.diff_id.clone(),
        ),
        (cri("image-ref"), image.reference.clone()),
        (cri("manifest-digest"), image.manifest.clone()),
        (cri("layer-digest"), layer.digest.clone()),
        (cri("image-layers"), image_layers(&image.layers[index..])),
    ]);
    if let Some(below) = index.checked_sub(1) {
        let key = "containerd.io/snapshot/parent-chain-id".to_owned();
        labels.insert(key, image.layers[below].chain_id.clone());
    }
    labels
}

/// Returns the digests of as many layers, the lowest first, as fit into a label with its key.
fn image_layers(layers: &[BuiltLayer]) -> String {
    let room = 4096 - "containerd.io/snapshot/cri.image-layers".len();
    // A digest is of 71 bytes, and a comma stands between two.
    let most = (room + 1) / 72;
    let digests = layers.iter().take(most).map(|layer| layer.digest.as_str());
    digests.collect::<Vec<_>>().join(",")
}

/// The label of an EROFS image that resnap wrote.
pub(crate) const IMAGE_WRITER: &str = "resnap.io/image-writer";

/// Checks that every layer of `image` has exactly its labels, besides the snapshotter's own and that of
/// resnap's images.
pub(crate) fn assert_labels(
    node: &Node,
    snapshotter: &str,
    image: &Built,
    own: &[&str],
) -> Result<()> {
    let mut snapshots = node.snapshots(snapshotter)?;
    for (index, layer) in image.layers.iter().enumerate() {
        let info = snapshots.remove(&layer.chain_id);
        let mut labels = info
            .with_context(|| format!("layer {index} is missing"))?
            .labels;
        labels.retain(|key, _| !own.contains(&key.as_str()) && key != IMAGE_WRITER);
        let expected = expected_labels(image, index);
        ensure!(
            labels == expected,
            "layer {index}: {labels:#?}\nwant {expected:#?}"
        );
    }
    Ok(())
}

/// Counts the outcomes in a report.
pub(crate) fn outcomes(report: &Value) -> Result<BTreeMap<String, usize>> {
    let layers = report["layers"].as_array().context("a report has layers")?;
    let mut counts = BTreeMap::new();
    for layer in layers {
        let outcome = layer["outcome"]
            .as_str()
            .context("a layer has an outcome")?;
        *counts.entry(outcome.to_owned()).or_default() += 1;
    }
    Ok(counts)
}

fn all(outcome: &str, layers: usize) -> BTreeMap<String, usize> {
    BTreeMap::from([(outcome.to_owned(), layers)])
}

/// Checks that the image is the same on both, except for `expected`, and prints `says` on both.
fn assert_same(
    node: &Node,
    [left, right]: [&str; 2],
    image: &Built,
    says: &str,
    expected: &[Expected],
) -> Result<()> {
    let trees = [
        node.tree(left, &image.reference)?,
        node.tree(right, &image.reference)?,
    ];
    ensure!(trees[0].nodes.len() > 100, "{left} shows next to nothing");
    let surprises = surprises(&compare(&trees[0], &trees[1]), expected);
    let report: Vec<String> = surprises.iter().map(ToString::to_string).collect();
    ensure!(
        report.is_empty(),
        "{left} and {right} differ:\n{}",
        report.join("\n")
    );
    for snapshotter in [left, right] {
        let output = node.run(snapshotter, &image.reference)?;
        ensure!(output == says, "from {snapshotter} it says {output:?}");
    }
    Ok(())
}

fn every_layer_has_its_labels(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    let report = node.unpack("native", &image.reference)?;
    ensure!(outcomes(&report)? == all("applied", 3), "{report}");
    assert_labels(node, "native", &image, &[])?;
    node.assert_nothing_left("native")?;
    let output = node.run("native", &image.reference)?;
    ensure!(output == HELLO_SAYS, "it says {output:?}");
    Ok(())
}

/// Whatever snapshotter: what resnap makes is what containerd makes, deletions, links, odd names
/// and all.
fn the_tree_equals_that_of_a_pull(node: &Node) -> Result<()> {
    let image = edge_cases()?;
    let pulled = Node {
        containerd: node.containerd.clone(),
        namespace: unique("pulled"),
    };
    for node in [node, &pulled] {
        node.import(&image)?;
    }
    pulled.unpack_by_containerd("overlayfs", &image.reference)?;
    node.unpack_with_differ("containerd", "overlayfs", &image.reference)?;
    node.assert_nothing_left("overlayfs")?;
    let unpacked_tree = node.tree("overlayfs", &image.reference)?;
    let pulled_tree = pulled.tree("overlayfs", &image.reference)?;
    let surprises = surprises(&compare(&pulled_tree, &unpacked_tree), EDGE_CASES_CLOCK);
    let report: Vec<String> = surprises.iter().map(ToString::to_string).collect();
    ensure!(report.is_empty(), "{}", report.join("\n"));
    let output = node.run("overlayfs", &image.reference)?;
    ensure!(output == EDGE_CASES_SAYS, "it says {output:?}");
    Ok(())
}

fn erofs_equals_overlayfs(node: &Node) -> Result<()> {
    let image = web()?;
    node.import(&image)?;
    node.unpack_by_containerd("overlayfs", &image.reference)?;
    node.unpack("erofs", &image.reference)?;
    assert_labels(node, "erofs", &image, &[])?;
    node.assert_nothing_left("erofs")?;
    assert_same(node, ["overlayfs", "erofs"], &image, WEB_SAYS, ROOT_CLOCK)
}

fn edge_cases_on_erofs_equal_overlayfs(node: &Node) -> Result<()> {
    let image = edge_cases_mkfs()?;
    node.import(&image)?;
    node.unpack_by_containerd("overlayfs", &image.reference)?;
    node.unpack_with_differ("containerd", "erofs", &image.reference)?;
    assert_labels(node, "erofs", &image, &[])?;
    node.assert_nothing_left("erofs")?;
    let expected = [EDGE_CASES_CLOCK, EDGE_CASES_MKFS].concat();
    assert_same(
        node,
        ["overlayfs", "erofs"],
        &image,
        EDGE_CASES_SAYS,
        &expected,
    )
}

fn many_layers_fit_into_labels(node: &Node) -> Result<()> {
    let image = many(MANY_MAX)?;
    node.import(&image)?;
    node.unpack("overlayfs", &image.reference)?;
    assert_labels(node, "overlayfs", &image, &[])?;
    let lowest = node.labels("overlayfs", &image.layers[0].chain_id)?;
    let named = lowest["containerd.io/snapshot/cri.image-layers"].split(',');
    ensure!(
        named.count() < MANY_MAX,
        "all layers fit: this tests nothing"
    );
    let output = node.run("overlayfs", &image.reference)?;
    ensure!(output == MANY_MAX.to_string(), "it says {output:?}");
    node.assert_nothing_left("overlayfs")
}

fn existing_layers_are_not_unpacked_again(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    node.unpack("native", &image.reference)?;
    let again = node.unpack("native", &image.reference)?;
    ensure!(outcomes(&again)? == all("existed", 3), "{again}");
    // Layers that another client unpacked without labels are enough for a snapshotter that needs none.
    node.unpack_by_containerd("overlayfs", &image.reference)?;
    let report = node.unpack("overlayfs", &image.reference)?;
    ensure!(outcomes(&report)? == all("existed", 3), "{report}");
    node.assert_nothing_left("native")?;
    node.assert_nothing_left("overlayfs")
}

fn shared_layers_are_made_once(node: &Node) -> Result<()> {
    let (left, right) = shared_pair()?;
    node.import(&left)?;
    node.import(&right)?;
    node.unpack("overlayfs", &left.reference)?;
    let report = node.unpack("overlayfs", &right.reference)?;
    let want = BTreeMap::from([("applied".to_owned(), 1), ("existed".to_owned(), 2)]);
    ensure!(outcomes(&report)? == want, "{report}");
    // The shared layers name the image that came first.
    let labels = node.labels("overlayfs", &right.layers[1].chain_id)?;
    ensure!(labels == expected_labels(&left, 1), "{labels:#?}");
    let labels = node.labels("overlayfs", right.chain_id())?;
    ensure!(labels == expected_labels(&right, 2), "{labels:#?}");
    // A chain that lost its top is made whole, and no more than that.
    node.ctr(&[
        "snapshots",
        "--snapshotter",
        "overlayfs",
        "rm",
        right.chain_id(),
    ])?;
    let report = node.unpack("overlayfs", &right.reference)?;
    ensure!(outcomes(&report)? == want, "{report}");
    node.assert_nothing_left("overlayfs")
}

fn garbage_collection_follows_the_image(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    node.unpack("native", &image.reference)?;
    node.collect_garbage()?;
    let kept = node.snapshots("native")?;
    let wanted = image.layers.iter().map(|layer| &layer.chain_id);
    ensure!(
        wanted.clone().all(|key| kept.contains_key(key)),
        "{kept:#?}"
    );
    node.ctr(&["images", "rm", "--sync", &image.reference])?;
    let kept = node.snapshots("native")?;
    ensure!(kept.is_empty(), "{kept:#?}");
    Ok(())
}

/// An image of one platform was chosen by whoever pulled it, whatever its config says.
fn a_single_manifest_is_accepted(node: &Node) -> Result<()> {
    let archive = node.containerd.scratch().join(unique("single"));
    let image = ImageBuilder::new("docker.io/library/single:1")
        .platform("linux", "s390x")
        .layer(Layer::of(&[Entry::dir("./"), Entry::file("s390x", "")])?)
        .write(&archive)?;
    node.import(&image)?;
    node.unpack("native", &image.reference)?;
    assert_labels(node, "native", &image, &[])?;
    let wrong = [
        "check",
        "--json",
        &image.reference,
        "--platform",
        "linux/arm64",
    ];
    let error = node.resnap(&wrong)?.error()?;
    ensure!(error["kind"] == "NotFound", "{error}");
    Ok(())
}

fn docker_media_types_and_platforms(node: &Node) -> Result<()> {
    let (os, architecture) = image::host_platform();
    let foreign = if architecture == "arm64" {
        "amd64"
    } else {
        "arm64"
    };
    let of = |architecture: &str, says: &str| -> Result<ImageBuilder> {
        let file = Entry::file("says", format!("{says}\n"));
        let layer = Layer::of(&[Entry::dir("./"), file])?;
        let image = ImageBuilder::new("unused").docker().layer(layer);
        Ok(image.platform(os, architecture))
    };
    let reference = "docker.io/library/both:1";
    let archive = node.containerd.scratch().join(unique("both"));
    let image = Index::new(reference)
        .image(of(foreign, "abroad")?)
        .image(of(architecture, "here")?)
        .write(&archive)?;
    node.import(&image)?;
    node.unpack("native", reference)?;
    let abroad = format!("{os}/{foreign}");
    let unpack = [
        "unpack",
        reference,
        "--snapshotter",
        "native",
        "--platform",
        &abroad,
    ];
    node.resnap(&unpack)?.ok()?;
    for (platform, says) in [(host_platform(), "here\n"), (abroad.clone(), "abroad\n")] {
        let at = node.containerd.scratch().join(unique("mnt"));
        std::fs::create_dir_all(&at)?;
        let dir = at.to_string_lossy();
        let on = ["--snapshotter", "native", "--platform", &platform];
        node.ctr(&[&["images", "mount"], &on[..], &[reference, &dir]].concat())?;
        let output = std::fs::read_to_string(at.join("says"));
        node.ctr(&["images", "unmount", "--snapshotter", "native", "--rm", &dir])?;
        let output = output?;
        ensure!(output == says, "{platform} says {output:?}");
    }
    let check = ["check", "--json", reference, "--platform", &abroad];
    let check = node.resnap(&check)?.json()?;
    ensure!(check[0]["manifest"] == json!(image.manifest), "{check}");
    Ok(())
}

fn annotations_for_snapshotters_become_labels(node: &Node) -> Result<()> {
    let own = "containerd.io/snapshot/example.com.note";
    let archive = node.containerd.scratch().join(unique("annotated"));
    let image = ImageBuilder::new("docker.io/library/annotated:1")
        .layer(Layer::of(&[Entry::dir("./"), Entry::file("a", "a\n")])?)
        .annotate_layer(0, own, "passed on")
        .annotate_layer(0, "example.com/other", "not passed on")
        // An image must not choose what a snapshotter is told about it.
        .annotate_layer(
            0,
            "containerd.io/snapshot/cri.image-ref",
            "docker.io/other:1",
        )
        .annotate_layer(0, "containerd.io/snapshot/diff-id", "sha256:bad")
        .write(&archive)?;
    node.import(&image)?;
    node.unpack("native", &image.reference)?;
    let mut want = expected_labels(&image, 0);
    want.insert(own.to_owned(), "passed on".to_owned());
    let labels = node.labels("native", image.chain_id())?;
    ensure!(labels == want, "{labels:#?}\nwant {want:#?}");

    // Nor where nobody knows a reference: then there is none.
    let by_id = Node {
        containerd: node.containerd.clone(),
        namespace: unique("by-id"),
    };
    by_id.import(&image)?;
    by_id.ctr(&["images", "tag", &image.reference, &image.config])?;
    by_id.ctr(&["images", "rm", &image.reference])?;
    by_id.unpack("native", &image.config)?;
    want.remove("containerd.io/snapshot/cri.image-ref");
    let labels = by_id.labels("native", image.chain_id())?;
    ensure!(labels == want, "{labels:#?}\nwant {want:#?}");
    Ok(())
}
