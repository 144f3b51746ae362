// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Commands about all images: what they say, and the calls that they make.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::image::{Built, crowd};
use resnap_integration::tap::{Method, Tap};
use serde_json::{Value, json};

use crate::command::{CommandOutput, run_to_end};
use crate::node::{Node, unique};
use crate::suite::live_tests;

live_tests! {
    One: all_images_take_as_few_calls_as_one,
    Containerd: check_all_says_what_check_says,
}

const IMAGES: usize = 40;

const CONTENT_LIST: Method = Method::new("/containerd.services.content.v1.Content/List");
const SNAPSHOT_LIST: Method = Method::new("/containerd.services.snapshots.v1.Snapshots/List");
const VERSION: Method = Method::new("/containerd.services.version.v1.Version/Version");

/// Puts images on the node, none of them unpacked.
fn import(node: &Node, count: usize) -> Result<Vec<Built>> {
    let path = node.containerd.scratch().join(unique("crowd"));
    let images = crowd(0..count, &path)?;
    node.import(&images[0])?;
    std::fs::remove_file(&path)?;
    Ok(images)
}

/// `resnap` through a tap, and with a runtime directory of its own.
struct Tapped<'a> {
    node: &'a Node,
    tap: Tap,
    dir: String,
}

impl<'a> Tapped<'a> {
    fn new(node: &'a Node) -> Result<Self> {
        Ok(Self {
            node,
            tap: node.containerd.tap()?,
            dir: unique("r"),
        })
    }

    fn run(&self, arguments: &[&str]) -> Result<CommandOutput> {
        self.tap.reset();
        let mut command = self.node.resnap_command()?;
        command.env("CONTAINERD_ADDRESS", self.tap.socket()).env(
            "RESNAP_RUNTIME_DIR",
            self.tap.socket().with_file_name(&self.dir),
        );
        run_to_end(command.args(arguments))
    }

    /// Checks that the last run made these calls, and no others.
    fn made(&self, want: &[(Method, usize)]) -> Result<()> {
        let want = want.iter().filter(|(_, count)| *count > 0);
        let want: BTreeMap<_, _> = want
            .map(|(method, count)| (method.to_string(), *count as u64))
            .collect();
        let made = self.tap.counts();
        ensure!(made == want, "{made:#?}\nwant {want:#?}");
        Ok(())
    }
}

fn all_images_take_as_few_calls_as_one(node: &Node) -> Result<()> {
    let images = import(node, IMAGES)?;
    node.unpack("native", &images[0].reference)?;
    let tapped = Tapped::new(node)?;
    let made = |snapshotters, reads, versions| {
        tapped.made(&[
            (Method::PLUGINS, 1),
            (Method::IMAGE_LIST, 1),
            (CONTENT_LIST, 1),
            (SNAPSHOT_LIST, snapshotters),
            (Method::CONTENT_READ, reads),
            (VERSION, versions),
        ])
    };
    let all = node.containerd.snapshotters().len();
    let first = tapped.run(&["images", "--json"])?.json()?;
    // An index, a manifest and a config of each.
    made(all, 3 * IMAGES, 0)?;
    let rows = first.as_array().context("no array")?;
    ensure!(rows.len() == IMAGES, "{} rows", rows.len());
    for (row, image) in rows.iter().zip(&images) {
        ensure!(row["image"] == json!(image.reference), "{row}");
        ensure!(row["id"] == json!(image.config), "{row}");
        let is_ready = image.reference == images[0].reference;
        ensure!(row["ready"]["native"] == json!(is_ready), "{row}");
    }
    ensure!(tapped.run(&["images", "--json"])?.json()? == first);
    made(all, 0, 0)?;
    tapped.run(&["check", "--all"])?.ok()?;
    made(all, 0, 0)?;
    let native = ["--all", "--json", "--snapshotter", "native"];
    let one = tapped.run(&[&["check"], &native[..]].concat())?;
    ensure!(one.code == Some(1), "{one:?}");
    made(1, 0, 0)?;

    let on = ["--snapshotter", "overlayfs", "--min-free", "1 KiB"];
    let warm = [&["warm"], &native[..], &on[..]].concat();
    let states = |document: &Value, state| {
        let rows = document.as_array().into_iter().flatten();
        rows.filter(|row| row["state"] == state).count()
    };
    let dry = tapped.run(&[&warm[..], &["--dry-run"]].concat())?.json()?;
    made(2, 0, 1)?;
    ensure!(states(&dry, "would unpack") == 2 * IMAGES - 1, "{dry}");
    let done = tapped.run(&warm)?.json()?;
    ensure!(states(&done, "unpacked") == 2 * IMAGES - 1, "{done}");
    let again = tapped.run(&warm)?.json()?;
    made(2, 0, 1)?;
    ensure!(states(&again, "ready") == 2 * IMAGES, "{again}");
    let ready = tapped.run(&[&["check"], &native[..]].concat())?;
    ensure!(ready.code == Some(0), "{ready:?}");

    // Kept documents of a blob that is gone do not make it appear.
    node.ctr(&["content", "rm", &images[3].config])?;
    let rows = tapped.run(&["images", "--json"])?.json()?;
    made(all, 0, 0)?;
    let problem = rows[3]["problem"].as_str().unwrap_or_default();
    ensure!(problem.contains(&images[3].config), "{rows}");
    ensure!(rows[2]["problem"].is_null() && rows[4]["problem"].is_null());
    tapped.tap.finish()
}

fn check_all_says_what_check_says(node: &Node) -> Result<()> {
    let images = import(node, 5)?;
    node.unpack("native", &images[0].reference)?;
    node.unpack("native", &images[1].reference)?;
    node.unpack_by_containerd("overlayfs", &images[2].reference)?;
    node.ctr(&["content", "rm", &images[3].manifest])?;
    let layer = &images[1].layers[8].digest;
    node.ctr(&["content", "rm", layer])?;
    for on in [&[][..], &["--snapshotter", "native"]] {
        let check = |what: &str| node.resnap(&[&["check", "--json", what], on].concat());
        let all = check("--all")?;
        // Some are ready on native, and one cannot be checked.
        ensure!(all.code == Some(i32::from(!on.is_empty())), "{all:?}");
        let all: Value = serde_json::from_str(&all.stdout)?;
        ensure!(all.as_array().map(Vec::len) == Some(5), "{all}");
        for (number, image) in images.iter().enumerate() {
            if number == 3 {
                ensure!(all[3]["image"] == json!(image.reference), "{all}");
                let problem = all[3]["problem"].as_str().unwrap_or_default();
                ensure!(problem.contains(&image.manifest), "{problem:?}");
                continue;
            }
            let one: Value = serde_json::from_str(&check(&image.reference)?.stdout)?;
            ensure!(all[number] == one[0], "{}\nis not\n{one}", all[number]);
            ensure!(one[0]["config"] == json!(image.config), "{one}");
        }
    }
    let table = node.resnap(&["check", "--all"])?.ok()?;
    let row = |image: &Built| {
        let mut lines = table.lines();
        lines.find(|line| line.starts_with(&image.reference))
    };
    let words = |image: &Built| {
        let row = row(image).with_context(|| format!("no row in\n{table}"))?;
        anyhow::Ok(row.split_whitespace().take(4).collect::<Vec<_>>().join(" "))
    };
    ensure!(words(&images[0])?.ends_with(" 9 9 native"), "{table}");
    ensure!(words(&images[1])?.ends_with(" 9 8 native"), "{table}");
    ensure!(words(&images[2])?.ends_with(" 9 9 overlayfs"), "{table}");
    let lacks = row(&images[2]).unwrap_or_default();
    ensure!(lacks.contains("native (8 of 9 layers)"), "{table}");
    ensure!(
        row(&images[3])
            .unwrap_or_default()
            .contains("not in the content store"),
        "{table}"
    );
    // It is either all images or some.
    let both = node.resnap(&["check", "--all", "web"])?;
    ensure!(
        both.code == Some(2) && both.stderr.contains("--all"),
        "{both:?}"
    );
    Ok(())
}
