// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers behind dm-verity.
//!
//! The kernel of the tests need not have dm-verity: only the process under test sees a file system that says
//! so, and the containerds of the tests mount layers without their trees.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::cri::Cri;
use resnap_integration::dm_verity::with_dm_verity;
use resnap_integration::image::{Built, HELLO_SAYS, ROOT_CLOCK, edge_cases, hello, pause, web};
use resnap_integration::tree::{compare, surprises};
use resnap_verity::{Sidecar, Work, verify};
use serde_json::Value;

use crate::command::{CommandOutput, run_to_end};
use crate::errors::assert_error;
use crate::migrate::ten_images;
use crate::missing::assert_outcome;
use crate::node::Node;
use crate::served::Served;
use crate::suite::live_tests;

live_tests! {
    Erofs: integrity_gives_layers_trees,
    Erofs: integrity_needs_a_kernel_with_dm_verity,
    Containerd: integrity_needs_images,
    Erofs: integrity_of_layers_that_exist_comes_with_a_repair,
    Erofs: integrity_of_all_images_comes_with_one_repair,
    Erofs: integrity_is_not_proven_by_copies,
    ErofsHandler: integrity_of_pods,
}

pub(crate) const VERITY: &str = "snapshotters.erofs.integrity = \"verity\"\n";

/// Runs `resnap unpack` where the kernel seems to have dm-verity.
pub(crate) fn try_unpack(
    node: &Node,
    config: &str,
    image: &Built,
    arguments: &[&str],
) -> Result<CommandOutput> {
    let mut command = node.configured_command(config)?;
    command
        .args([
            "unpack",
            "--json",
            &image.reference,
            "--snapshotter",
            "erofs",
        ])
        .args(arguments);
    run_to_end(&mut with_dm_verity(&command))
}

pub(crate) fn unpack(
    node: &Node,
    config: &str,
    image: &Built,
    arguments: &[&str],
) -> Result<Value> {
    try_unpack(node, config, image, arguments)?.report()
}

/// Returns the snapshots of images with a sidecar: the root hash of each, by the directory.
pub(crate) fn sidecars(node: &Node) -> Result<BTreeMap<PathBuf, Sidecar>> {
    let mut found = BTreeMap::new();
    for snapshot in fs::read_dir(node.snapshotter_root("erofs").join("snapshots"))? {
        let snapshot = snapshot?.path();
        // Other tests of this containerd add and remove snapshots.
        let Ok(bytes) = fs::read(snapshot.join("layer.erofs.dmverity")) else {
            continue;
        };
        // They also break some.
        if let Ok(sidecar) = Sidecar::parse(&bytes) {
            found.insert(snapshot, sidecar);
        }
    }
    Ok(found)
}

/// Returns the directory of a layer's snapshot, whose sidecar has the root hash in the snapshot's labels.
pub(crate) fn proven_snapshot(node: &Node, chain_id: &str) -> Result<PathBuf> {
    let labels = node.labels("erofs", chain_id)?;
    let root = labels.get("resnap.io/verity-root-hash");
    let root = root.with_context(|| format!("{chain_id} has no proof: {labels:?}"))?;
    let mut sidecars = sidecars(node)?.into_iter();
    let found = sidecars.find(|(_, sidecar)| sidecar.root_hash.to_string() == *root);
    Ok(found.context("no sidecar has the root hash")?.0)
}

/// Checks that each layer of the image has a proof, which holds, and returns the root hashes.
fn assert_proven(node: &Node, image: &Built) -> Result<Vec<String>> {
    let mut roots = Vec::new();
    for layer in &image.layers {
        let chain_id = &layer.chain_id;
        let labels = node.labels("erofs", chain_id)?;
        ensure!(
            labels["resnap.io/verity-origin"] == "generated",
            "{labels:?}"
        );
        let snapshot = proven_snapshot(node, chain_id)?;
        let file = File::open(snapshot.join("layer.erofs"))?;
        let sidecar = fs::read(snapshot.join("layer.erofs.dmverity"))?;
        let sidecar = Sidecar::parse(&sidecar)?;
        let check = || Ok(());
        verify(
            &file,
            sidecar.hash_offset,
            &sidecar.root_hash,
            ..,
            Work::new(&check),
        )?;
        roots.push(sidecar.root_hash.to_string());
    }
    Ok(roots)
}

/// Checks that `resnap check` warns if containerd does not mount the image by its trees, as before 2.3.
fn assert_mounted_by_tree(node: &Node, image: &Built) -> Result<()> {
    let mut command = node.configured_command(VERITY)?;
    let check = run_to_end(command.args(["check", "--json", &image.reference]))?.json()?;
    let warnings = check[0]["warnings"].to_string();
    let warns = warnings.contains("without their dm-verity trees");
    ensure!(warns == (node.containerd.version() < (2, 3, 0)), "{check}");
    Ok(())
}

/// Returns whether containers of this containerd need a kernel that has dm-verity indeed.
fn needs_device_mapper(node: &Node) -> bool {
    node.containerd.version() >= (2, 3, 0)
}

fn assert_no_proof(node: &Node, image: &Built) -> Result<()> {
    for layer in &image.layers {
        let chain_id = &layer.chain_id;
        let labels = node.labels("erofs", chain_id)?;
        let has_proof = labels.keys().any(|key| key.contains("verity"));
        ensure!(!has_proof, "{labels:?}");
    }
    Ok(())
}

fn integrity_gives_layers_trees(node: &Node) -> Result<()> {
    for image in [web()?, edge_cases()?] {
        let node = &node.in_new_namespace();
        node.import(&image)?;
        let report = unpack(node, VERITY, &image, &[])?;
        assert_outcome(&report, "applied")?;
        let roots = assert_proven(node, &image)?;
        let overlayfs = node.in_new_namespace();
        overlayfs.import(&image)?;
        overlayfs.unpack("overlayfs", &image.reference)?;
        let differences = compare(
            &overlayfs.tree("overlayfs", &image.reference)?,
            &node.tree("erofs", &image.reference)?,
        );
        let surprises = surprises(&differences, ROOT_CLOCK);
        let report: Vec<String> = surprises.iter().map(ToString::to_string).collect();
        ensure!(report.is_empty(), "{report:#?}");
        node.assert_nothing_left("erofs")?;
        // Another node makes the same.
        let other = node.in_new_namespace();
        other.import(&image)?;
        unpack(&other, VERITY, &image, &[])?;
        ensure!(assert_proven(&other, &image)? == roots, "other trees");
        let report = unpack(node, VERITY, &image, &[])?;
        assert_outcome(&report, "existed")?;
        let check = run_to_end(node.configured_command(VERITY)?.args([
            "check",
            "--json",
            &image.reference,
        ]))?;
        let check = &check.json()?[0];
        ensure!(check["snapshotters"]["erofs"]["ready"] == true, "{check}");
        let proof = &check["layers"][0]["snapshots"]["erofs"]["proof"];
        ensure!(proof["root_hash"] == roots[0].as_str(), "{check}");
        assert_mounted_by_tree(node, &image)?;
    }
    Ok(())
}

fn integrity_needs_a_kernel_with_dm_verity(node: &Node) -> Result<()> {
    if PathBuf::from("/sys/module/dm_verity").exists() {
        return integrity_gives_layers_trees(node);
    }
    let image = hello()?;
    node.import(&image)?;
    let mut command = node.configured_command(VERITY)?;
    let command = command.args(["unpack", "--json", &image.reference, "-s", "erofs"]);
    let says = ["/sys/module/dm_verity", "modprobe"];
    assert_error(run_to_end(command)?, "FailedPrecondition", &says, "")?;
    let snapshots = node.snapshots("erofs")?;
    ensure!(snapshots.is_empty(), "{snapshots:?}");
    ensure!(node.leases()?.is_empty(), "a lease is left");
    Ok(())
}

fn integrity_needs_images(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    for (snapshotter, config) in [
        ("overlayfs", "integrity = \"verity\""),
        ("native", "integrity = \"verity\""),
        ("overlayfs", "integrity = \"verity\"\ndiffer = \"resnap\""),
        ("native", "integrity = \"verity\"\ndiffer = \"containerd\""),
    ] {
        let config = format!("[snapshotters.{snapshotter}]\n{config}\n");
        let mut command = node.configured_command(&config)?;
        command.args(["unpack", "--json", &image.reference, "-s", snapshotter]);
        let output = run_to_end(&mut with_dm_verity(&command))?;
        assert_error(output, "FailedPrecondition", &["no proof"], "")?;
        let snapshots = node.snapshots(snapshotter)?;
        ensure!(snapshots.is_empty(), "{config}: {snapshots:?}");
    }
    Ok(())
}

/// Gives an image other layers while a container uses it, which goes on as it is. Another one starts afterwards.
pub(crate) fn while_used(
    node: &Node,
    image: &Built,
    change: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let (containerd, namespace) = (&node.containerd, &node.namespace);
    containerd.look_into(namespace, "erofs", &image.reference, |rootfs| {
        let before = fs::metadata(rootfs.join("etc"))?.ino();
        change()?;
        ensure!(
            fs::metadata(rootfs.join("etc"))?.ino() == before,
            "another root"
        );
        let says = node.run("erofs", &image.reference)?;
        ensure!(says == HELLO_SAYS, "{says:?}");
        Ok(())
    })
}

fn integrity_of_layers_that_exist_comes_with_a_repair(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    // Not by resnap, and without labels.
    node.unpack_by_containerd("erofs", &image.reference)?;
    let output = try_unpack(node, VERITY, &image, &[])?;
    assert_error(
        output,
        "FailedPrecondition",
        &["without the proof"],
        "--repair",
    )?;
    assert_no_proof(node, &image)?;
    let check = run_to_end(node.configured_command(VERITY)?.args([
        "check",
        &image.reference,
        "-s",
        "erofs",
    ]))?;
    ensure!(check.code == Some(1), "{check:?}");
    ensure!(check.stdout.contains("not proven"), "{check:?}");
    while_used(node, &image, || {
        let report = unpack(node, VERITY, &image, &["--repair"])?;
        assert_outcome(&report, "existed")?;
        assert_proven(node, &image).map(drop)
    })?;
    node.assert_nothing_left("erofs")?;
    let report = unpack(node, VERITY, &image, &["--repair"])?;
    assert_outcome(&report, "existed")
}

/// Three of the images are in use.
fn integrity_of_all_images_comes_with_one_repair(node: &Node) -> Result<()> {
    let images = ten_images()?;
    for (image, _) in &images {
        node.import(image)?;
        node.unpack("erofs", &image.reference)?;
    }
    let (containerd, namespace) = (&node.containerd, &node.namespace);
    let use_image = |number: usize, rest: &dyn Fn() -> Result<()>| {
        let reference = &images[number].0.reference;
        containerd.look_into(namespace, "erofs", reference, |rootfs| {
            let before = fs::read(rootfs.join("bin/busybox"))?;
            rest()?;
            ensure!(
                fs::read(rootfs.join("bin/busybox"))? == before,
                "another file"
            );
            Ok(())
        })
    };
    use_image(0, &|| {
        use_image(6, &|| {
            use_image(8, &|| {
                let mut command = node.configured_command(VERITY)?;
                command.args(["unpack", "--json", "--repair", "--all", "-s", "erofs"]);
                run_to_end(&mut with_dm_verity(&command))?.ok()?;
                images
                    .iter()
                    .try_for_each(|(image, _)| assert_proven(node, image).map(drop))
            })
        })
    })?;
    for (image, says) in &images {
        assert_outcome(&unpack(node, VERITY, image, &[])?, "existed")?;
        assert_mounted_by_tree(node, image)?;
        if needs_device_mapper(node) {
            continue;
        }
        let output = node.run("erofs", &image.reference)?;
        ensure!(
            output.trim() == says.trim(),
            "{output:?} instead of {says:?}"
        );
    }
    node.assert_nothing_left("erofs")
}

fn integrity_is_not_proven_by_copies(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    node.unpack("overlayfs", &image.reference)?;
    let sibling = "sources.sibling = \"always\"\nsources.order = [\"sibling\"]\n";
    let report = unpack(node, &(sibling.to_owned() + VERITY), &image, &[])?;
    assert_outcome(&report, "applied")?;
    assert_proven(node, &image)?;
    // A copy that exists is replaced.
    let node = node.in_new_namespace();
    node.import(&image)?;
    node.unpack("overlayfs", &image.reference)?;
    let report = unpack(&node, sibling, &image, &[])?;
    assert_outcome(&report, "copied")?;
    let report = unpack(&node, VERITY, &image, &["--repair"])?;
    assert_outcome(&report, "applied")?;
    assert_proven(&node, &image)?;
    node.assert_nothing_left("erofs")
}

fn integrity_of_pods(node: &Node) -> Result<()> {
    let node = Node {
        containerd: node.containerd.clone(),
        namespace: "k8s.io".to_owned(),
    };
    let (image, other) = (hello()?, web()?);
    for image in [&image, &other, &pause()?] {
        node.import(image)?;
    }
    node.unpack_by_containerd("erofs", &other.reference)?;
    let served = Served::with_dm_verity(&node, VERITY)?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
    let sandbox = cri.run_pod_sandbox("erofs", "first")?;
    let exit = cri.run(&sandbox, "first", &image.reference, &[])?;
    ensure!(exit.output.trim() == HELLO_SAYS, "{exit:?}");
    assert_proven(&node, &image)?;
    assert_proven(&node, &pause()?)?;
    // Nothing starts on layers without a proof.
    let refused = cri.create_container(&sandbox, "second", &other.reference, &[]);
    let refused = refused.err().context("a container without a proof")?;
    let text = format!("{refused:#}");
    ensure!(text.contains("without the proof"), "{text}");
    unpack(&node, VERITY, &other, &["--repair"])?;
    cri.create_container(&sandbox, "third", &other.reference, &[])?;
    cri.remove_all()?;
    drop(cri);
    served.stop()?;
    node.assert_nothing_left("erofs")
}
