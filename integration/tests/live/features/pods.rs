// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The form of an image that a pod on erofs gets: this is containerd's choice, since its
//! Prepare is on the layers of the manifest that it chose. That is the plain one, or with an old
//! containerd/platforms the first that the index lists; what is ready beside that does not change it.

use anyhow::{Result, ensure};
use resnap_integration::cri::Cri;
use resnap_integration::image::{Built, Form, forms, pause};

use super::USUAL;
use crate::node::Node;
use crate::served::Served;
use crate::suite::live_tests;
use crate::unpack::assert_labels;

live_tests! {
    ErofsHandler: features_pods_get_the_manifest_that_containerd_selects,
    ErofsHandler: features_pods_of_an_index_in_the_wrong_order,
}

const WRONG: [Form; 3] = [Form::Erofs, Form::Foreign, Form::Plain];

fn features_pods_get_the_manifest_that_containerd_selects(node: &Node) -> Result<()> {
    let (usual, wrong) = (forms(&USUAL)?, forms(&WRONG)?);
    let native = usual.entry(2);
    for image in [&pause()?, &usual, &wrong] {
        node.import(image)?;
    }
    let served = Served::start(node)?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
    let sandbox = cri.run_pod_sandbox("erofs", "pod")?;
    let run = |name: &str, image: &Built| -> Result<String> {
        let exit = cri.run(&sandbox, name, &image.reference, &[])?;
        Ok(exit.output.trim().to_owned())
    };

    // For want of the native layers no pod fails.
    for layer in &native.layers {
        node.ctr(&["content", "rm", &layer.digest])?;
    }
    let output = run("usual", &usual)?;
    ensure!(output == "plain", "it says {output:?}");
    assert_labels(node, "erofs", &usual, &[])?;
    let snapshots = node.snapshots("erofs")?;
    ensure!(!snapshots.contains_key(native.chain_id()), "{snapshots:?}");

    // Nor does it get them if they are ready.
    node.import(&usual)?;
    node.unpack("erofs", &usual.reference)?;
    let snapshots = node.snapshots("erofs")?;
    ensure!(snapshots.contains_key(native.chain_id()), "{snapshots:?}");
    let output = run("again", &usual)?;
    ensure!(output == "plain", "it says {output:?}");
    cri.remove_all()?;
    drop(cri);
    served.stop()?;
    node.assert_nothing_left("erofs")
}

/// An index that lists the EROFS entry first, of which `check` warns. containerd 2.1 is Debian's
/// here, which was built with a library that does know of OS features.
fn features_pods_of_an_index_in_the_wrong_order(node: &Node) -> Result<()> {
    let image = forms(&WRONG)?;
    let plain = image.entry(2);
    for image in [&pause()?, &image] {
        node.import(image)?;
    }
    let served = Served::start(node)?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
    let sandbox = cri.run_pod_sandbox("erofs", "pod")?;
    // As kubelet names it, and as people do.
    for (name, named) in [("by-id", &plain.config), ("by-name", &image.reference)] {
        let exit = cri.run(&sandbox, name, named, &[])?;
        ensure!(exit.output.trim() == "plain", "{name}: {exit:?}");
        assert_labels(node, "erofs", &plain, &[])?;
        let snapshots = node.snapshots("erofs")?;
        let is_native = snapshots.contains_key(image.chain_id());
        // By its name alone nobody knows what an older one takes: then it must not be missing.
        let may_be_native = name == "by-name" && node.containerd.version() < (2, 3, 0);
        ensure!(is_native == may_be_native, "{name}: {snapshots:?}");
    }
    cri.remove_all()?;
    drop(cri);
    served.stop()?;
    node.assert_nothing_left("erofs")
}
