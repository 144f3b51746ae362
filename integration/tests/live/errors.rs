// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Errors name the thing, the reason and the next step, and leave nothing behind.

pub(crate) mod messages;
pub(crate) mod names;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use anyhow::{Result, ensure};
use resnap_integration::image::{Built, Entry, Fault, ImageBuilder, Index, Layer, hello};

use crate::command::{CommandOutput, resnap, run_to_end};
use crate::node::{Node, host_platform, unique};
use crate::suite::live_tests;

live_tests! {
    Containerd: no_such_image,
    Containerd: no_manifest_for_the_platform,
    Containerd: no_such_snapshotter,
    Nydus: known_by_id_only,
    Containerd: missing_blob,
    Containerd: wrong_diff_id,
    Containerd: layers_and_diff_ids_differ,
    Containerd: one_failure_does_not_stop_other_images,
    Containerd: no_daemon_listens,
    Containerd: permission_denied,
}

/// Checks the kind of an error, and that it contains all these words and the next step.
pub(crate) fn assert_error(
    output: CommandOutput,
    kind: &str,
    says: &[&str],
    next_step: &str,
) -> Result<()> {
    let error = output.error()?;
    ensure!(error["kind"] == kind, "want the kind {kind}: {error}");
    let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    for word in says {
        ensure!(
            text("message").contains(word),
            "does not say {word:?}: {error}"
        );
    }
    ensure!(
        text("next_step").contains(next_step),
        "{next_step:?} is not the next step: {error}"
    );
    Ok(())
}

/// `resnap unpack --json`.
pub(crate) fn unpack(node: &Node, image: &str, snapshotter: &str) -> Result<CommandOutput> {
    node.resnap(&["unpack", "--json", image, "--snapshotter", snapshotter])
}

fn no_such_image(node: &Node) -> Result<()> {
    let says = ["no image", "docker.io/library/nobody:1", &node.namespace];
    let output = unpack(node, "docker.io/library/nobody:1", "native")?;
    assert_error(output, "NotFound", &says, "resnap images")?;
    // Another tag of it is there.
    let image = hello()?;
    node.import(&image)?;
    let says = ["\"hello\"", &*image.reference];
    let output = unpack(node, "hello", "native")?;
    assert_error(output, "NotFound", &says, "name one of these tags")?;
    node.assert_nothing_left("native")
}

fn no_manifest_for_the_platform(node: &Node) -> Result<()> {
    let layer = || Layer::of(&[Entry::dir("./")]);
    let archive = node.containerd.scratch().join(unique("foreign"));
    let image = Index::new("docker.io/library/foreign:1")
        .image(
            ImageBuilder::new("")
                .platform("linux", "s390x")
                .layer(layer()?),
        )
        .image(
            ImageBuilder::new("")
                .platform("linux", "riscv64")
                .layer(layer()?),
        )
        .write(&archive)?;
    node.import(&image)?;
    let host = host_platform();
    let says = [&*image.reference, &*host, "linux/riscv64", "linux/s390x"];
    assert_error(
        unpack(node, &image.reference, "native")?,
        "NotFound",
        &says,
        "--platform",
    )?;
    node.assert_nothing_left("native")
}

fn no_such_snapshotter(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    for command in ["unpack", "check"] {
        let output = node.resnap(&[
            command,
            "--json",
            &image.reference,
            "--snapshotter",
            "nosuch",
        ])?;
        let says = ["\"nosuch\"", "overlayfs", "native"];
        assert_error(output, "FailedPrecondition", &says, "resnap snapshotters")?;
    }
    node.assert_nothing_left("native")
}

fn known_by_id_only(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    // The CRI keeps an image under its ID as well, sooner or later; only that one is left.
    node.ctr(&["images", "tag", "--force", &image.reference, &image.config])?;
    node.ctr(&["images", "rm", &image.reference])?;
    let says = [image.config.as_str(), "ID only", "nydus"];
    let output = unpack(node, &image.config, "nydus")?;
    assert_error(output, "FailedPrecondition", &says, "images tag")?;
    node.assert_nothing_left("nydus")?;
    // A snapshotter that needs no reference works without one.
    node.unpack("native", &image.config)?;
    node.assert_nothing_left("native")
}

/// Returns an image of two layers with something wrong about the layer `index`.
fn faulty(node: &Node, fault: Fault) -> Result<Built> {
    let file = |name: &str| Layer::of(&[Entry::dir("./"), Entry::file(name, unique(name))]);
    let archive = node.containerd.scratch().join(unique("faulty"));
    let image = ImageBuilder::new("docker.io/library/faulty:1")
        .layer(file("lower")?)
        .layer(file("upper")?)
        .fault(fault)
        .write(&archive)?;
    node.import(&image)?;
    Ok(image)
}

fn missing_blob(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    // As containerd's discard_unpacked_layers leaves it.
    let base = &image.layers[0];
    node.ctr(&["content", "rm", &base.digest])?;
    let says = [&*image.reference, &*base.digest, "native"];
    let output = unpack(node, &image.reference, "native")?;
    assert_error(output, "NotFound", &says, "content fetch")?;
    node.assert_nothing_left("native")?;
    let check = node.resnap(&["check", &image.reference])?.ok()?;
    ensure!(check.contains("missing"), "{check}");
    Ok(())
}

fn wrong_diff_id(node: &Node) -> Result<()> {
    for index in [0, 1] {
        let image = faulty(node, Fault::WrongDiffId(index))?;
        let layer = &image.layers[index];
        let output = unpack(node, &image.reference, "native")?;
        let says = [&*image.reference, &*layer.digest, &*layer.diff_id];
        assert_error(output, "DataLoss", &says, "pull it again")?;
        node.assert_no_active_snapshot("native")?;
        let committed = node.snapshots("native")?;
        ensure!(!committed.contains_key(&layer.chain_id), "{committed:#?}");
        // Layers that were good are kept for the next try, under a lease that expires.
        let leases = node.leases()?.len();
        ensure!(
            committed.len() == index && leases == index,
            "{committed:#?}, {leases} leases"
        );
    }
    Ok(())
}

fn layers_and_diff_ids_differ(node: &Node) -> Result<()> {
    for (fault, diff_ids) in [
        (Fault::MissingDiffId, "1 diff IDs"),
        (Fault::ExtraDiffId, "3 diff IDs"),
    ] {
        let image = faulty(node, fault)?;
        let says = [&*image.reference, &*image.manifest, "2 layers", diff_ids];
        let output = unpack(node, &image.reference, "native")?;
        assert_error(output, "InvalidArgument", &says, "build it again")?;
        node.assert_nothing_left("native")?;
    }
    Ok(())
}

fn one_failure_does_not_stop_other_images(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    let unpack = [
        "unpack",
        "nobody",
        &image.reference,
        "--snapshotter",
        "native",
    ];
    let output = node.resnap(&unpack)?;
    ensure!(output.code == Some(2), "{output:?}");
    ensure!(output.stderr.contains("no image \"nobody\""), "{output:?}");
    ensure!(output.stdout.contains(&image.reference), "{output:?}");
    let check = ["check", &image.reference, "--snapshotter", "native"];
    node.resnap(&check)?.ok()?;
    Ok(())
}

fn no_daemon_listens(node: &Node) -> Result<()> {
    let socket = node.containerd.scratch().join("nobody.sock");
    let socket = socket.to_string_lossy();
    let output = run_to_end(resnap()?.args(["--address", &socket, "images", "--json"]))?;
    assert_error(
        output,
        "Unavailable",
        &[&socket, "No such file"],
        "CONTAINERD_ADDRESS",
    )
}

fn permission_denied(node: &Node) -> Result<()> {
    // As a stranger may find it: the binary where everybody can run it.
    let dir = tempfile::tempdir_in("/run")?;
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
    let binary = dir.path().join("resnap");
    std::fs::copy(resnap()?.get_program(), &binary)?;
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&binary)
        .arg("--address")
        .arg(node.containerd.socket())
        .args(["images", "--json"]);
    let socket = node.containerd.socket().to_string_lossy();
    assert_error(
        run_to_end(&mut command)?,
        "PermissionDenied",
        &[&socket],
        "root",
    )
}
