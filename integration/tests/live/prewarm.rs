// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images made ready ahead: by `resnap warm`, and by the rules of `resnap serve`.

use anyhow::{Result, ensure};
use resnap_integration::image::{hello, pause, shared_pair};
use serde_json::Value;

use crate::node::Node;
use crate::poll::{DEADLINE, eventually};
use crate::served::Served;
use crate::suite::live_tests;
use crate::unpack::assert_labels;

live_tests! {
    Containerd: warm_makes_all_images_ready,
    OneAlone: prewarm_follows_its_rules,
}

/// Returns the states that `resnap warm` prints, by image.
fn states(document: &Value) -> Vec<(&str, &str)> {
    let rows = document.as_array().into_iter().flatten();
    rows.map(|row| {
        let word = |key: &str| row[key].as_str().unwrap_or_default();
        (word("image"), word("state"))
    })
    .collect()
}

fn warm_makes_all_images_ready(node: &Node) -> Result<()> {
    let images = [hello()?, pause()?];
    for image in &images {
        node.import(image)?;
    }
    let names: Vec<&str> = images.iter().map(|image| &*image.reference).collect();
    let on = ["--json", "--snapshotter", "overlayfs", "--min-free"];
    let with = |floor, more: &[&str]| node.resnap(&[&["warm"], &on[..], &[floor], more].concat());
    // Whatever this machine has left.
    let run = |more: &[&str]| with("1 KiB", more);
    let are = |document: &Value, state| states(document) == [(names[0], state), (names[1], state)];
    let dry = run(&["--all", "--dry-run"])?.json()?;
    ensure!(are(&dry, "would unpack"), "{dry}");
    ensure!(
        node.snapshots("overlayfs")?.is_empty(),
        "a dry run unpacked"
    );

    let full = with("100%", &["--all"])?;
    ensure!(full.code == Some(2), "{full:?}");
    let document: Value = serde_json::from_str(&full.stdout)?;
    ensure!(are(&document, "no room"), "{document}");
    let next = document[0]["next_step"].as_str().unwrap_or_default();
    for part in ["resnap doctor --disk", "resnap evict", "--min-free"] {
        ensure!(next.contains(part), "{part} is not in {next:?}");
    }

    let one = run(&["*/hello:*"])?.json()?;
    ensure!(states(&one) == [(names[0], "unpacked")], "{one}");
    let all = run(&["--all"])?.json()?;
    let want = [(names[0], "ready"), (names[1], "unpacked")];
    ensure!(states(&all) == want, "{all}");
    for image in &images {
        assert_labels(node, "overlayfs", image, &[])?;
    }
    node.assert_nothing_left("overlayfs")
}

fn prewarm_follows_its_rules(node: &Node) -> Result<()> {
    let (left, right) = shared_pair()?;
    let hello = hello()?;
    node.import(&left)?;
    let config = r#"
        [[prewarm]]
        images = ["docker.io/library/hello:*", "*/left:*"]
        snapshotters = ["native"]
        min_free = "1 KiB"
    "#;
    let served = Served::configured(node, node.containerd.socket(), config)?;
    let ready = |image: &str| {
        let check = node.resnap(&["check", image, "--snapshotter", "native"])?;
        anyhow::Ok(check.code == Some(0))
    };
    let becomes_ready =
        |image: &str| eventually(&format!("{image} is ready"), DEADLINE, || ready(image));
    // An existing image, a new one, and one that matches no pattern.
    becomes_ready(&left.reference)?;
    node.import(&right)?;
    node.import(&hello)?;
    becomes_ready(&hello.reference)?;
    ensure!(!ready(&right.reference)?, "no rule named it");
    assert_labels(node, "native", &hello, &[])?;
    served.stop()?;
    node.assert_nothing_left("native")
}
