// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Runs of single images, one that is killed, two at once, and one without room.

use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use resnap_integration::image::{Built, beside_hello, hello, many};
use resnap_integration::tap::Point::{self, After, Before};
use resnap_integration::tap::{Action, Method, Side};
use serde_json::Value;

use super::{FROM, ROOM, assert_states, assert_unchanged, everything, is_ready, migrate, to};
use crate::command::run_to_end;
use crate::node::Node;
use crate::suite::live_tests;

live_tests! {
    One: migrate_that_was_killed_is_completed_by_the_next,
    Containerd: migrate_of_named_images_leaves_others,
    One: migrate_by_two_processes_at_once,
    Containerd: migrate_without_room_evicts_nothing,
}

/// The calls at which a run is killed: while it unpacks, and while it evicts.
const KILLS: [(Method, u64, Point); 4] = [
    (Method::COMMIT, 2, After),
    (Method::CONTENT_UPDATE, 1, After),
    (Method::CONTENT_UPDATE, 4, Before),
    (Method::CONTENT_UPDATE, 4, After),
];

fn migrate_that_was_killed_is_completed_by_the_next(node: &Node) -> Result<()> {
    for (method, nth, point) in KILLS {
        killed(&node.in_new_namespace(), method, nth, point)
            .with_context(|| format!("killed {point:?} {nth} of {method}"))?;
    }
    Ok(())
}

/// Returns three images that are unpacked.
fn unpacked(node: &Node) -> Result<[Built; 3]> {
    let images = [hello()?, beside_hello()?, many(2)?];
    for image in &images {
        node.import(image)?;
        node.unpack_by_containerd(FROM, &image.reference)?;
    }
    Ok(images)
}

fn killed(node: &Node, method: Method, nth: u64, point: Point) -> Result<()> {
    let images = unpacked(node)?;
    // With the labels of three images, the fourth update of content is the first of the eviction.
    let tap = node.containerd.tap()?;
    tap.on(method, nth, point, Action::Kill(Side::Client));
    let to = to(node);
    let arguments = [
        &[
            "migrate", "--json", "--from", FROM, "--to", to, "--all", "--evict",
        ][..],
        &ROOM,
    ]
    .concat();
    let mut command = node.resnap_command()?;
    command.env("CONTAINERD_ADDRESS", tap.socket());
    let killed = run_to_end(command.args(&arguments))?;
    ensure!(killed.code.is_none(), "{killed:#?} instead of a kill");
    tap.finish()?;

    let (code, document) = migrate(node, "", &["--evict"])?;
    ensure!(code == Some(0), "{document:#}");
    // The lease of the killed run expires later. Its image no longer needs it.
    node.resnap(&["leases", "--sweep"])?.ok()?;
    node.collect_garbage()?;
    for image in &images {
        is_ready(node, to, image)?;
    }
    let left = node.snapshots(FROM)?;
    ensure!(left.is_empty(), "{left:?}");
    node.assert_nothing_left(to)
}

fn migrate_of_named_images_leaves_others(node: &Node) -> Result<()> {
    let [hello, beside, many] = unpacked(node)?;
    let (from, to) = (FROM, to(node));
    let run = |image: &str| {
        let arguments = [
            "migrate", "--json", "--from", from, "--to", to, "--evict", image,
        ];
        let output = node.resnap(&[&arguments[..], &ROOM].concat())?;
        let document: Value = serde_json::from_str(&output.stdout)?;
        anyhow::Ok((output.code, document))
    };
    let (code, document) = run("hello:1")?;
    ensure!(code == Some(0), "{document:#}");
    assert_states(&document, &[&hello], "unpacked")?;
    is_ready(node, to, &hello)?;
    for other in [&beside, &many] {
        is_ready(node, from, other)?;
    }
    // It is ready, and nothing is left to evict.
    let (code, document) = run("hello:1")?;
    ensure!(code == Some(0), "{document:#}");
    assert_states(&document, &[&hello], "ready")?;
    let label = "io.cri-containerd.pinned=pinned";
    node.ctr(&["images", "label", &beside.reference, label])?;
    let (code, document) = run(&beside.reference)?;
    ensure!(code == Some(2), "{document:#}");
    assert_states(&document, &[&beside], "unpacked")?;
    is_ready(node, from, &beside)?;
    node.assert_nothing_left(to)
}

fn migrate_by_two_processes_at_once(node: &Node) -> Result<()> {
    let images = unpacked(node)?;
    let run = || migrate(node, "", &["--evict", "--jobs", "2"]);
    let runs = thread::scope(|scope| {
        let other = scope.spawn(run);
        [run(), other.join().unwrap_or_else(|_| bail!("a panic"))]
    });
    for run in runs {
        let (code, document) = run?;
        ensure!(code == Some(0), "{document:#}");
    }
    node.collect_garbage()?;
    for image in &images {
        is_ready(node, to(node), image)?;
    }
    let left = node.snapshots(FROM)?;
    ensure!(left.is_empty(), "{left:?}");
    node.assert_nothing_left(to(node))
}

/// Not to native: containerd 1.6 does not say where that is.
fn migrate_without_room_evicts_nothing(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    node.unpack("native", &image.reference)?;
    let before = everything(node)?;
    let arguments = [
        "migrate", "--json", "--from", "native", "--to", FROM, "--all", "--evict",
    ];
    let full = ["--min-free", "100%"];
    let output = node.resnap(&[&arguments[..], &full].concat())?;
    ensure!(output.code == Some(2), "{output:?}");
    let document = serde_json::from_str(&output.stdout)?;
    assert_states(&document, &[&image], "no room")?;
    assert_unchanged(node, &before)
}
