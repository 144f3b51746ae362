// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The recipe of `examples/baked-nodes`: a node image with images on overlayfs, pods on erofs, no registry.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use resnap_integration::cri::Cri;
use resnap_integration::image::{Built, HELLO_SAYS, hello, pause};

use crate::command::{CommandOutput, run_to_end};
use crate::missing::{discard, unlike_others};
use crate::node::{Node, unique};
use crate::served::Served;
use crate::suite::live_tests;

live_tests! {
    ErofsHandler: baked_nodes_run_pods_without_a_registry,
}

const UNIT: &str = include_str!("../../../examples/baked-nodes/resnap-warm.service");

/// Runs the command of the unit.
fn warm(node: &Node, run_dir: &Path) -> Result<CommandOutput> {
    let line = UNIT
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="));
    let line = line.context("the unit starts nothing")?;
    let arguments = line.strip_prefix("/usr/local/bin/resnap ");
    let arguments = arguments.with_context(|| line.to_owned())?;
    let mut command = node.configured_command("")?;
    command.env("RESNAP_RUNTIME_DIR", run_dir);
    // Whatever is free on this machine.
    run_to_end(
        command
            .args(arguments.split(' '))
            .args(["--min-free", "1 KiB"]),
    )
}

/// Runs a pod on erofs through a new `resnap serve`, and returns what it says.
fn run_pod(node: &Node, name: &str, image: &Built, run_dir: &Path) -> Result<String> {
    let mut command = node.configured_command("")?;
    command
        .arg("--address")
        .arg(node.containerd.socket())
        .arg("serve");
    let served = Served::begin(&mut command, run_dir)?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
    let sandbox = cri.run_pod_sandbox("erofs", name)?;
    let exited = cri.run(&sandbox, name, &image.reference, &[])?;
    cri.remove_all()?;
    drop(cri);
    served.stop()?;
    Ok(exited.output)
}

fn run_dir(node: &Node) -> Result<PathBuf> {
    let dir = node.containerd.socket().with_file_name(unique("run"));
    fs::create_dir(&dir)?;
    Ok(dir)
}

fn baked_nodes_run_pods_without_a_registry(node: &Node) -> Result<()> {
    let (image, pause) = (hello()?, pause()?);
    for baked in [&image, &pause] {
        node.import(baked)?;
        node.unpack_by_containerd("overlayfs", &baked.reference)?;
        discard(node, baked)?;
    }
    let mut is_first = true;
    for boot in ["first", "second"] {
        // What a reboot leaves: the disk, and nothing of /run.
        node.containerd.kill()?;
        node.containerd.restart()?;
        let run_dir = run_dir(node)?;
        let before = node.snapshots("erofs")?;
        ensure!(before.is_empty() == is_first, "{before:?}");
        let warmed = warm(node, &run_dir)?;
        ensure!(warmed.code == Some(0), "{warmed:?}");
        let snapshots = node.snapshots("erofs")?;
        ensure!(is_first || snapshots == before, "{before:?} {snapshots:?}");
        let said = run_pod(node, boot, &image, &run_dir)?;
        ensure!(said.contains(HELLO_SAYS), "{said}");
        node.assert_nothing_left("erofs")?;
        fs::remove_dir_all(run_dir)?;
        is_first = false;
    }

    let lost = unlike_others(node)?;
    node.import(&lost)?;
    discard(node, &lost)?;
    let run_dir = run_dir(node)?;
    let warmed = warm(node, &run_dir)?;
    ensure!(warmed.code == Some(2), "{warmed:?}");
    ensure!(warmed.stdout.contains(&lost.reference), "{warmed:?}");
    Ok(())
}
