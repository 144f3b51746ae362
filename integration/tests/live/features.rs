// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images in several forms: who gets which, and what is said where a form is not taken.

pub(crate) mod format;
pub(crate) mod pods;
pub(crate) mod refused;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::image::{
    Built, Compression, Entry, Form, ImageBuilder, Index, Layer, digest, forms, tar_entry,
};
use serde_json::{Value, json};

use crate::command::{CommandOutput, run_to_end};
use crate::errors::assert_error;
use crate::node::{Node, host_platform, unique};
use crate::served::Served;
use crate::suite::live_tests;
use crate::unpack::assert_labels;

live_tests! {
    Erofs: features_each_snapshotter_gets_its_form,
    Erofs: features_a_platform_chooses_the_snapshotter,
    Erofs: features_missing_content_is_not_chosen,
    Containerd: features_configurations_are_tried_in_order,
    Erofs: features_do_not_depend_on_the_order_of_the_index,
    Erofs: features_config_and_index_disagree,
    Erofs: features_of_both_kinds_in_one_image,
    Erofs: features_of_compressed_images,
    Containerd: features_check_warns_of_an_index,
}

/// The usual image: what everybody takes first, as it should be.
const USUAL: [Form; 3] = [Form::Plain, Form::Foreign, Form::Erofs];

/// This machine's platform with EROFS images.
fn erofs_platform() -> String {
    with_feature("erofs")
}

fn with_feature(feature: &str) -> String {
    host_platform().replace('/', &format!("(+{feature})/"))
}

/// `resnap unpack --json` of an image, with these arguments.
fn unpack(node: &Node, image: &Built, arguments: &[&str]) -> Result<CommandOutput> {
    node.resnap(&[&["unpack", "--json", &image.reference], arguments].concat())
}

/// Runs `resnap unpack --json` of an image with this configuration file.
fn unpack_configured(node: &Node, image: &Built, config: &str) -> Result<CommandOutput> {
    let mut command = node.configured_command(config)?;
    run_to_end(command.args(["unpack", "--json", &image.reference]))
}

/// Checks that the image was unpacked on this snapshotter by the first manifest of `image`.
fn assert_went(output: CommandOutput, snapshotter: &str, image: &Built) -> Result<()> {
    let report = output.report()?;
    ensure!(report["snapshotter"] == json!(snapshotter), "{report}");
    ensure!(report["manifest"] == json!(image.manifest), "{report}");
    Ok(())
}

/// Checks that `check` reports this manifest for a snapshotter.
fn assert_chosen(node: &Node, reference: &str, snapshotter: &str, image: &Built) -> Result<()> {
    let check = ["check", "--json", reference, "--snapshotter", snapshotter];
    let output = node.resnap(&check)?;
    // Whether it is ready is another question.
    ensure!(matches!(output.code, Some(0 | 1)), "{output:?}");
    let check: Value = serde_json::from_str(&output.stdout)?;
    ensure!(
        check[0]["manifest"] == json!(image.manifest),
        "{reference} on {snapshotter}: {check}"
    );
    Ok(())
}

/// Returns the bytes of each layer's file in its snapshot on erofs, from the lowest.
fn layer_files(node: &Node, image: &Built) -> Result<Vec<Vec<u8>>> {
    let snapshots = node
        .containerd
        .root()
        .join("io.containerd.snapshotter.v1.erofs/snapshots");
    let mut below = BTreeSet::new();
    let mut files = Vec::new();
    for layer in &image.layers {
        let key = unique("look");
        let erofs = ["snapshots", "--snapshotter", "erofs"];
        let view = ["view", "--mounts", &key, &layer.chain_id];
        let mounts = node.ctr(&[&erofs[..], &view].concat())?;
        // Nothing keeps it: garbage collection may have been faster.
        let _ = node.ctr(&[&erofs[..], &["rm", &key]].concat());
        let prefix = format!("{}/", snapshots.display());
        let ids = mounts.split(&prefix).skip(1);
        let ids: BTreeSet<PathBuf> = ids
            .filter_map(|rest| rest.split('/').next())
            .map(|id| snapshots.join(id))
            .collect();
        let own: Vec<&PathBuf> = ids.difference(&below).collect();
        let [own] = own[..] else {
            anyhow::bail!("{} is not one snapshot more: {mounts}", layer.chain_id);
        };
        files.push(fs::read(own.join("layer.erofs"))?);
        below = ids;
    }
    Ok(files)
}

/// Checks that the files in the snapshots are the blobs, byte for byte.
fn assert_copied(node: &Node, image: &Built) -> Result<()> {
    let files = layer_files(node, image)?;
    for (layer, file) in image.layers.iter().zip(files) {
        // An uncompressed layer's blob is what its diff ID says.
        ensure!(digest(&file) == layer.diff_id, "{layer:?} was changed");
    }
    Ok(())
}

fn features_each_snapshotter_gets_its_form(node: &Node) -> Result<()> {
    let image = forms(&USUAL)?;
    let native = image.entry(2);
    node.import(&image)?;
    for (snapshotter, form, name) in [("overlayfs", &image, "plain"), ("erofs", &native, "erofs")] {
        assert_went(
            unpack(node, &image, &["--snapshotter", snapshotter])?,
            snapshotter,
            form,
        )?;
        assert_labels(node, snapshotter, form, &[])?;
        node.assert_nothing_left(snapshotter)?;
        let check = ["check", &image.reference, "--snapshotter", snapshotter];
        node.resnap(&check)?.ok()?;
        if snapshotter == "overlayfs" {
            let output = node.run(snapshotter, &image.reference)?;
            ensure!(output == name, "from {snapshotter} it says {output:?}");
        }
    }
    assert_copied(node, &native)?;
    let images = node.resnap(&["images", "--json"])?.json()?;
    for snapshotter in ["overlayfs", "erofs"] {
        ensure!(images[0]["ready"][snapshotter] == json!(true), "{images}");
    }
    // containerd has no way to say which form a container gets; of an image that has one form only
    // it takes that, and finds it unpacked.
    let alone = forms(&[Form::Erofs])?;
    ensure!(alone.chain_id() == native.chain_id(), "{alone:?}");
    node.import(&alone)?;
    let before = node.snapshots("erofs")?;
    let output = node.run("erofs", &alone.reference)?;
    ensure!(output == "erofs", "it says {output:?}");
    ensure!(node.snapshots("erofs")? == before, "{before:?}");
    Ok(())
}

fn features_a_platform_chooses_the_snapshotter(node: &Node) -> Result<()> {
    let image = forms(&USUAL)?;
    let native = image.entry(2);
    node.import(&image)?;
    let (plain, erofs) = (host_platform(), erofs_platform());
    let via = |arguments: &[&str]| unpack(node, &image, arguments);
    assert_went(via(&["--platform", &erofs])?, "erofs", &native)?;
    assert_went(
        via(&["--platform", &erofs, "--snapshotter", "erofs"])?,
        "erofs",
        &native,
    )?;
    assert_went(via(&["--platform", &plain])?, "overlayfs", &image)?;
    // On request, the plain one is converted.
    assert_went(
        via(&["--platform", &plain, "--snapshotter", "erofs"])?,
        "erofs",
        &image,
    )?;
    // An image that has no other form than the plain one is converted too.
    let only = forms(&[Form::Plain, Form::Foreign])?;
    node.import(&only)?;
    assert_went(
        unpack(node, &only, &["--platform", &erofs])?,
        "erofs",
        &only,
    )?;
    assert_labels(node, "erofs", &native, &[])?;
    assert_labels(node, "erofs", &image, &[])?;
    node.assert_nothing_left("erofs")
}

fn features_missing_content_is_not_chosen(node: &Node) -> Result<()> {
    let image = forms(&USUAL)?;
    let native = image.entry(2);
    let on = |snapshotter: &str| unpack(node, &image, &["--snapshotter", snapshotter]);
    let named = || unpack(node, &image, &["--platform", &erofs_platform()]);
    for missing in [&native.layers[1].digest, &native.config, &native.manifest] {
        node.import(&image)?;
        node.ctr(&["content", "rm", missing])?;
        assert_went(on("erofs")?, "erofs", &image)?;
        // An explicit request for it fails.
        assert_error(named()?, "NotFound", &[missing], "pull it again")?;
    }
    let output = node.run("erofs", &image.reference)?;
    let first = "plain";
    ensure!(output == first, "it says {output:?}");
    // Once it is unpacked its layers are needed no more.
    node.import(&image)?;
    assert_went(on("erofs")?, "erofs", &native)?;
    for layer in &native.layers {
        node.ctr(&["content", "rm", &layer.digest])?;
    }
    assert_went(on("erofs")?, "erofs", &native)?;
    node.assert_nothing_left("erofs")
}

/// `[[unpack]]` with these platforms and snapshotters.
fn configuration(entries: &[(&str, &str, bool)]) -> String {
    let entries = entries.iter().map(|(platform, snapshotter, optional)| {
        format!(
            "[[unpack]]\nplatform = {platform:?}\nsnapshotter = {snapshotter:?}\noptional = {optional}\n"
        )
    });
    entries.collect()
}

fn features_configurations_are_tried_in_order(node: &Node) -> Result<()> {
    let image = forms(&USUAL)?;
    let (native, alone) = (image.entry(2), forms(&[Form::Erofs])?);
    let only = forms(&[Form::Plain, Form::Foreign])?;
    for image in [&image, &alone, &only] {
        node.import(image)?;
    }
    let (plain, erofs) = (&*host_platform(), &*erofs_platform());
    let has_erofs = node.containerd.has_erofs();
    // The default.
    assert_went(unpack(node, &image, &[])?, "overlayfs", &image)?;
    let nothing_else = unpack(node, &alone, &[])?;
    if has_erofs {
        assert_went(nothing_else, "erofs", &alone)?;
    } else {
        let says = ["snapshotter overlayfs does not support", erofs];
        assert_error(nothing_else, "FailedPrecondition", &says, "erofs")?;
    }
    // EROFS first, where that is there.
    let first = configuration(&[(erofs, "erofs", true), (plain, "overlayfs", false)]);
    let output = unpack_configured(node, &image, &first)?;
    if has_erofs {
        assert_went(output, "erofs", &native)?;
    } else {
        assert_went(output, "overlayfs", &image)?;
    }
    assert_went(unpack_configured(node, &only, &first)?, "overlayfs", &only)?;
    let must = configuration(&[(erofs, "erofs", false), (plain, "overlayfs", false)]);
    let output = unpack_configured(node, &image, &must)?;
    if has_erofs {
        assert_went(output, "erofs", &native)?;
    } else {
        let says = ["no snapshotter \"erofs\"", "overlayfs"];
        assert_error(output, "FailedPrecondition", &says, "resnap snapshotters")?;
        // Nor is it there for who names the platform.
        let output = unpack(node, &image, &["--platform", erofs])?;
        assert_error(output, "FailedPrecondition", &says, "resnap snapshotters")?;
    }
    // Nobody knows what that is.
    let output = unpack(node, &image, &["--platform", &with_feature("nosuch")])?;
    let says = [
        &*with_feature("nosuch"),
        "no snapshotter is known to take OS feature \"nosuch\"",
    ];
    assert_error(output, "FailedPrecondition", &says, "--platform")?;
    node.assert_nothing_left("overlayfs")
}

fn features_do_not_depend_on_the_order_of_the_index(node: &Node) -> Result<()> {
    let [a, b, c] = USUAL;
    for order in [
        [a, b, c],
        [a, c, b],
        [b, a, c],
        [b, c, a],
        [c, a, b],
        [c, b, a],
    ] {
        let image = forms(&order)?;
        node.import(&image)?;
        for (form, snapshotter) in [(Form::Plain, "overlayfs"), (Form::Erofs, "erofs")] {
            let index = order.iter().position(|listed| *listed == form);
            let chosen = image.entry(index.context("an order without it")?);
            assert_chosen(node, &image.reference, snapshotter, &chosen)?;
        }
    }
    Ok(())
}

/// Returns a small layer in both forms.
fn small(text: &str) -> Result<[Layer; 2]> {
    let tar = tar_entry::pack(&[Entry::dir("./"), Entry::file("text", text)])?;
    Ok([
        Layer::new(&tar, Compression::Gzip)?,
        Layer::erofs(&tar, Compression::None)?,
    ])
}

/// Checks that only erofs takes the manifest that is chosen.
fn assert_only_on_erofs(node: &Node, image: &Built, chosen: &Built, how: &[&str]) -> Result<()> {
    let on = |snapshotter| [&["--snapshotter", snapshotter], how].concat();
    let says = [
        &*format!(
            "snapshotter overlayfs does not support platform {} of image {} (config {})",
            erofs_platform(),
            image.reference,
            chosen.config
        ),
        "it is supported by erofs",
    ];
    let output = unpack(node, image, &on("overlayfs"))?;
    assert_error(output, "FailedPrecondition", &says, "--snapshotter erofs")?;
    assert_went(unpack(node, image, &on("erofs"))?, "erofs", chosen)?;
    assert_copied(node, chosen)?;
    let leases = node.leases()?;
    ensure!(leases.is_empty(), "{leases:?}");
    ensure!(node.snapshots("overlayfs")?.is_empty());
    Ok(())
}

fn features_config_and_index_disagree(node: &Node) -> Result<()> {
    let scratch = node.containerd.scratch();
    let image = |text: &str| {
        let [_, layer] = small(text)?;
        anyhow::Ok(ImageBuilder::new("").layer(layer))
    };
    let plain = || {
        let [layer, _] = small("plain")?;
        anyhow::Ok(ImageBuilder::new("").layer(layer))
    };

    // For a single manifest, the platform is in the config only.
    let alone = forms(&[Form::Erofs])?;
    node.import(&alone)?;
    assert_only_on_erofs(node, &alone, &alone, &[])?;

    // The index says erofs, and the config does not.
    let index = Index::new("docker.io/library/listed:1")
        .image(plain()?)
        .image(image("listed")?.listed_os_features(["erofs"]))
        .write(&scratch.join(unique("listed")))?;
    node.import(&index)?;
    assert_chosen(node, &index.reference, "overlayfs", &index)?;
    assert_went(
        unpack(node, &index, &["--snapshotter", "erofs"])?,
        "erofs",
        &index.entry(1),
    )?;
    let named = ["--platform", &erofs_platform()];
    assert_only_on_erofs(node, &index, &index.entry(1), &named)?;

    // The config says erofs, and the index does not.
    let index = Index::new("docker.io/library/unlisted:1")
        .image(
            image("unlisted")?
                .os_features(["erofs"])
                .listed_os_features([]),
        )
        .write(&scratch.join(unique("unlisted")))?;
    node.import(&index)?;
    assert_only_on_erofs(node, &index, &index, &[])?;

    // Neither says so, and the layers are.
    let index = Index::new("docker.io/library/silent:1")
        .image(image("silent")?)
        .write(&scratch.join(unique("silent")))?;
    node.import(&index)?;
    assert_only_on_erofs(node, &index, &index, &[])
}

fn features_of_both_kinds_in_one_image(node: &Node) -> Result<()> {
    let image = forms(&[Form::Mixed])?;
    node.import(&image)?;
    let output = unpack(node, &image, &["--snapshotter", "overlayfs"])?;
    let says = [&*format!(
        "snapshotter overlayfs does not support platform {} of image {} (config {})",
        erofs_platform(),
        image.reference,
        image.config
    )];
    assert_error(output, "FailedPrecondition", &says, "--snapshotter erofs")?;
    ensure!(node.snapshots("overlayfs")?.is_empty());
    node.unpack("erofs", &image.reference)?;
    assert_labels(node, "erofs", &image, &[])?;
    node.assert_nothing_left("erofs")?;
    let output = node.run("erofs", &image.reference)?;
    ensure!(output == "mixed", "it says {output:?}");
    Ok(())
}

fn features_check_warns_of_an_index(node: &Node) -> Result<()> {
    let served = Served::start(node)?;
    let check = |image: &Built, arguments: &[&str], daemon: bool| {
        let mut command = node.resnap_command()?;
        if daemon {
            command.env("RESNAP_RUNTIME_DIR", &served.dir);
        }
        run_to_end(command.args([&["check", &image.reference], arguments].concat()))?.ok()
    };
    let mut seen = BTreeMap::new();
    for order in [
        &USUAL[..],
        &[Form::Erofs, Form::Foreign, Form::Plain],
        // For another architecture, and without alternatives.
        &[Form::ForeignErofs, Form::Plain],
        &[Form::Erofs],
    ] {
        let image = forms(order)?;
        node.import(&image)?;
        for daemon in [false, true] {
            let json: Value = serde_json::from_str(&check(&image, &["--json"], daemon)?)?;
            let text = check(&image, &[], daemon)?;
            let warnings = json[0]["warnings"].clone();
            let warnings: Vec<String> = serde_json::from_value(warnings)?;
            for warning in &warnings {
                ensure!(text.contains(&format!("warning: {warning}")), "{text}");
            }
            ensure!(warnings.is_empty() != text.contains("warning: "), "{text}");
            seen.insert((order.len(), order[0].name(), daemon), warnings);
        }
    }
    let warned: Vec<_> = seen.iter().filter(|(_, told)| !told.is_empty()).collect();
    let says = format!(
        "the index lists {} before {}",
        erofs_platform(),
        host_platform()
    );
    for daemon in [false, true] {
        let told = &seen[&(3, "erofs", daemon)];
        ensure!(told.len() == 1 && told[0].starts_with(&says), "{told:?}");
    }
    ensure!(warned.len() == 2, "{warned:?}");
    // This is the behavior that the warning is about.
    let wrong = forms(&[Form::Erofs, Form::Foreign, Form::Plain])?;
    let unpacked = node.unpack_by_containerd("overlayfs", &wrong.reference);
    let takes_first = node.containerd.version() < (2, 0, 0);
    ensure!(unpacked.is_err() == takes_first, "{unpacked:?}");
    node.unpack("overlayfs", &wrong.reference)?;
    served.stop()
}

/// Compressed EROFS images, which containerd's own differ takes since 2.3.
fn features_of_compressed_images(node: &Node) -> Result<()> {
    let image = forms(&[Form::Plain, Form::ErofsZstd])?;
    let native = image.entry(1);
    node.import(&image)?;
    ensure!(
        native
            .layers
            .iter()
            .all(|layer| layer.digest != layer.diff_id)
    );
    assert_went(
        unpack(node, &image, &["--snapshotter", "erofs"])?,
        "erofs",
        &native,
    )?;
    assert_labels(node, "erofs", &native, &[])?;
    assert_copied(node, &native)?;
    node.assert_nothing_left("erofs")?;
    let alone = forms(&[Form::ErofsZstd])?;
    node.import(&alone)?;
    let output = node.run("erofs", &alone.reference)?;
    ensure!(output == "zstd", "it says {output:?}");
    assert_only_on_erofs(node, &alone, &alone, &[])
}
