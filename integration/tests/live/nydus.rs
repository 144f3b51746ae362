// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Guest pull: nydus-snapshotter in proxy mode, up to what the mount helper is told.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::cri::{Cri, Sandbox};
use resnap_integration::daemon::MountHelperCall;
use resnap_integration::debian::output;
use resnap_integration::image::{self, Built, hello, shared_pair};
use serde_json::{Value, json};

use crate::node::Node;
use crate::suite::live_tests;
use crate::unpack::{assert_labels, outcomes};

live_tests! {
    Nydus: nydus_pulls_in_the_guest,
}

const GUEST_SAYS: &str = "from the guest";

/// The first containerd that labels what it unpacks for another handler.
const MENDED: (u32, u32, u32) = (2, 2, 2);

fn nydus_pulls_in_the_guest(node: &Node) -> Result<()> {
    let (image, pause) = (hello()?, image::pause()?);
    let (other, _) = shared_pair()?;
    // As after a pull for the default snapshotter.
    for image in [&image, &pause, &other] {
        node.import(image)?;
        node.unpack_by_containerd("overlayfs", &image.reference)?;
    }
    let guest = node.containerd.guest_root().join("etc");
    std::fs::create_dir_all(&guest)?;
    for file in ["message", "side"] {
        std::fs::write(guest.join(file), format!("{GUEST_SAYS}\n"))?;
    }

    let is_ready = ["check", &image.reference, "--snapshotter", "nydus"];
    ensure!(
        node.resnap(&is_ready)?.code == Some(1),
        "ready before resnap"
    );
    for image in [&image, &pause] {
        let report = node.unpack("nydus", &image.reference)?;
        let remote = [("remote".to_owned(), image.layers.len())];
        ensure!(outcomes(&report)? == remote.into(), "{report}");
        assert_remote(node, image)?;
    }
    node.assert_nothing_left("nydus")?;
    ensure!(
        node.resnap(&is_ready)?.code == Some(0),
        "not ready after resnap"
    );
    let volume = prepared_volume(node, &image)?;
    ensure!(layer_digest(&volume)? == top(&image), "{volume}");

    let cri = Cri::connect(node.containerd.socket(), &node.containerd.scratch())?;
    // containerd 1.6 has one snapshotter for all handlers; there it is nydus.
    let handler = if node.containerd.version() >= (1, 7, 0) {
        "nydus"
    } else {
        ""
    };
    let sandbox = cri.run_pod_sandbox(handler, "guest-pull")?;
    assert_pulled(&node.containerd.mount_helper_calls()?, &[&pause])?;
    let exit = cri.run(&sandbox, "labelled", &image.reference, &[])?;
    ensure!(exit.output.trim() == GUEST_SAYS, "{exit:?}");
    assert_pulled(&node.containerd.mount_helper_calls()?, &[&pause, &image])?;

    without_resnap(node, &cri, &sandbox, &other)?;
    cri.remove_all()?;
    node.assert_nothing_left("nydus")
}

/// The labels of resnap, and the one that nydus sets itself.
fn assert_remote(node: &Node, image: &Built) -> Result<()> {
    const PROXY: &str = "containerd.io/snapshot/nydus-proxy-mode";
    for layer in &image.layers {
        let labels = node.labels("nydus", &layer.chain_id)?;
        ensure!(
            labels.get(PROXY).map(String::as_str) == Some("true"),
            "nydus did not take the layer for remote: {labels:#?}"
        );
    }
    assert_labels(node, "nydus", image, &[PROXY])
}

/// Returns the volume that the mounts of a container's snapshot pass to the mount helper.
fn prepared_volume(node: &Node, image: &Built) -> Result<Value> {
    let target = node.containerd.scratch().join("target");
    let target = target.to_string_lossy();
    let on_nydus =
        |words: &[&str]| node.ctr(&[&["snapshots", "--snapshotter", "nydus"], words].concat());
    let mounts = on_nydus(&["prepare", "--target", &target, "by-hand", image.chain_id()])?;
    on_nydus(&["rm", "by-hand"])?;
    ensure!(mounts.contains("-t fuse.nydus-overlayfs"), "{mounts}");
    let options = mounts.split([',', ' ', '\n']);
    let mut volumes = options.filter_map(|word| word.strip_prefix("io.katacontainers.volume="));
    let volume = volumes.next().context(mounts.clone())?;
    let decode = ["-c", "printf %s \"$1\" | base64 -d", "sh", volume];
    let volume = output(Command::new("sh").args(decode))?;
    Ok(serde_json::from_str(&volume)?)
}

/// Checks that the helper was called for the top layers of these images, in this order.
fn assert_pulled(calls: &[MountHelperCall], images: &[&Built]) -> Result<()> {
    let mut pulled = Vec::new();
    for call in calls {
        let volume = call.volume.as_ref();
        let volume = volume.with_context(|| format!("{call:?} has no volume"))?;
        ensure!(volume["volume_type"] == "image_guest_pull", "{volume}");
        pulled.push(layer_digest(volume)?);
    }
    // A container's root is mounted more than once.
    pulled.dedup();
    let tops: Vec<&str> = images.iter().map(|image| top(image)).collect();
    ensure!(pulled == tops, "{pulled:?} were pulled, want {tops:?}");
    Ok(())
}

fn layer_digest(volume: &Value) -> Result<String> {
    let metadata = &volume["image_pull"]["metadata"];
    let digest = metadata["containerd.io/snapshot/cri.layer-digest"].as_str();
    Ok(digest.with_context(|| volume.to_string())?.to_owned())
}

fn top(image: &Built) -> &str {
    image.layers.last().map_or("", |layer| &layer.digest)
}

/// Without labels the container has the host's content, and nothing is pulled in the guest.
fn without_resnap(node: &Node, cri: &Cri, sandbox: &Sandbox, image: &Built) -> Result<()> {
    let before = node.containerd.mount_helper_calls()?.len();
    let exit = cri.run(sandbox, "unlabelled", &image.reference, &[])?;
    let calls = node.containerd.mount_helper_calls()?.len() - before;
    if node.containerd.version() >= MENDED {
        ensure!(exit.output.trim() == GUEST_SAYS && calls > 0, "{exit:?}");
        return Ok(());
    }
    ensure!(exit.output.trim() == "left" && calls == 0, "{exit:?}");
    // The snapshots of that time must not count as ready.
    let unpack = [
        "unpack",
        "--json",
        &image.reference,
        "--snapshotter",
        "nydus",
    ];
    let error = node.resnap(&unpack)?.error()?;
    ensure!(error["kind"] == json!("FailedPrecondition"), "{error}");
    let message = error["message"].as_str().unwrap_or_default();
    let told = [
        &image.reference,
        image.chain_id(),
        "nydus",
        "cri.layer-digest",
    ];
    ensure!(told.iter().all(|word| message.contains(*word)), "{message}");
    let next = error["next_step"].as_str().unwrap_or_default();
    ensure!(next.contains("--repair"), "{next}");
    let check = ["check", &image.reference, "--snapshotter", "nydus"];
    let bad = node.resnap(&check)?;
    ensure!(bad.code == Some(1), "{bad:?}");
    let bare = bad.stdout.lines();
    let bare = bare.filter(|line| line.ends_with("committed   none"));
    ensure!(bare.count() == image.layers.len(), "{}", bad.stdout);

    // Mended in place, while a container uses it, and the next one is right.
    let later = ["/bin/sh", "-c", "sleep 2; cat /etc/side"];
    let using = cri.create_container(sandbox, "using", &image.reference, &later)?;
    cri.start_container(&using)?;
    node.resnap(&[&unpack[..], &["--repair"]].concat())?.ok()?;
    node.resnap(&check)?.ok()?;
    ensure!(
        cri.wait(&using)?.output.trim() == "left",
        "the old one changed"
    );
    let exit = cri.run(sandbox, "mended", &image.reference, &[])?;
    ensure!(exit.output.trim() == GUEST_SAYS, "{exit:?}");
    let calls = node.containerd.mount_helper_calls()?;
    assert_pulled(&calls[before..], &[image])?;
    Ok(())
}
