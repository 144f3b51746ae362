// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! An image that no snapshotter takes, or this one does not, is refused before anything is done.

use anyhow::{Context as _, Result, ensure};
use resnap_integration::image::{Built, Entry, Form, ImageBuilder, Index, Layer, forms};
use resnap_integration::tap::{Method, Tap};

use super::{assert_went, erofs_platform, unpack, with_feature};
use crate::command::{CommandOutput, run_to_end};
use crate::node::{Node, host_platform, unique};
use crate::suite::live_tests;

live_tests! {
    Nydus: features_are_refused_before_any_work,
}

/// The OS feature of an image in Nydus' own format.
const NYDUS: &str = "nydus.remoteimage.v1";

/// `resnap` behind a tap.
struct Behind<'a> {
    node: &'a Node,
    tap: Tap,
}

impl Behind<'_> {
    fn ask(&self, command: &str, image: &Built, arguments: &[&str]) -> Result<CommandOutput> {
        let mut resnap = self.node.resnap_command()?;
        resnap.env("CONTAINERD_ADDRESS", self.tap.socket());
        run_to_end(resnap.args([&[command, "--json", &image.reference], arguments].concat()))
    }

    /// Checks that `unpack` and `check` fail with exactly these texts.
    fn assert_says(&self, image: &Built, arguments: &[&str], want: [&str; 3]) -> Result<()> {
        for command in ["unpack", "check"] {
            let error = self.ask(command, image, arguments)?.error()?;
            let keys = ["kind", "message", "next_step"];
            let fields = keys.map(|key| error[key].as_str().unwrap_or_default().to_owned());
            ensure!(fields == want, "{fields:#?}\nwant {want:#?}");
        }
        Ok(())
    }
}

fn features_are_refused_before_any_work(node: &Node) -> Result<()> {
    let behind = Behind {
        node,
        tap: node.containerd.tap()?,
    };
    let image = forms(&[Form::Plain, Form::Foreign, Form::Erofs, Form::ForeignErofs])?;
    let abroad = forms(&[Form::Foreign, Form::ForeignErofs])?;
    for image in [&image, &abroad] {
        node.import(image)?;
    }
    let reference = &image.reference;
    let (plain, erofs) = (host_platform(), erofs_platform());
    let foreign = foreign(&plain);
    let mut both = [plain.as_str(), foreign.as_str()];
    both.sort_unstable();
    let [one, other] = both;

    for snapshotter in ["overlayfs", "nydus"] {
        let config = &image.entry(2).config;
        let message = format!(
            "snapshotter {snapshotter} does not support platform {erofs} of image {reference} \
             (config {config}); it is supported by erofs; of this image {snapshotter} takes {one}, \
             {other}"
        );
        let next = format!("take --snapshotter erofs, or --platform '{one}'");
        behind.assert_says(
            &image,
            &["--snapshotter", snapshotter, "--platform", &erofs],
            ["FailedPrecondition", &message, &next],
        )?;
    }

    let unknown = with_feature("nosuch");
    let config = &image.config;
    let message = format!(
        "snapshotter overlayfs does not support platform {unknown} of image {reference} (config \
         {config}); no snapshotter is known to take OS feature \"nosuch\"; of this image overlayfs \
         takes {one}, {other}"
    );
    let next = format!("take --platform '{one}'");
    let on_overlayfs = ["--snapshotter", "overlayfs", "--platform", &unknown];
    let want = ["FailedPrecondition", &message, &next];
    behind.assert_says(&image, &on_overlayfs, want)?;

    // For another architecture, on any snapshotter.
    let foreign_erofs = foreign.replace('/', "(+erofs)/");
    let mut has = [foreign.as_str(), foreign_erofs.as_str()];
    has.sort_unstable();
    let reference = &abroad.reference;
    let on = match node.containerd.has_erofs() {
        true => "erofs",
        false => "overlayfs",
    };
    for (wanted, arguments) in [
        (&plain, &["--snapshotter", on][..]),
        (&plain, &["--snapshotter", "native"]),
        (&erofs, &["--snapshotter", on, "--platform", &erofs]),
    ] {
        let message = format!(
            "image {reference} has no manifest for {wanted}; it has {foreign}, {foreign_erofs}"
        );
        let want = ["NotFound", &message, "choose one with --platform"];
        behind.assert_says(&abroad, arguments, want)?;
    }
    let config = &abroad.entry(1).config;
    let message = format!(
        "snapshotter overlayfs does not support platform {foreign_erofs} of image {reference} \
         (config {config}); it is supported by erofs; of this image overlayfs takes {foreign}"
    );
    let next = format!("take --snapshotter erofs, or --platform '{foreign}'");
    let on_overlayfs = ["--snapshotter", "overlayfs", "--platform", &foreign_erofs];
    let want = ["FailedPrecondition", &message, &next];
    behind.assert_says(&abroad, &on_overlayfs, want)?;

    nydus_takes_its_own(&behind)?;
    for method in [Method::LEASE_CREATE, Method::PREPARE] {
        ensure!(behind.tap.count(method) == 0, "{method} was called");
    }
    behind.tap.finish()
}

/// The same for an image that is there in Nydus' own format too; what is taken goes past the tap.
fn nydus_takes_its_own(behind: &Behind<'_>) -> Result<()> {
    let node = behind.node;
    let layer = |text: &str| Layer::of(&[Entry::dir("./"), Entry::file("text", text)]);
    let image = Index::new("docker.io/library/nydusified:1")
        .image(ImageBuilder::new("").layer(layer("plain")?))
        .image(
            ImageBuilder::new("")
                .layer(layer("nydus")?)
                // Nydus' tools say it in the index only.
                .listed_os_features([NYDUS]),
        )
        .write(&node.containerd.scratch().join(unique("nydusified")))?;
    node.import(&image)?;
    for (snapshotter, form) in [("nydus", 1), ("overlayfs", 0)] {
        let output = unpack(node, &image, &["--snapshotter", snapshotter])?;
        assert_went(output, snapshotter, &image.entry(form))?;
    }
    let (platform, plain) = (with_feature(NYDUS), host_platform());
    let (reference, config) = (&image.reference, &image.entry(1).config);
    let message = format!(
        "snapshotter erofs does not support platform {platform} of image {reference} (config \
         {config}); it is supported by nydus; of this image erofs takes {plain}"
    );
    let next = format!("take --snapshotter nydus, or --platform '{plain}'");
    let output = behind.ask(
        "unpack",
        &image,
        &["--snapshotter", "erofs", "--platform", &platform],
    )?;
    let error = output.error()?;
    let text = error["message"].as_str().context("no message")?;
    ensure!(text == message, "{text}\nwant {message}");
    ensure!(error["next_step"] == next.as_str(), "{error}");
    Ok(())
}

fn foreign(host: &str) -> String {
    let architecture = resnap_integration::image::foreign_architecture();
    let os = host.split('/').next().unwrap_or_default();
    format!("{os}/{architecture}")
}
