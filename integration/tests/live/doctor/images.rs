// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images and snapshots with which pods fail, or have the wrong content.

use std::fs;

use anyhow::{Result, ensure};
use resnap_integration::daemon::Options;
use resnap_integration::dm_verity::with_dm_verity;
use resnap_integration::image::{
    Built, Entry, ImageBuilder, Index, Layer, Part, beside_hello, foreign_architecture, hello,
    host_platform, many, pause, shared_pair,
};
use serde_json::json;

use super::{Bed, Examined, edit, touch};
use crate::command::run_to_end;
use crate::missing::discard;
use crate::node::{Node, unique};
use crate::repair::pull;
use crate::suite::live_tests;

live_tests! {
    One: doctor_finds_images_that_lack_something,
    Containerd: doctor_repairs_layers_that_the_snapshotter_has_lost,
    Handler: doctor_finds_images_without_blobs,
    Erofs: doctor_finds_layers_without_a_proof,
}

fn options() -> Options {
    Options {
        pull_for_handlers: true,
        native: true,
        ..crate::suite::options()
    }
}

fn doctor_finds_images_that_lack_something(shared: &Node) -> Result<()> {
    let bed = Bed::start(shared, options(), "")?;
    let node = &bed.node;
    let (hello, (left, _)) = (hello()?, shared_pair()?);
    pull(node, "overlayfs", &hello)?;
    bed.assert_well()?;
    let labels =
        "[snapshotters.overlayfs]\nlabels = \"every\"\nreason = \"finds layers by them\"\n";
    let found = bed.doctor_with(labels, &[])?;
    found.assert_found(&["images.unlabelled"])?;
    let about = [&*hello.reference, "3 of 3 layers", "finds layers by them"];
    found.assert_way_out(
        "images.unlabelled",
        &about,
        &["--snapshotter overlayfs --repair"],
    )?;
    // First the daemon has to know the configuration by which it repairs.
    touch(&bed.config())?;
    let found = bed.doctor_with(labels, &[])?;
    found.assert_order(&["daemon.config-changed", "images.unlabelled"])?;
    edit(&bed.config(), fs::read(bed.config())?)?;
    bed.doctor_with(labels, &["--fix"])?.assert_found(&[])?;

    // As nydus labels layers that guests pull.
    node.import(&left)?;
    node.unpack("overlayfs", &left.reference)?;
    let mark = "containerd.io/snapshot/nydus-proxy-mode=true";
    let label = [
        "snapshots",
        "--snapshotter",
        "overlayfs",
        "label",
        left.chain_id(),
        mark,
    ];
    node.ctr(&label)?;
    let found = bed.doctor(&[])?;
    found.assert_found(&["snapshots.guest"])?;
    let steps = ["resnap evict", "resnap unpack", "--snapshotter overlayfs"];
    found.assert_way_out("snapshots.guest", &[&left.reference], &steps)?;
    node.resnap(&["evict", &left.reference, "--snapshotter", "overlayfs"])?
        .ok()?;
    node.unpack("overlayfs", &left.reference)?;
    bed.assert_well()?;

    node.ctr(&["content", "rm", &left.config])?;
    let found = bed.doctor(&[])?;
    found.assert_way_out(
        "images.unreadable",
        &[&left.reference, &left.config],
        &["pull it again"],
    )?;
    node.import(&left)?;
    bed.doctor(&["--fix"])?.assert_found(&[])?;

    node.import(&disagreeing(node)?)?;
    let found = bed.doctor(&[])?;
    found.assert_found(&[])?;
    let about = ["docker.io/library/disagree:1", "the index lists"];
    found.assert_way_out(
        "images.warning",
        &about,
        &["resnap check docker.io/library/disagree:1"],
    )?;
    bed.served.stop()
}

/// Returns an image whose index lists another platform than its config has.
fn disagreeing(node: &Node) -> Result<Built> {
    let image = ImageBuilder::new("")
        .platform(host_platform().0, foreign_architecture())
        .layer(Layer::of(&[Entry::dir("./")])?)
        .edit(Part::Entry, |entry| {
            entry["platform"]["architecture"] = json!(host_platform().1);
        });
    let index = Index::new("docker.io/library/disagree:1").image(image);
    index.write(&node.containerd.scratch().join(unique("disagree")))
}

/// Its directory is emptied, as by whoever cleans up: containerd keeps its records.
fn doctor_repairs_layers_that_the_snapshotter_has_lost(shared: &Node) -> Result<()> {
    let bed = Bed::start(shared, options(), "")?;
    let node = &bed.node;
    let image = many(3)?;
    node.import(&image)?;
    node.unpack("native", &image.reference)?;
    bed.assert_well()?;
    node.containerd.kill()?;
    fs::remove_dir_all(node.snapshotter_root("native"))?;
    node.containerd.restart()?;
    bed.wait_for_daemon()?;

    let unpack = [
        "unpack",
        "--json",
        &image.reference,
        "--snapshotter",
        "native",
    ];
    let error = node.resnap(&unpack)?.error()?;
    ensure!(error["kind"] == json!("FailedPrecondition"), "{error}");
    let next = error["next_step"].as_str().unwrap_or_default();
    ensure!(next.contains("--repair"), "{next}");
    let found = bed.doctor(&[])?;
    found.assert_found(&["snapshots.lost"])?;
    let steps = ["resnap unpack", "--snapshotter native --repair"];
    found.assert_way_out(
        "snapshots.lost",
        &[&image.reference, "already exists"],
        &steps,
    )?;
    bed.doctor(&["--fix"])?.assert_found(&[])?;
    ensure!(
        node.run("native", &image.reference)? == "3",
        "it does not run"
    );
    bed.assert_well()?;
    node.assert_nothing_left("native")?;
    bed.served.stop()
}

/// Images whose layers were discarded: one that a steered pull has brought, and that of sandboxes.
fn doctor_finds_images_without_blobs(shared: &Node) -> Result<()> {
    let archives = shared.containerd.scratch().join(unique("archives"));
    fs::create_dir(&archives)?;
    let config = format!("[sources]\norder = [\"archive\"]\narchives = [{archives:?}]\n");
    let bed = Bed::start(shared, options(), &config)?;
    let node = &bed.node;
    let (image, pause) = (beside_hello()?, pause()?);
    node.import(&image)?;
    node.unpack("native", &image.reference)?;
    bed.assert_well()?;
    discard(node, &image)?;
    let found = bed.doctor(&[])?;
    found.assert_found(&["images.steered"])?;
    let steps = ["resnap unpack", "--snapshotter overlayfs", "always = true"];
    found.assert_way_out("images.steered", &[&image.reference, "native"], &steps)?;
    // Nothing has the layers.
    let failed = bed.doctor(&["--fix"])?;
    failed.assert_found(&["images.steered"])?;
    let fix = &failed.document["fixes"][0];
    let error = fix["error"].as_str().unwrap_or_default();
    ensure!(fix["done"] == false && error.contains("archive"), "{fix}");
    fs::copy(&image.archive, archives.join("image.tar"))?;
    bed.doctor(&["--fix"])?.assert_found(&[])?;

    discard(node, &pause)?;
    let found = bed.doctor(&[])?;
    found.assert_found(&["images.sandbox"])?;
    let steps = ["images pull", "--from FILE"];
    found.assert_way_out("images.sandbox", &[&pause.reference, "native"], &steps)?;
    for snapshotter in node.targets().filter(|name| *name != "overlayfs") {
        let archive = pause.archive.to_string_lossy();
        let unpack = ["unpack", &pause.reference, "--snapshotter", snapshotter];
        node.resnap(&[&unpack[..], &["--from", &archive]].concat())?
            .ok()?;
    }
    bed.assert_well()?;
    bed.served.stop()
}

fn doctor_finds_layers_without_a_proof(shared: &Node) -> Result<()> {
    let bed = Bed::start(shared, options(), "")?;
    let node = &bed.node;
    let image = hello()?;
    node.import(&image)?;
    node.unpack("erofs", &image.reference)?;
    bed.assert_well()?;
    let config = "[snapshotters.erofs]\nintegrity = \"verity\"\n";
    let found = bed.doctor_with(config, &[])?;
    let steps = ["--snapshotter erofs --repair"];
    found.assert_way_out("images.unproven", &[&image.reference, "erofs"], &steps)?;
    if !std::path::Path::new("/sys/module/dm_verity").exists() {
        found.assert_found(&["images.unproven", "kernel.dm-verity"])?;
        found.assert_way_out("kernel.dm-verity", &["integrity"], &["modprobe dm_verity"])?;
    }

    let path = bed.served.dir.join("verity.toml");
    fs::write(&path, super::config_of(&bed.kubelet_root, config))?;
    let doctor = |arguments: &[&str]| {
        let mut command = bed.command()?;
        command.env("RESNAP_CONFIG", &path);
        command.args(["doctor", "--json"]).args(arguments);
        Examined::by(&mut with_dm_verity(&command))
    };
    doctor(&[])?.assert_found(&["images.unproven"])?;
    doctor(&["--fix"])?.assert_found(&[])?;
    let check = ["check", &image.reference, "--snapshotter", "erofs"];
    let mut command = bed.command()?;
    command.env("RESNAP_CONFIG", &path).args(check);
    run_to_end(&mut command)?.ok()?;
    bed.served.stop()
}
