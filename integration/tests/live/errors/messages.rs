// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Errors about an image name the cause and a next step that can work.

use anyhow::{Context as _, Result, ensure};
use resnap_integration::image::{
    Built, Entry, ImageBuilder, Index, Layer, Part, foreign_architecture, hello, host_platform,
};
use serde_json::{Value, json};

use super::{assert_error, unpack};
use crate::command::CommandOutput;
use crate::node::{Node, unique};
use crate::suite::live_tests;

live_tests! {
    Containerd: a_missing_document_is_named,
    Containerd: another_platform_is_fetched_by_name,
    Containerd: foreign_layers_are_named_in_the_error,
    Containerd: warm_skips_other_artifacts,
    Containerd: lists_show_the_reason,
}

/// Returns a layer with one file of these words.
fn layer(text: &str) -> Result<Layer> {
    Layer::of(&[Entry::dir("./"), Entry::file("text", text)])
}

/// A missing document is named as what it is, and is to be fetched where there is a name for it.
fn a_missing_document_is_named(node: &Node) -> Result<()> {
    let archive = node.containerd.scratch().join(unique("documents"));
    let image = Index::new("docker.io/library/documents:1")
        .image(ImageBuilder::new("").layer(layer("documents")?))
        .write(&archive)?;
    let index = image.target().to_owned();
    let fetch = format!("content fetch {}`", image.reference);
    for (what, digest) in [
        ("config", &image.config),
        ("manifest", &image.manifest),
        ("index", &index),
    ] {
        node.import(&image)?;
        node.ctr(&["content", "rm", digest])?;
        let says = [
            &*image.reference,
            &*format!("read {what} {digest}: it is not in the content store"),
        ];
        let output = unpack(node, &image.reference, "native")?;
        assert_error(output, "NotFound", &says, &fetch)?;
    }
    // Nothing can be fetched by an ID.
    node.import(&image)?;
    node.ctr(&["images", "tag", &image.reference, &image.config])?;
    node.ctr(&["images", "rm", &image.reference])?;
    node.ctr(&["content", "rm", &image.layers[0].digest])?;
    let error = unpack(node, &image.config, "native")?.error()?;
    let next = error["next_step"].as_str().context("no next step")?;
    ensure!(!next.contains("content fetch"), "{error}");
    ensure!(next.contains("pull the image again by its name"), "{error}");
    node.assert_nothing_left("native")
}

/// A blob that is missing for another platform is not fetched by default.
fn another_platform_is_fetched_by_name(node: &Node) -> Result<()> {
    let (os, _) = host_platform();
    let foreign = foreign_architecture();
    let archive = node.containerd.scratch().join(unique("abroad"));
    let image = Index::new("docker.io/library/abroad:1")
        .image(
            ImageBuilder::new("")
                .platform(os, foreign)
                .layer(layer("abroad")?),
        )
        .write(&archive)?;
    node.import(&image)?;
    node.ctr(&["content", "rm", &image.layers[0].digest])?;
    let platform = format!("{os}/{foreign}");
    let output = node.resnap(&[
        "unpack",
        "--json",
        &image.reference,
        "--snapshotter",
        "native",
        "--platform",
        &platform,
    ])?;
    let fetch = format!("content fetch --platform '{platform}' {}`", image.reference);
    assert_error(output, "NotFound", &[&image.layers[0].digest], &fetch)
}

/// A layer that registries do not hand out is called that.
fn foreign_layers_are_named_in_the_error(node: &Node) -> Result<()> {
    const URL: &str = "ftp://layers.example.com/windows.tar.gz";
    let image = |name: &str, edit: fn(&mut Value)| {
        let archive = node.containerd.scratch().join(unique("foreign"));
        let image = ImageBuilder::new(&format!("docker.io/library/{name}:1"))
            .layer(layer(name)?)
            .edit(Part::Manifest, edit)
            .write(&archive)?;
        node.import(&image)?;
        node.ctr(&["content", "rm", &image.layers[0].digest])?;
        anyhow::Ok(image)
    };
    let with_urls = image("urls", |manifest| {
        let layer = &mut manifest["layers"][0];
        layer["mediaType"] = json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
        layer["urls"] = json!([URL]);
    })?;
    let without = image("silent", |manifest| {
        manifest["layers"][0]["mediaType"] =
            json!("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
    })?;
    for (image, where_) in [
        (&with_urls, &*format!("the image says it is at {URL}")),
        (&without, "the image does not say where it is"),
    ] {
        let digest = &image.layers[0].digest;
        let says = [
            &*image.reference,
            &*format!("layer {digest} of image"),
            "is a foreign layer, which registries do not have",
            where_,
        ];
        let next = format!("content ingest --expected-digest {digest}");
        let output = unpack(node, &image.reference, "native")?;
        assert_error(output, "NotFound", &says, &next)?;
    }
    node.assert_nothing_left("native")
}

/// Returns a chart, a signature, and an image of elsewhere, which no snapshotter here is for.
fn strangers(node: &Node) -> Result<[Built; 3]> {
    let scratch = node.containerd.scratch();
    let chart = ImageBuilder::new("docker.io/charts/chart:1")
        .edit(Part::Config, |config| {
            *config = json!({ "name": "chart", "version": "1.0.0", "apiVersion": "v2" });
        })
        .edit(Part::Manifest, |manifest| {
            manifest["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
        })
        .write(&scratch.join(unique("chart")))?;
    let signature = ImageBuilder::new("docker.io/library/signature:1")
        .layer(layer("signature")?)
        .edit(Part::Manifest, |manifest| {
            manifest["layers"][0]["mediaType"] =
                json!("application/vnd.dev.cosign.simplesigning.v1+json");
        })
        .write(&scratch.join(unique("signature")))?;
    let foreign = Index::new("docker.io/library/stranger:1")
        .image(
            ImageBuilder::new("")
                .platform("linux", foreign_architecture())
                .layer(layer("stranger")?),
        )
        .write(&scratch.join(unique("stranger")))?;
    let strangers = [chart, signature, foreign];
    for image in &strangers {
        node.import(image)?;
    }
    Ok(strangers)
}

fn warm(node: &Node, arguments: &[&str]) -> Result<CommandOutput> {
    let on = ["warm", "--snapshotter", "native", "--min-free", "1 KiB"];
    node.resnap(&[&on, arguments].concat())
}

/// Checks that commands for all images skip those for other machines, and say so.
fn warm_skips_other_artifacts(node: &Node) -> Result<()> {
    let hello = hello()?;
    node.import(&hello)?;
    let [chart, signature, foreign] = strangers(node)?;
    for (arguments, state) in [
        (&["--all", "--dry-run", "--json"][..], "would unpack"),
        (&["--all", "--json"], "unpacked"),
    ] {
        let rows = warm(node, arguments)?.json()?;
        let row = |image: &Built| -> Result<Value> {
            let mut rows = rows.as_array().context("no rows")?.iter();
            let row = rows.find(|row| row["image"] == json!(image.reference));
            Ok(row.context("no row")?.clone())
        };
        ensure!(row(&hello)?["state"] == state, "{rows}");
        for (image, why) in [
            (&chart, "application/vnd.cncf.helm.config.v1+json"),
            (
                &signature,
                "application/vnd.dev.cosign.simplesigning.v1+json",
            ),
            (&foreign, foreign_architecture()),
        ] {
            let row = row(image)?;
            ensure!(row["state"] == "skipped", "{row}");
            let problem = row["problem"].as_str().context("no reason")?;
            ensure!(problem.contains(why), "{row}");
            ensure!(!problem.contains(&image.reference), "{row}");
        }
    }
    // An image that is named explicitly is not skipped.
    for image in [&chart, &signature, &foreign] {
        let output = warm(node, &[&image.reference, "--dry-run", "--json"])?;
        ensure!(output.code == Some(2), "{output:?}");
        let rows: Value = serde_json::from_str(&output.stdout)?;
        ensure!(rows[0]["state"] == "failed", "{rows}");
    }
    for (image, why) in [
        (&chart, "is no container image: the type of its config"),
        (&signature, "is no container image: the type of its layers"),
    ] {
        let output = unpack(node, &image.reference, "native")?;
        let says = [&*image.reference, why];
        assert_error(
            output,
            "InvalidArgument",
            &says,
            "nothing of it is to be unpacked",
        )?;
    }
    node.assert_nothing_left("native")
}

/// A list says of an image what is wrong, in full, and its name once.
fn lists_show_the_reason(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    node.ctr(&["content", "rm", &image.config])?;
    let reason = format!(
        "read config {}: it is not in the content store",
        image.config
    );
    let images = node.resnap(&["images"])?.ok()?;
    let warmed = warm(node, &["--all"])?;
    ensure!(warmed.code == Some(2), "{warmed:?}");
    for table in [&images, &warmed.stdout] {
        let mut rows = table.lines().filter(|row| row.contains(&image.reference));
        let row = rows.next().context("no row")?;
        ensure!(row.ends_with(&reason), "{row:?}");
        ensure!(row.matches(&image.reference).count() == 1, "{row:?}");
    }
    let rows = node.resnap(&["images", "--json"])?.json()?;
    ensure!(rows[0]["problem"] == json!(reason), "{rows}");
    Ok(())
}
