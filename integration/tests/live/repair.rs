// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `unpack --repair` where labels alone mend nothing: layers are removed and unpacked again,
//! unless somebody uses them.

use anyhow::{Context as _, Result, ensure};
use resnap_integration::image::{Built, Entry, HELLO_SAYS, ImageBuilder, Layer, hello};

use crate::command::CommandOutput;
use crate::errors::assert_error;
use crate::node::{Node, unique};
use crate::suite::live_tests;
use crate::unpack::{assert_labels, expected_labels, outcomes};

live_tests! {
    Containerd: repair_keeps_a_running_container,
    Containerd: repair_keeps_another_image,
    Containerd: repair_reports_snapshots_that_containerd_cannot_remove,
}

/// Puts an image on the node and has containerd unpack it, as a pull without the CRI does.
///
/// Nothing is mounted for that: a snapshot that garbage collection takes, as it may those of
/// mounts, keeps the layer below from being removed.
pub(crate) fn pull(node: &Node, snapshotter: &str, image: &Built) -> Result<()> {
    let archive = image.archive.to_string_lossy();
    // The transfer service of containerd 2 unpacks for snapshotters of its configuration only.
    let by_client = match node.containerd.version() >= (2, 0, 0) {
        true => &["--local"][..],
        false => &[],
    };
    let import = ["images", "import", "--snapshotter", snapshotter];
    node.ctr(&[&import[..], by_client, &[&archive]].concat())?;
    let labels = node.labels(snapshotter, image.chain_id())?;
    let has_labels = labels.contains_key("containerd.io/snapshot/cri.image-ref");
    ensure!(!has_labels, "containerd has labelled it: {labels:?}");
    Ok(())
}

/// Two images that share all but their top layers, on overlayfs.
fn pair(node: &Node) -> Result<(Built, Built)> {
    let file = |name: &str| Layer::of(&[Entry::dir("./"), Entry::file(name, name)]);
    let image = |top: &str| {
        let archive = node.containerd.scratch().join(unique(top));
        let image = ImageBuilder::new(&format!("docker.io/library/{top}:1"))
            .layers([file("base")?, file("middle")?, file(top)?])
            .write(&archive)?;
        pull(node, "overlayfs", &image)?;
        Ok::<_, anyhow::Error>(image)
    };
    Ok((image("one")?, image("other")?))
}

fn repair(node: &Node, snapshotter: &str, image: &str) -> Result<CommandOutput> {
    let on = ["--snapshotter", snapshotter];
    node.resnap(&[&["unpack", "--json", "--repair", image], &on[..]].concat())
}

/// Checks that a repair is refused because of `user`, and changes nothing.
fn assert_refused(node: &Node, snapshotter: &str, image: &str, user: &str) -> Result<()> {
    let before = node.snapshots(snapshotter)?;
    let error = repair(node, snapshotter, image)?.error()?;
    let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    ensure!(error["kind"] == "FailedPrecondition", "{error}");
    ensure!(
        text("message").contains(image) && text("message").contains(user),
        "{error}"
    );
    ensure!(
        text("next_step").contains("nothing was removed") && text("next_step").contains(user),
        "{error}"
    );
    let after = node.snapshots(snapshotter)?;
    ensure!(after == before, "{before:#?}\nbecame\n{after:#?}");
    ensure!(node.leases()?.is_empty(), "a lease is left");
    Ok(())
}

/// Checks that a repair succeeds with `applied` new layers, and returns its report.
fn assert_repaired(node: &Node, snapshotter: &str, image: &str, applied: usize) -> Result<()> {
    let report = repair(node, snapshotter, image)?.report()?;
    let made = outcomes(&report)?.get("applied").copied();
    ensure!(made.unwrap_or(0) == applied, "{report}");
    node.assert_nothing_left(snapshotter)
}

fn repair_keeps_a_running_container(node: &Node) -> Result<()> {
    let image = hello()?;
    for snapshotter in ["overlayfs", "native"] {
        pull(node, snapshotter, &image)?;
        let containerd = &node.containerd;
        containerd.look_into(&node.namespace, snapshotter, &image.reference, |rootfs| {
            let id = rootfs.parent().and_then(|dir| dir.file_name());
            let id = id.context("a root in no bundle")?.to_string_lossy();
            let user = format!("container {id}");
            assert_refused(node, snapshotter, &image.reference, &user)
        })?;
        assert_repaired(node, snapshotter, &image.reference, 3)?;
        assert_labels(node, snapshotter, &image, &[])?;
        let output = node.run(snapshotter, &image.reference)?;
        ensure!(output == HELLO_SAYS, "it says {output:?}");
        // Complete layers are not unpacked again, even while they are mounted.
        containerd.look_into(&node.namespace, snapshotter, &image.reference, |_| {
            let report = repair(node, snapshotter, &image.reference)?.report()?;
            ensure!(outcomes(&report)?.get("existed") == Some(&3), "{report}");
            Ok(())
        })?;
        node.assert_nothing_left(snapshotter)?;
    }
    Ok(())
}

fn repair_keeps_another_image(node: &Node) -> Result<()> {
    let (left, right) = pair(node)?;
    let user = format!("snapshot {}", right.chain_id());
    assert_refused(node, "overlayfs", &left.reference, &user)?;
    // As the next step says.
    let other = ["snapshots", "--snapshotter", "overlayfs", "rm"];
    node.ctr(&[&other[..], &[right.chain_id()]].concat())?;
    assert_repaired(node, "overlayfs", &left.reference, 3)?;
    assert_labels(node, "overlayfs", &left, &[])?;

    // Layers that have their labels are shared as they are: only what lacks them is made again.
    pull(node, "overlayfs", &right)?;
    assert_repaired(node, "overlayfs", &right.reference, 1)?;
    assert_labels(node, "overlayfs", &left, &[])?;
    let labels = node.labels("overlayfs", right.chain_id())?;
    ensure!(labels == expected_labels(&right, 2), "{labels:#?}");
    Ok(())
}

fn repair_reports_snapshots_that_containerd_cannot_remove(node: &Node) -> Result<()> {
    let (one, other) = pair(node)?;
    // containerd still counts children that garbage collection has removed.
    node.ctr(&["images", "rm", "--sync", &other.reference])?;
    let kept = node.snapshots("overlayfs")?;
    ensure!(kept.len() == one.layers.len(), "{kept:#?}");
    let says = [&*one.reference, &*one.layers[1].chain_id, "overlayfs"];
    // Garbage collection between two removals would take the rest.
    let keeper = node.keep("overlayfs", &one.layers[1].chain_id)?;
    let output = repair(node, "overlayfs", &one.reference)?;
    assert_error(output, "FailedPrecondition", &says, "images rm --sync")?;
    node.ctr(&["leases", "rm", &keeper])?;
    node.assert_nothing_left("overlayfs")?;
    // The next step works.
    node.ctr(&["images", "rm", "--sync", &one.reference])?;
    node.import(&one)?;
    node.unpack("overlayfs", &one.reference)?;
    assert_labels(node, "overlayfs", &one, &[])
}
