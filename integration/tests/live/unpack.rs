// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The main job: an image that is on the node, made ready on another snapshotter.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::image::{Built, WEB_SAYS, hello, web};

use crate::suite::{Needs, Node, Test};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "labels_on_every_layer",
        needs: Needs::Containerd,
        run: labels_on_every_layer,
    },
    Test {
        name: "erofs_runs_and_equals_overlayfs",
        needs: Needs::Erofs,
        run: erofs_equals_overlayfs,
    },
];

/// The labels that a layer has to have, and no others.
pub(crate) fn expected_labels(image: &Built, index: usize) -> BTreeMap<String, String> {
    let layer = &image.layers[index];
    let above: Vec<&str> = image.layers[index..]
        .iter()
        .map(|layer| layer.digest.as_str())
        .collect();
    let mut labels = BTreeMap::from([
        ("containerd.io/snapshot.ref", layer.chain_id.clone()),
        ("containerd.io/snapshot/diff-id", layer.diff_id.clone()),
        (
            "containerd.io/snapshot/cri.image-ref",
            image.reference.clone(),
        ),
        (
            "containerd.io/snapshot/cri.manifest-digest",
            image.manifest.clone(),
        ),
        (
            "containerd.io/snapshot/cri.layer-digest",
            layer.digest.clone(),
        ),
        ("containerd.io/snapshot/cri.image-layers", above.join(",")),
    ]);
    if let Some(below) = index.checked_sub(1) {
        let parent = image.layers[below].chain_id.clone();
        labels.insert("containerd.io/snapshot/parent-chain-id", parent);
    }
    labels
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

/// That every layer of `image` carries exactly its labels.
pub(crate) fn assert_labels(node: &Node, snapshotter: &str, image: &Built) -> Result<()> {
    for (index, layer) in image.layers.iter().enumerate() {
        let labels = node.labels(snapshotter, &layer.chain_id)?;
        let expected = expected_labels(image, index);
        ensure!(
            labels == expected,
            "layer {index}: {labels:#?}\nwant {expected:#?}"
        );
    }
    Ok(())
}

fn labels_on_every_layer(node: &mut Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    node.resnap(&["unpack", &image.reference, "--snapshotter", "native"])?
        .ok()?;
    assert_labels(node, "native", &image)?;
    node.nothing_left("native")
}

fn erofs_equals_overlayfs(node: &mut Node) -> Result<()> {
    let image = web()?;
    node.import(&image)?;
    node.unpack_by_containerd("overlayfs", &image)?;
    node.resnap(&["unpack", &image.reference, "--snapshotter", "erofs"])?
        .ok()?;
    assert_labels(node, "erofs", &image)?;
    node.nothing_left("erofs")?;
    let run = |snapshotter| {
        let said = node
            .containerd
            .run(&node.namespace, snapshotter, &image.reference, &[]);
        said.with_context(|| format!("run from {snapshotter}"))
    };
    ensure!(
        run("overlayfs")?.trim() == WEB_SAYS,
        "overlayfs says {}",
        run("overlayfs")?
    );
    ensure!(
        run("erofs")?.trim() == WEB_SAYS,
        "erofs says {}",
        run("erofs")?
    );
    Ok(())
}
