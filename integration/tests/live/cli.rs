// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The command line as people and programs meet it.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::image::{HELLO_SAYS, hello, shared_pair};
use serde_json::{Value, json};

use crate::command::{resnap, run_to_end};
use crate::node::{Node, host_platform};
use crate::suite::live_tests;

live_tests! {
    One: an_image_is_found_by_all_its_names,
    Containerd: unpack_json_lists_each_step,
    Containerd: unpack_prints_each_layer,
    One: check_lists_each_layer,
    Containerd: images_lists_where_images_are_ready,
    Containerd: snapshotters_lists_all,
    Containerd: wrong_usage_ends_with_2,
}

fn an_image_is_found_by_all_its_names(node: &Node) -> Result<()> {
    let image = hello()?;
    let (left, right) = shared_pair()?;
    for image in [&image, &left, &right] {
        node.import(image)?;
    }
    let hex = image.config.trim_start_matches("sha256:");
    let digest = format!("docker.io/library/hello@{}", image.manifest);
    node.ctr(&["images", "tag", &image.reference, &digest])?;
    // If a name has a tag and a digest, the digest is used, as in the CRI.
    let check = node.resnap(&["check", "--json", &format!("hello:1@{}", image.manifest)])?;
    ensure!(check.json()?[0]["image"] == json!(digest));
    for name in [
        "docker.io/library/hello:1",
        "hello:1",
        &image.config,
        hex,
        &hex[..12],
    ] {
        let check = node.resnap(&["check", "--json", name])?.json()?;
        ensure!(
            check[0]["image"] == json!(image.reference),
            "{name}: {check}"
        );
        ensure!(check[0]["config"] == json!(image.config), "{name}: {check}");
    }
    // The shortest start that all three IDs have is none; one digit may fit more than one.
    let ids = [&image, &left, &right].map(|image| image.config.replace("sha256:", ""));
    for digit in "0123456789abcdef".chars() {
        let fits = ids.iter().filter(|id| id.starts_with(digit)).count();
        let output = node.resnap(&["check", "--json", &digit.to_string()])?;
        match fits {
            1 => drop(output.json()?),
            0 => ensure!(output.error()?["kind"] == "NotFound"),
            _ => ensure!(output.error()?["kind"] == "InvalidArgument"),
        }
    }
    // A name is taken for a name before it is taken for the start of an ID.
    node.ctr(&[
        "images",
        "tag",
        &left.reference,
        &format!("docker.io/library/{}:latest", &hex[..12]),
    ])?;
    let check = node.resnap(&["check", "--json", &hex[..12]])?.json()?;
    ensure!(check[0]["config"] == json!(left.config), "{check}");
    Ok(())
}

fn unpack_json_lists_each_step(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    let unpack = ["unpack", "--json", "hello:1", "--snapshotter", "native"];
    let lines = node.resnap(&unpack)?.json_lines()?;
    let (report, events) = lines.split_last().context("nothing was printed")?;
    let told = |layer: u64| {
        let of_layer = events.iter().filter(move |event| event["layer"] == layer);
        of_layer.map(|event| event["event"].as_str().unwrap_or_default())
    };
    for (index, layer) in image.layers.iter().enumerate() {
        let steps = told(index as u64 + 1);
        // The number of progress events depends on time.
        let steps: Vec<&str> = steps.filter(|step| *step != "progress").collect();
        ensure!(
            steps == ["planned", "prepared", "applying", "committed"],
            "{steps:?}"
        );
        let event = &events[index];
        let want = json!({
            "image": "hello:1", "snapshotter": "native", "event": "planned",
            "layer": index + 1, "layers": 3, "digest": layer.digest,
            "chain_id": layer.chain_id, "bytes": layer.size, "seconds": event["seconds"],
        });
        ensure!(*event == want, "{event}\nwant {want}");
    }
    let report = &report["report"];
    ensure!(report["chain_id"] == json!(image.chain_id()), "{report}");
    ensure!(report["reference"] == json!(image.reference), "{report}");
    ensure!(report["platform"] == json!(host_platform()), "{report}");
    Ok(())
}

fn unpack_prints_each_layer(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    let unpack = ["unpack", "hello:1", "--snapshotter", "native"];
    let first = node.resnap(&unpack)?;
    for (index, layer) in image.layers.iter().enumerate() {
        let digest = &layer.digest["sha256:".len()..][..12];
        let line = format!("layer {}/3 {digest}: unpacked", index + 1);
        ensure!(
            first.stderr.contains(&line),
            "no {line:?} in {}",
            first.stderr
        );
    }
    let summary = first.ok()?;
    let says = "docker.io/library/hello:1 is ready on native: 3 layers (3 applied)";
    ensure!(summary.starts_with(says), "{summary}");
    let again = node.resnap(&unpack)?.ok()?;
    ensure!(again.contains("3 already there"), "{again}");
    ensure!(node.run("native", &image.reference)? == HELLO_SAYS);
    Ok(())
}

fn check_lists_each_layer(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    node.unpack_by_containerd("overlayfs", &image.reference)?;
    let check = |snapshotter: &str| {
        node.resnap(&["check", "--json", "hello:1", "--snapshotter", snapshotter])
    };
    ensure!(check("overlayfs")?.code == Some(0));
    ensure!(check("native")?.code == Some(1));
    node.unpack("native", "hello:1")?;
    node.ctr(&["content", "rm", &image.layers[2].digest])?;
    let native = check("native")?.json()?;
    ensure!(
        native[0]["snapshotters"]["native"]["ready"] == json!(true),
        "{native}"
    );
    for (index, layer) in image.layers.iter().enumerate() {
        let told = &native[0]["layers"][index];
        ensure!(told["chain_id"] == json!(layer.chain_id), "{told}");
        ensure!(told["blob"] == json!(index != 2), "{told}");
        let state = json!({ "state": "committed", "labels": { "complete": image.reference } });
        ensure!(told["snapshots"]["native"] == state, "{told}");
    }
    // Unlabelled, for a snapshotter that can do without.
    let overlayfs = check("overlayfs")?.json()?;
    let labels = &overlayfs[0]["layers"][0]["snapshots"]["overlayfs"]["labels"]["missing"];
    let missing: BTreeSet<&str> = labels
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    ensure!(
        missing.contains("containerd.io/snapshot/cri.layer-digest"),
        "{overlayfs}"
    );
    // For people, and without a snapshotter to decide by, all of them and no verdict.
    let table = node.resnap(&["check", "hello:1"])?.ok()?;
    for words in [
        "native: ready",
        "overlayfs: ready",
        "missing",
        "complete, of docker.io/library/hello:1",
    ] {
        ensure!(table.contains(words), "no {words:?} in\n{table}");
    }
    Ok(())
}

fn images_lists_where_images_are_ready(node: &Node) -> Result<()> {
    let (image, (left, _)) = (hello()?, shared_pair()?);
    node.import(&image)?;
    node.import(&left)?;
    // As the CRI keeps it.
    node.ctr(&["images", "tag", &image.reference, &image.config])?;
    node.unpack("native", "hello:1")?;
    node.ctr(&["content", "rm", &left.config])?;
    let rows = node.resnap(&["images", "--json"])?.json()?;
    ensure!(rows.as_array().map(Vec::len) == Some(2), "{rows}");
    ensure!(rows[0]["image"] == json!(image.reference), "{rows}");
    ensure!(rows[0]["id"] == json!(image.config), "{rows}");
    ensure!(rows[0]["ready"]["native"] == json!(true), "{rows}");
    ensure!(rows[0]["ready"]["overlayfs"] == json!(false), "{rows}");
    // One that is broken is told of, and hides no other.
    let problem = rows[1]["problem"].as_str().unwrap_or_default();
    ensure!(problem.contains(&left.config), "{rows}");
    let table = node.resnap(&["images"])?.ok()?;
    let row = table
        .lines()
        .find(|line| line.starts_with(&image.reference));
    let row = row.context("the table has no row of the image")?;
    ensure!(row.ends_with("3        native"), "{row:?}");
    Ok(())
}

fn snapshotters_lists_all(node: &Node) -> Result<()> {
    let rows = node.resnap(&["snapshotters", "--json"])?.json()?;
    let rows = rows.as_array().context("no array")?;
    let working = rows.iter().filter(|row| row["working"] == json!(true));
    let working: BTreeSet<String> = working
        .filter_map(|row| row["name"].as_str().map(str::to_owned))
        .collect();
    ensure!(&working == node.containerd.snapshotters(), "{working:?}");
    // A plugin that did not load says why.
    for row in rows.iter().filter(|row| row["working"] == json!(false)) {
        ensure!(
            row["failure"].as_str().is_some_and(|why| !why.is_empty()),
            "{row}"
        );
    }
    let table = node.resnap(&["snapshotters"])?.ok()?;
    ensure!(table.starts_with("NAME"), "{table}");
    Ok(())
}

fn wrong_usage_ends_with_2(node: &Node) -> Result<()> {
    for wrong in [
        &["unpack"][..],
        &["warm", "hello:1"],
        &[
            "unpack",
            "hello:1",
            "--snapshotter",
            "native",
            "--platform",
            "linux/amd64/v1/x",
        ],
        &["nosuch"],
        &[],
    ] {
        let output = node.resnap(wrong)?;
        ensure!(output.code == Some(2), "{wrong:?}: {output:?}");
        ensure!(
            output.stderr.contains("Usage") || output.stderr.contains("--help"),
            "{output:?}"
        );
    }
    // Without a containerd, as when a package is built.
    for right in [
        &["--help"][..],
        &["--version"],
        &["man"],
        &["completions", "bash"],
    ] {
        let printed = run_to_end(resnap()?.args(right))?.ok()?;
        ensure!(printed.contains("resnap"), "{right:?}: {printed}");
    }
    // A shell takes the script, and completes a command with it.
    let resnap = resnap()?.get_program().to_owned();
    let complete = "source <(\"$0\" completions bash); COMP_WORDS=(resnap unp); COMP_CWORD=1; \
                    _resnap resnap unp resnap; echo \"${COMPREPLY[@]}\"";
    let mut bash = Command::new("bash");
    bash.args(["-c", complete]).arg(&resnap);
    let completed = run_to_end(&mut bash)?.ok()?;
    ensure!(completed.trim() == "unpack", "{completed:?}");
    let page = run_to_end(Command::new(&resnap).arg("man"))?.ok()?;
    ensure!(page.lines().any(|line| line.starts_with(".TH")), "{page}");
    Ok(())
}
