// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The speed of copying layers from another snapshotter, next to unpacking them from their blobs.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::daemon::Options;
use resnap_integration::debian::output;
use resnap_integration::image::Built;

use crate::sample::Sample;
use crate::setup::{Resnap, Setup, images};
use crate::table::{Row, Table};

const NAMESPACE: &str = "sibling";
const ROUNDS: usize = 3;

/// The snapshotters that layers are copied from and to.
const DIRECTIONS: [(&str, &str); 2] = [("overlayfs", "erofs"), ("erofs", "overlayfs")];

/// The ways to get a layer, with the configuration; the first is what the others are compared with.
const WAYS: [(&str, &str); 2] = [("blobs", "never"), ("copies", "always")];

pub(crate) fn run(setup: &Setup) -> Result<Table> {
    ensure!(setup.containerd.has_erofs(), "containerd has no erofs");
    let images = images()?;
    // A disk would hide the work of this process.
    let there = setup.another(Options {
        tmpfs: Some("7g"),
        ..Options::default()
    })?;
    let mut rows = Vec::new();
    for (name, image) in &images {
        for direction in DIRECTIONS {
            rows.extend(measure(&there, image, name, direction)?);
        }
    }
    there.stop()?;
    Ok(Table {
        name: "sibling",
        about: format!(
            "`resnap unpack` of images whose layers another snapshotter has, on tmpfs: from their\n\
             blobs, and as copies (`sources.sibling`), {ROUNDS} rounds. CPU and peak: of resnap.\n\
             Ratio: to that from blobs."
        ),
        containerd: setup.containerd.name(),
        cores: std::thread::available_parallelism()?.get(),
        rows,
    })
}

/// One way to unpack.
struct Variant<'a> {
    resnap: &'a Resnap,
    name: String,
    /// When layers are copied.
    config: &'static str,
    samples: Vec<Sample>,
}

fn measure(
    setup: &Setup,
    image: &Built,
    label: &str,
    (from, to): (&str, &str),
) -> Result<Vec<Row>> {
    setup.import(NAMESPACE, image)?;
    let socket = setup.containerd.socket();
    output(&mut setup.unpack(socket, NAMESPACE, from, image))?;
    let mut variants = Vec::new();
    for resnap in setup.resnaps() {
        for (way, config) in WAYS {
            variants.push(Variant {
                resnap,
                name: resnap.row(&format!("{label}, {from} to {to}: {way}")),
                config,
                samples: Vec::new(),
            });
        }
    }
    // Warms up, so that cold caches do not count against the first variant.
    for variant in &variants {
        variant.unpack(setup, image, to)?;
    }
    for _ in 0..ROUNDS {
        for variant in &mut variants {
            let sample = variant.unpack(setup, image, to)?;
            sample.show(&variant.name);
            variant.samples.push(sample);
        }
    }
    setup.remove(NAMESPACE, image)?;
    let mut rows = Vec::new();
    for of_build in variants.chunks(WAYS.len()) {
        let mut of_build = of_build
            .iter()
            .map(|variant| Sample::row(&*variant.name, &variant.samples));
        let blobs = of_build.next().context("no variant")?;
        let copies = of_build.map(|row| row.against(&blobs));
        let copies: Vec<Row> = copies.collect();
        rows.push(blobs);
        rows.extend(copies);
    }
    Ok(rows)
}

impl Variant<'_> {
    /// Unpacks the image, and removes what came of it.
    fn unpack(&self, setup: &Setup, image: &Built, to: &str) -> Result<Sample> {
        let config = setup.containerd.scratch().join("sibling.toml");
        let text = format!("sources.sibling = \"{}\"\n", self.config);
        fs::write(&config, text).with_context(|| format!("write {config:?}"))?;
        let socket = setup.containerd.socket();
        let mut command = self.resnap.unpack(socket, NAMESPACE, to, image);
        let sample = Sample::of(command.arg("--config").arg(&config))?;
        let is_copy = self.config == "always";
        for layer in &image.layers {
            let info = ["snapshots", "--snapshotter", to, "info", &layer.chain_id];
            let info = output(setup.containerd.ctr(NAMESPACE).args(info))?;
            ensure!(
                info.contains("resnap.io/copied-from") == is_copy,
                "{}: {info}",
                self.name
            );
        }
        setup.remove_snapshots(NAMESPACE, to, image)?;
        Ok(sample)
    }
}
