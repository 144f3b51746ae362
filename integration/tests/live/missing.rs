// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images whose layer blobs are missing, as where containerd discards unpacked layers.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::image::{Built, ROOT_CLOCK, edge_cases, hello, web};
use resnap_integration::tree::{compare, surprises};
use serde_json::Value;

use crate::command::run_to_end;
use crate::node::{Node, differ_config, unique};
use crate::suite::live_tests;
use crate::unpack::outcomes;

live_tests! {
    Containerd: missing_layers_come_from_an_archive,
    Containerd: missing_layers_are_written_by_containerd_too,
    Containerd: missing_layers_without_a_source_are_an_error,
    Containerd: missing_layers_are_copied_from_overlayfs,
    Erofs: missing_layers_are_copied_from_overlayfs_to_erofs,
    Containerd: copied_layers_are_replaced_by_a_repair,
}

/// Imports the image and removes the blobs of its layers.
fn discarded(node: &Node, image: &Built) -> Result<()> {
    node.import(image)?;
    discard(node, image)
}

fn discard(node: &Node, image: &Built) -> Result<()> {
    for layer in &image.layers {
        // An image may have a layer twice.
        let _ = node.ctr(&["content", "rm", &layer.digest]);
    }
    node.collect_garbage()
}

/// Unpacks the image with this configuration and these arguments, and returns the report.
fn unpack(node: &Node, config: &str, image: &Built, arguments: &[&str]) -> Result<Value> {
    let path = node.containerd.scratch().join(unique("sources"));
    fs::write(&path, config)?;
    let mut command = node.resnap_command()?;
    command.env("RESNAP_CONFIG", path);
    command.args(["unpack", "--json", &image.reference]);
    let lines = run_to_end(command.args(arguments))?.json_lines()?;
    let last = lines.last().context("unpack printed nothing")?;
    Ok(last.get("report").context("no report")?.clone())
}

/// Checks that the image is the same on the snapshotter as containerd unpacks it from its blobs.
fn assert_tree(node: &Node, snapshotter: &str, image: &Built) -> Result<()> {
    let containerd = node.in_new_namespace();
    containerd.import(image)?;
    containerd.unpack_by_containerd(snapshotter, &image.reference)?;
    let differences = compare(
        &containerd.tree(snapshotter, &image.reference)?,
        &node.tree(snapshotter, &image.reference)?,
    );
    let surprises = surprises(&differences, ROOT_CLOCK);
    let report: Vec<String> = surprises.iter().map(ToString::to_string).collect();
    ensure!(report.is_empty(), "{snapshotter}: {report:#?}");
    Ok(())
}

fn assert_outcome(report: &Value, outcome: &str) -> Result<()> {
    let counts = outcomes(report)?;
    let layers = report["layers"].as_array().map_or(0, Vec::len);
    let expected = BTreeMap::from([(outcome.to_owned(), layers)]);
    ensure!(counts == expected, "{report}");
    Ok(())
}

const NO_SIBLING: &str = "sources.sibling = \"never\"\n";

fn from_archive(node: &Node, config: &str, image: &Built) -> Result<()> {
    discarded(node, image)?;
    let archive = image.archive.to_string_lossy();
    let arguments = ["--snapshotter", "overlayfs", "--from", &archive];
    let report = unpack(node, config, image, &arguments)?;
    assert_outcome(&report, "applied")?;
    assert_tree(node, "overlayfs", image)?;
    node.assert_nothing_left("overlayfs")?;
    node.collect_garbage()?;
    let snapshots = node.snapshots("overlayfs")?;
    ensure!(snapshots.len() == image.layers.len(), "{snapshots:?}");
    Ok(())
}

fn missing_layers_come_from_an_archive(node: &Node) -> Result<()> {
    from_archive(node, NO_SIBLING, &web()?)
}

fn missing_layers_are_written_by_containerd_too(node: &Node) -> Result<()> {
    let config = differ_config("containerd") + NO_SIBLING;
    from_archive(node, &config, &web()?)
}

fn missing_layers_without_a_source_are_an_error(node: &Node) -> Result<()> {
    let image = edge_cases()?;
    discarded(node, &image)?;
    let output = node.resnap(&["unpack", &image.reference, "--snapshotter", "native"])?;
    let text = output.stderr.clone();
    for part in [
        &*image.reference,
        "native",
        "archive: ",
        "sibling: ",
        "--from",
    ] {
        ensure!(text.contains(part), "{part:?} is not in {text}");
    }
    node.assert_nothing_left("native")
}

/// Checks that the image is copied from the snapshots of containerd on overlayfs, with no difference.
fn copied(node: &Node, snapshotter: &str, image: &Built) -> Result<()> {
    node.import(image)?;
    node.unpack_by_containerd("overlayfs", &image.reference)?;
    discard(node, image)?;
    let report = unpack(node, "", image, &["--snapshotter", snapshotter])?;
    assert_outcome(&report, "copied")?;
    for layer in &image.layers {
        let labels = node.labels(snapshotter, &layer.chain_id)?;
        let origin = labels.get("resnap.io/copied-from").map(String::as_str);
        ensure!(origin == Some("overlayfs"), "{labels:?}");
    }
    let check = node.resnap(&["check", &image.reference])?.ok()?;
    ensure!(check.contains("copied from overlayfs"), "{check}");
    node.assert_nothing_left(snapshotter)?;
    node.assert_no_active_snapshot("overlayfs")?;
    // As resnap writes it from its blobs.
    let blobs = node.in_new_namespace();
    blobs.import(image)?;
    blobs.unpack(snapshotter, &image.reference)?;
    let differences = compare(
        &blobs.tree(snapshotter, &image.reference)?,
        &node.tree(snapshotter, &image.reference)?,
    );
    let differences = differences.iter().map(ToString::to_string);
    // A root that no layer states gets the time of its unpacking, and so do on native the directories
    // that are copied with the parent.
    let is_clock = |text: &str| {
        text.starts_with(".: Mtime: ") || snapshotter == "native" && text.contains(": Mtime: ")
    };
    let report: Vec<String> = differences.filter(|text| !is_clock(text)).collect();
    ensure!(report.is_empty(), "{snapshotter}: {report:#?}");
    Ok(())
}

fn missing_layers_are_copied_from_overlayfs(node: &Node) -> Result<()> {
    copied(node, "native", &web()?)
}

fn missing_layers_are_copied_from_overlayfs_to_erofs(node: &Node) -> Result<()> {
    copied(node, "erofs", &web()?)?;
    copied(node, "erofs", &edge_cases()?)
}

fn copied_layers_are_replaced_by_a_repair(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    node.unpack_by_containerd("overlayfs", &image.reference)?;
    let always = "sources.sibling = \"always\"\n";
    let report = unpack(node, always, &image, &["--snapshotter", "native"])?;
    assert_outcome(&report, "copied")?;
    let report = unpack(
        node,
        always,
        &image,
        &["--snapshotter", "native", "--repair"],
    )?;
    assert_outcome(&report, "applied")?;
    node.assert_nothing_left("native")
}
