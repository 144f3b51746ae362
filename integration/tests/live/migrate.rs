// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The images of a node change their snapshotter: `resnap migrate` and `resnap evict`.

pub(crate) mod refused;
pub(crate) mod runs;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use resnap_core::SnapshotKind;
use resnap_integration::cri::Cri;
use resnap_integration::image::{Built, HELLO_SAYS, beside_hello, hello, many, pause, shared_pair};
use resnap_integration::registry::Registry;
use serde_json::Value;

use crate::command::{CommandOutput, run_to_end};
use crate::missing::{discarding, pushed};
use crate::node::{Node, unique};
use crate::served::Served;
use crate::suite::live_tests;

live_tests! {
    ErofsAlone: migrate_moves_all_images_of_a_node,
    ErofsAlone: migrate_moves_images_whose_layers_were_discarded,
}

const FROM: &str = "overlayfs";

/// Whatever this machine has left.
const ROOM: [&str; 2] = ["--min-free", "1 KiB"];

/// Ten images, of which some share layers and some are the lower layers of others, with the output of a
/// container of each.
pub(crate) fn ten_images() -> Result<Vec<(Built, String)>> {
    let mut images = Vec::new();
    for count in 1..=6 {
        images.push((many(count)?, count.to_string()));
    }
    let (left, right) = shared_pair()?;
    images.push((left, "left".to_owned()));
    images.push((right, "right".to_owned()));
    images.push((hello()?, HELLO_SAYS.to_owned()));
    images.push((beside_hello()?, "beside hello".to_owned()));
    Ok(images)
}

/// Returns the snapshotter that images are moved to: erofs where there is one.
fn to(node: &Node) -> &'static str {
    match node.containerd.has_erofs() {
        true => "erofs",
        false => "native",
    }
}

/// Runs `resnap` with this configuration file.
fn resnap(node: &Node, config: &str, arguments: &[&str]) -> Result<CommandOutput> {
    run_to_end(node.configured_command(config)?.args(arguments))
}

/// Runs `resnap migrate` of all images, and returns its exit code and document.
fn migrate(node: &Node, config: &str, more: &[&str]) -> Result<(Option<i32>, Value)> {
    let mut arguments = vec![
        "migrate",
        "--json",
        "--from",
        FROM,
        "--to",
        to(node),
        "--all",
    ];
    arguments.extend(ROOM);
    arguments.extend(more);
    let output = resnap(node, config, &arguments)?;
    let document = serde_json::from_str(&output.stdout);
    let document = document.with_context(|| format!("{output:?}"))?;
    Ok((output.code, document))
}

/// Returns the states of the images, without the sandbox image.
fn states(document: &Value) -> BTreeMap<&str, &str> {
    let rows = document["images"].as_array().into_iter().flatten();
    let rows = rows.map(|row| {
        let text = |key: &str| row[key].as_str().unwrap_or_default();
        (text("image"), text("state"))
    });
    rows.filter(|(image, _)| !image.contains("/pause:"))
        .collect()
}

fn assert_states(document: &Value, images: &[&Built], state: &str) -> Result<()> {
    let expected: BTreeMap<_, _> = images
        .iter()
        .map(|image| (&*image.reference, state))
        .collect();
    ensure!(states(document) == expected, "{document:#}");
    Ok(())
}

/// Returns the row of the eviction that names an image.
fn evicted<'a>(document: &'a Value, image: &str) -> Result<&'a Value> {
    let chains = document["eviction"]["chains"].as_array();
    let mut chains = chains.context("nothing was evicted")?.iter();
    let names = |chain: &&Value| {
        let mut names = chain["images"].as_array().into_iter().flatten();
        names.any(|name| name.as_str() == Some(image))
    };
    chains
        .find(names)
        .with_context(|| format!("{image} in {document:#}"))
}

/// Returns the bytes of all committed snapshots on a snapshotter, as containerd counts them.
fn usage(node: &Node, snapshotter: &str) -> Result<u64> {
    let text = node.ctr(&["snapshots", "--snapshotter", snapshotter, "usage", "-b"])?;
    let committed = node.snapshots(snapshotter)?;
    let mut bytes = 0;
    for row in text.lines().skip(1) {
        let words: Vec<&str> = row.split_whitespace().collect();
        if committed
            .get(words[0])
            .is_some_and(|info| info.kind == SnapshotKind::Committed)
        {
            bytes += words[1].parse::<u64>()?;
        }
    }
    Ok(bytes)
}

/// Returns everything that a dry run must not change: the labels of blobs, and snapshots.
fn everything(node: &Node) -> Result<BTreeSet<String>> {
    // An import leaves some.
    node.collect_garbage()?;
    let content = node.ctr(&["content", "ls"])?;
    let rows = content.lines().skip(1).map(|row| {
        let words = row.split([' ', '\t', ',']);
        // The age is left out. `ctr` 1.6 prints labels in any order.
        let told = words.filter(|word| word.contains("sha256:") || word.contains('='));
        format!("{:?}", told.collect::<BTreeSet<_>>())
    });
    let mut all: BTreeSet<String> = rows.collect();
    for snapshotter in node.targets() {
        let snapshots = node.snapshots(snapshotter)?.into_keys();
        all.extend(snapshots.map(|key| format!("{key} on {snapshotter}")));
    }
    Ok(all)
}

fn assert_unchanged(node: &Node, before: &BTreeSet<String>) -> Result<()> {
    let after = everything(node)?;
    let changes: Vec<_> = before.symmetric_difference(&after).collect();
    ensure!(changes.is_empty(), "something has changed: {changes:#?}");
    Ok(())
}

/// Checks that a dry run changes nothing, and returns what it says.
fn dry_run(node: &Node, config: &str) -> Result<Value> {
    let before = everything(node)?;
    let (_, document) = migrate(node, config, &["--evict", "--dry-run"])?;
    assert_unchanged(node, &before)?;
    Ok(document)
}

/// Checks that what was freed is what the dry run and containerd say.
fn assert_freed(told: &Value, done: &Value, bytes: u64) -> Result<()> {
    for document in [told, done] {
        let freed = document["eviction"]["bytes"].as_u64();
        ensure!(
            freed == Some(bytes),
            "{bytes} bytes were freed: {document:#}"
        );
    }
    Ok(())
}

/// Checks that the pods of all images start on a handler.
fn assert_pods(cri: &Cri, handler: &str, images: &[(Built, String)]) -> Result<()> {
    let sandbox = cri.run_pod_sandbox(handler, &unique("pod"))?;
    for (image, says) in images {
        let exit = cri.run(&sandbox, &unique("says"), &image.reference, &[])?;
        ensure!(exit.output.trim() == says, "{}: {exit:?}", image.reference);
    }
    cri.remove_pod_sandbox(&sandbox)
}

fn is_ready(node: &Node, snapshotter: &str, image: &Built) -> Result<()> {
    let check = node.resnap(&["check", &image.reference, "--snapshotter", snapshotter])?;
    ensure!(check.code == Some(0), "{check:?}");
    Ok(())
}

fn migrate_moves_all_images_of_a_node(node: &Node) -> Result<()> {
    let images = ten_images()?;
    let built: Vec<&Built> = images.iter().map(|(image, _)| image).collect();
    let pause = pause()?;
    for image in built.iter().copied().chain([&pause]) {
        node.import(image)?;
        node.unpack_by_containerd(FROM, &image.reference)?;
    }
    let cri = Cri::connect(node.containerd.socket(), &node.containerd.scratch())?;
    let sandbox = cri.run_pod_sandbox("", "running")?;
    let running = &built[2].reference;
    let sleep = ["/bin/sleep", "600"];
    let container = cri.create_container(&sandbox, "running", running, &sleep)?;
    cri.start_container(&container)?;

    let told = dry_run(node, "")?;
    assert_states(&told, &built, "would unpack")?;
    let before = usage(node, FROM)?;
    let (code, done) = migrate(node, "", &["--evict", "--jobs", "2"])?;
    ensure!(code == Some(0), "{done:#}");
    assert_states(&done, &built, "unpacked")?;
    for image in &built {
        is_ready(node, to(node), image)?;
    }
    assert_freed(&told, &done, before - usage(node, FROM)?)?;
    let chain = evicted(&done, running)?;
    let users = format!("container {}", container.id());
    ensure!(chain["in_use_by"][0] == users.as_str(), "{chain:#}");
    ensure!(chain["bytes"] == 0 && chain["kept"] == 3, "{chain:#}");
    let refused = evicted(&done, &pause.reference)?;
    let refusal = refused["refusal"].as_str().unwrap_or_default();
    ensure!(refusal.contains(&pause.reference), "{refused:#}");
    let expected = [&pause, built[2]].map(|image| &image.layers);
    let expected: BTreeSet<&str> = expected
        .into_iter()
        .flatten()
        .map(|layer| &*layer.chain_id)
        .collect();
    let left = node.snapshots(FROM)?;
    let left = left
        .iter()
        .filter(|(_, info)| info.kind == SnapshotKind::Committed);
    let left: BTreeSet<&str> = left.map(|(key, _)| &**key).collect();
    ensure!(left == expected, "{left:?}");
    ensure!(cri.exec(&container, &["/bin/echo", "on"])? == "on\n");

    // The chain of the container goes with it.
    cri.remove_pod_sandbox(&sandbox)?;
    node.collect_garbage()?;
    let left = node.snapshots(FROM)?;
    ensure!(left.len() == pause.layers.len(), "{left:?}");
    let (code, again) = migrate(node, "", &["--evict"])?;
    ensure!(code == Some(0) && states(&again).is_empty(), "{again:#}");
    assert_pods(&cri, "", &images)?;
    if to(node) == "erofs" {
        assert_pods(&cri, "erofs", &images)?;
    }
    node.assert_no_active_snapshot(to(node))?;
    node.assert_nothing_left(FROM)
}

/// The default handler has discarded the layers: they are copied to the other snapshotter, and evicted
/// only if they can be had again for the pods of the default handler.
fn migrate_moves_images_whose_layers_were_discarded(node: &Node) -> Result<()> {
    let dist = node.containerd.dist();
    let registry = Registry::start(dist, &node.containerd.scratch().join(unique("registry")))?;
    let mut images = Vec::new();
    for (number, (image, says)) in ten_images()?.into_iter().enumerate() {
        let name = format!("image:{number}");
        images.push((pushed(node, &registry, &image, &name)?, says));
    }
    let built: Vec<&Built> = images.iter().map(|(image, _)| image).collect();
    let node = &discarding(node, false)?;
    let pause = pause()?;
    node.unpack_by_containerd(FROM, &pause.reference)?;
    let direct = Cri::connect(node.containerd.socket(), &node.containerd.scratch())?;
    for image in &built {
        direct.pull_image(&image.reference, None, None)?;
    }
    node.collect_garbage()?;
    let content = node.ctr(&["content", "ls", "-q"])?;
    ensure!(!content.contains(&built[0].layers[0].digest), "it is kept");

    let before = usage(node, FROM)?;
    let (code, refused) = migrate(node, "", &["--evict"])?;
    ensure!(code == Some(2), "{refused:#}");
    assert_states(&refused, &built, "unpacked")?;
    for image in &built {
        let chain = evicted(&refused, &image.reference)?;
        let text = chain["refusal"].as_str().unwrap_or_default();
        for part in [&image.reference, "sha256:", "always = true"] {
            ensure!(text.contains(part), "{part:?} is not in {chain:#}");
        }
    }
    ensure!(usage(node, FROM)? == before, "something was evicted");

    let always = "cri.always = true\n";
    let told = dry_run(node, always)?;
    assert_states(&told, &built, "ready")?;
    let (code, done) = migrate(node, always, &["--evict"])?;
    ensure!(code == Some(0), "{done:#}");
    assert_freed(&told, &done, before - usage(node, FROM)?)?;
    let left = node.snapshots(FROM)?;
    ensure!(left.len() == pause.layers.len(), "{left:?}");
    node.assert_nothing_left(FROM)?;

    let served = Served::configured(node, node.containerd.socket(), always)?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
    assert_pods(&cri, "", &images)?;
    if to(node) == "erofs" {
        assert_pods(&cri, "erofs", &images)?;
    }
    drop((cri, direct));
    served.stop()?;
    node.assert_nothing_left(FROM)
}
