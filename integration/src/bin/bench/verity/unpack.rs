// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The cost of trees when images are unpacked, and of `resnap verify`.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use resnap_integration::daemon::Options;
use resnap_integration::debian::output;
use resnap_integration::dm_verity::with_dm_verity;
use resnap_integration::image::Built;

use crate::sample::Sample;
use crate::setup::{Setup, images};
use crate::table::Row;

const NAMESPACE: &str = "verity";
const ROUNDS: usize = 5;

/// The forms of layers, each without and with a tree.
const FORMS: [(&str, &str); 2] = [("image", "full"), ("tar index", "tar-index")];

pub(super) fn rows(setup: &Setup) -> Result<Vec<Row>> {
    let there = setup.another(Options {
        tmpfs: Some("9g"),
        ..Options::default()
    })?;
    let mut rows = Vec::new();
    for (name, image) in &images()? {
        there.import(NAMESPACE, image)?;
        for (form, mode) in FORMS {
            rows.extend(measure(
                &there,
                image,
                &format!("unpack {name} as {form}"),
                mode,
            )?);
        }
        rows.extend(verify(&there, image, name)?);
        there.remove(NAMESPACE, image)?;
    }
    there.stop()?;
    Ok(rows)
}

fn measure(setup: &Setup, image: &Built, label: &str, mode: &str) -> Result<Vec<Row>> {
    let mut samples = [Vec::new(), Vec::new()];
    // The first round warms up.
    for round in 0..=ROUNDS {
        for (samples, integrity) in samples.iter_mut().zip(["off", "verity"]) {
            let sample = unpack(setup, image, mode, integrity)?;
            if round > 0 {
                sample.show(&format!("{label}, {integrity}"));
                samples.push(sample);
            }
        }
    }
    let [off, verity] = samples;
    let off = Sample::row(format!("{label}: no tree"), &off);
    let verity = Sample::row(format!("{label}: with a tree"), &verity).against(&off);
    Ok(vec![off, verity])
}

/// Unpacks the image, and removes what came of it.
fn unpack(setup: &Setup, image: &Built, mode: &str, integrity: &str) -> Result<Sample> {
    let config = configured(setup, mode, integrity)?;
    let mut command = setup.unpack(setup.containerd.socket(), NAMESPACE, "erofs", image);
    command.arg("--config").arg(&config);
    let sample = Sample::of(&mut with_dm_verity(&command))?;
    setup.remove_snapshots(NAMESPACE, "erofs", image)?;
    Ok(sample)
}

/// Measures `resnap verify`, by trees on erofs and by blobs on overlayfs.
fn verify(setup: &Setup, image: &Built, label: &str) -> Result<Vec<Row>> {
    let (config, socket) = (
        configured(setup, "full", "verity")?,
        setup.containerd.socket(),
    );
    let mut rows = Vec::new();
    for (snapshotter, by) in [("erofs", "trees"), ("overlayfs", "blobs")] {
        let mut command = setup.unpack(socket, NAMESPACE, snapshotter, image);
        command.arg("--config").arg(&config);
        output(&mut with_dm_verity(&command))?;
        let mut samples = Vec::new();
        for _ in 0..ROUNDS {
            let mut command = setup.resnap.on(socket);
            command.args(["--namespace", NAMESPACE, "verify", &image.reference]);
            command
                .args(["--snapshotter", snapshotter, "--config"])
                .arg(&config);
            samples.push(Sample::of(command.stdout(Stdio::null()))?);
        }
        rows.push(Sample::row(format!("verify {label}, by {by}"), &samples));
        setup.remove_snapshots(NAMESPACE, snapshotter, image)?;
    }
    Ok(rows)
}

/// Writes a configuration, and returns its path.
fn configured(setup: &Setup, mode: &str, integrity: &str) -> Result<PathBuf> {
    let config = setup.containerd.scratch().join("verity.toml");
    let text =
        format!("[snapshotters.erofs]\nerofs_mode = \"{mode}\"\nintegrity = \"{integrity}\"\n");
    fs::write(&config, text).with_context(|| format!("write {config:?}"))?;
    Ok(config)
}
