// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The programs of `examples/`.

use std::process::Command;

use anyhow::{Result, ensure};
use resnap_integration::image::{Built, hello};

use crate::command::{CommandOutput, resnap, run_to_end};
use crate::node::Node;
use crate::suite::live_tests;

live_tests! {
    Containerd: examples_embed_unpack,
    Containerd: examples_custom_labels,
}

/// An example, which lies beside resnap.
fn example(node: &Node, name: &str, image: &str, snapshotter: &str) -> Result<CommandOutput> {
    let program = resnap()?.get_program().to_owned();
    let program = std::path::Path::new(&program).with_file_name(name);
    ensure!(
        program.is_file(),
        "{program:?} is not built: run `cargo build --workspace` first"
    );
    run_to_end(Command::new(program).arg(node.containerd.socket()).args([
        &node.namespace,
        image,
        snapshotter,
    ]))
}

fn imported(node: &Node) -> Result<Built> {
    let image = hello()?;
    node.import(&image)?;
    Ok(image)
}

fn examples_embed_unpack(node: &Node) -> Result<()> {
    let image = imported(node)?;
    let check = ["check", &image.reference, "--snapshotter", "native"];
    ensure!(node.resnap(&check)?.code == Some(1), "ready too early");

    let first = example(node, "embed_unpack", &image.reference, "native")?.ok()?;
    ensure!(first.contains("is not on native yet"), "{first}");
    ensure!(first.contains("layer 3/3: Committed"), "{first}");
    ensure!(first.contains(" on / ("), "{first}");
    node.resnap(&check)?.ok()?;
    // The container's snapshot went with the example's lease, as it has no container's record.
    node.collect_garbage()?;
    node.assert_nothing_left("native")?;

    let second = example(node, "embed_unpack", &image.reference, "native")?.ok()?;
    ensure!(!second.contains("is not on native yet"), "{second}");
    ensure!(second.contains(" on / ("), "{second}");

    let wrong = example(node, "embed_unpack", "nowhere:1", "native")?;
    ensure!(wrong.code == Some(1), "{wrong:#?}");
    ensure!(
        wrong.stderr.contains("no image \"nowhere:1\""),
        "{wrong:#?}"
    );
    Ok(())
}

fn examples_custom_labels(node: &Node) -> Result<()> {
    let image = imported(node)?;
    let printed = example(node, "custom_labels", &image.reference, "native")?.ok()?;
    let label = "containerd.io/snapshot/example.com.layer-number";
    ensure!(printed.contains(&format!("{label}=3\n")), "{printed}");
    for (layer, number) in image.layers.iter().zip(1..) {
        let number: u32 = number;
        let labels = node.labels("native", &layer.chain_id)?;
        ensure!(
            labels.get(label) == Some(&number.to_string()),
            "layer {number}: {labels:#?}"
        );
        ensure!(
            labels.contains_key("containerd.io/snapshot/cri.image-ref"),
            "layer {number}: {labels:#?}"
        );
    }
    node.assert_nothing_left("native")
}
