// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images that are odd, and that containerd takes.

use anyhow::{Context as _, Result, ensure};
use resnap_integration::image::{
    Built, Entry, ImageBuilder, Index, Layer, Part, foreign_architecture, host_platform,
};
use serde_json::{Value, json};

use crate::node::{Node, unique};
use crate::suite::live_tests;

use super::assert_labels;

live_tests! {
    Containerd: odd_config_types,
    Containerd: odd_entries_beside_the_layers,
    Containerd: odd_platform_differs_from_the_index,
    Containerd: odd_more_layers_than_can_be_mounted,
}

fn layer(text: &str) -> Result<Layer> {
    Layer::of(&[Entry::dir("./"), Entry::file("text", text)])
}

/// Checks that containerd and resnap make the same snapshots of an image.
fn assert_taken(node: &Node, image: &Built) -> Result<()> {
    node.import(image)?;
    node.unpack_by_containerd("overlayfs", &image.reference)?;
    node.unpack("native", &image.reference)?;
    assert_labels(node, "native", image, &[])?;
    for snapshotter in ["overlayfs", "native"] {
        let snapshots = node.snapshots(snapshotter)?;
        for layer in &image.layers {
            ensure!(snapshots.contains_key(&layer.chain_id), "{snapshotter}");
        }
    }
    node.assert_nothing_left("native")
}

/// Old pushes have no type for the config, and others have one of their own.
fn odd_config_types(node: &Node) -> Result<()> {
    for (name, edit) in [
        (
            "octets",
            (|manifest| manifest["config"]["mediaType"] = json!("application/octet-stream"))
                as fn(&mut Value),
        ),
        ("own", |manifest| {
            manifest["config"]["mediaType"] = json!("application/vnd.example.config.v1+json");
        }),
    ] {
        let builder = || {
            anyhow::Ok(
                ImageBuilder::new(&format!("docker.io/library/{name}:1"))
                    .docker()
                    .layer(layer(name)?)
                    .layer(layer("above")?)
                    .edit(Part::Manifest, edit),
            )
        };
        let scratch = node.containerd.scratch();
        let image = builder()?.write(&scratch.join(unique(name)))?;
        assert_taken(node, &image)?;
        // By an index that leaves the platform to the config, too.
        let listed = builder()?.edit(Part::Entry, |entry| {
            entry.as_object_mut().map(|entry| entry.remove("platform"));
        });
        let index = Index::new(&format!("docker.io/library/{name}:2"))
            .image(listed)
            .write(&scratch.join(unique(name)))?;
        node.import(&index)?;
        let check = node
            .resnap(&["check", "--json", &index.reference])?
            .json()?;
        ensure!(check[0]["config"] == json!(image.config), "{check}");
    }
    Ok(())
}

/// Entries beside the layers are ignored.
fn odd_entries_beside_the_layers(node: &Node) -> Result<()> {
    let image = ImageBuilder::new("docker.io/library/notes:1")
        .docker()
        .layer(layer("lower")?)
        .layer(layer("upper")?)
        .edit(Part::Manifest, |manifest| {
            let Some(layers) = manifest["layers"].as_array_mut() else {
                return;
            };
            for (at, kind) in [
                "application/vnd.docker.image.rootfs.notes.v1+json",
                "application/vnd.docker.image.rootfs.diff.tar.lzma",
                "application/vnd.erofs.layer.v10",
                "application/vnd.erofs.layers",
            ]
            .into_iter()
            .enumerate()
            {
                // It need not be there.
                let digest = resnap_integration::image::digest(kind.as_bytes());
                let other = json!({ "mediaType": kind, "digest": digest, "size": 1 });
                layers.insert(at, other);
            }
        })
        .write(&node.containerd.scratch().join(unique("notes")))?;
    node.import(&image)?;
    node.unpack("native", &image.reference)?;
    let snapshots = node.snapshots("native")?;
    ensure!(snapshots.len() == image.layers.len(), "{snapshots:?}");
    // The label with the layers above contains layers only.
    assert_labels(node, "native", &image, &[])?;
    let layers = node
        .resnap(&["check", "--json", &image.reference])?
        .json()?;
    ensure!(layers[0]["layers"].as_array().map(Vec::len) == Some(2));
    node.assert_nothing_left("native")
}

fn warnings(node: &Node, image: &Built, arguments: &[&str]) -> Result<Vec<String>> {
    let check = [&["check", "--json", &*image.reference], arguments].concat();
    let check = node.resnap(&check)?.json()?;
    Ok(serde_json::from_value(check[0]["warnings"].clone())?)
}

/// Returns whether a warning contains all of these words.
fn warns(warnings: &[String], words: &[&str]) -> bool {
    let mut warnings = warnings.iter();
    warnings.any(|warning| words.iter().all(|word| warning.contains(word)))
}

/// If config and index disagree, the index is used and `check` warns.
fn odd_platform_differs_from_the_index(node: &Node) -> Result<()> {
    let (os, host) = host_platform();
    let image = |name: &str, architecture: &str, edit: fn(&mut Value)| {
        let image = Index::new(&format!("docker.io/library/{name}:1"))
            .image(
                ImageBuilder::new("")
                    .platform(os, architecture)
                    .layer(layer(name)?)
                    .edit(Part::Entry, edit),
            )
            .write(&node.containerd.scratch().join(unique(name)))?;
        node.import(&image)?;
        anyhow::Ok(image)
    };
    let relisted = |entry: &mut Value| {
        entry["platform"]["architecture"] = json!(host_platform().1);
    };
    let wrong = image("disagree", foreign_architecture(), relisted)?;
    let right = image("agree", host, relisted)?;
    node.unpack("native", &wrong.reference)?;
    assert_labels(node, "native", &wrong, &[])?;
    let (listed, says) = (
        format!("{os}/{host}"),
        format!("{os}/{}", foreign_architecture()),
    );
    let told = warnings(node, &wrong, &[])?;
    let words = ["the index lists", &listed, &says, "2.2.2"];
    ensure!(warns(&told, &words), "{told:?}");
    let told = warnings(node, &right, &[])?;
    ensure!(told.is_empty(), "{told:?}");
    Ok(())
}

/// `check` warns of images that neither containerd nor the kernel can mount.
fn odd_more_layers_than_can_be_mounted(node: &Node) -> Result<()> {
    let image = |layers: usize| {
        let name = format!("docker.io/library/tall:{layers}");
        let tall = (0..layers).map(|number| layer(&number.to_string()));
        let image = ImageBuilder::new(&name)
            .layers(tall.collect::<Result<Vec<_>>>()?)
            .write(&node.containerd.scratch().join(unique("tall")))?;
        node.import(&image)?;
        anyhow::Ok(image)
    };
    let on = ["--snapshotter", "overlayfs"];
    let warnings = |image: &Built| {
        let check = [&["check", "--json", &*image.reference], &on[..]].concat();
        let output = node.resnap(&check)?;
        let check: Value = serde_json::from_str(&output.stdout).context("no answer")?;
        anyhow::Ok(serde_json::from_value::<Vec<String>>(
            check[0]["warnings"].clone(),
        )?)
    };
    let told = warnings(&image(501)?)?;
    ensure!(warns(&told, &["overlayfs", "501", "500"]), "{told:?}");
    let told = warnings(&image(490)?)?;
    ensure!(warns(&told, &["overlayfs", "490", "4096"]), "{told:?}");
    let told = warnings(&image(100)?)?;
    ensure!(told.is_empty(), "{told:?}");
    Ok(())
}
