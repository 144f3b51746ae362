// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The speed of writing layers: in resnap's process, or by containerd's differ.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use flate2::bufread::MultiGzDecoder;
use resnap_integration::daemon::Options;
use resnap_integration::image::Built;
use sha2::{Digest as _, Sha256};

use crate::process::cpu;
use crate::sample::{Sample, median};
use crate::setup::{Resnap, Setup, images};
use crate::table::{Row, Table};

const NAMESPACE: &str = "apply";

/// Places for containerd's files, with the number of rounds in each; a disk is slow.
const PLACES: [(&str, Option<&str>, usize); 2] = [("tmpfs", Some("6g"), 3), ("disk", None, 1)];

/// As the configuration has them; the first is what the others are compared with.
const DIFFERS: [&str; 2] = ["containerd", "resnap"];

pub(crate) fn run(setup: &Setup) -> Result<Table> {
    let images = images()?;
    let mut rows = Vec::new();
    for (place, tmpfs, rounds) in PLACES {
        let there = setup.another(Options {
            tmpfs,
            ..Options::default()
        })?;
        for (name, image) in &images {
            let label = format!("{name}, {place}");
            rows.extend(image_rows(&there, image, &label, rounds)?);
        }
        there.stop()?;
    }
    let (places, cores) = (PLACES.len(), std::thread::available_parallelism()?.get());
    Ok(Table {
        name: "apply",
        about: format!(
            "`resnap unpack` of cold images in {places} places, the layers written by resnap or by\n\
             containerd's differ (`differ` in the configuration). CPU: of resnap and containerd with\n\
             their children. Peak: of resnap. Ratio: to containerd's. Floor: inflating, SHA-256 and\n\
             one copy, measured on one core and divided by {cores}, as if perfectly spread. Other: the\n\
             least time, to another build's."
        ),
        containerd: setup.containerd.name(),
        cores,
        rows,
    })
}

fn image_rows(setup: &Setup, image: &Built, label: &str, rounds: usize) -> Result<Vec<Row>> {
    setup.import(NAMESPACE, image)?;
    let mut variants = Vec::new();
    for snapshotter in setup.snapshotters() {
        for resnap in setup.resnaps() {
            for differ in DIFFERS {
                variants.push(Variant {
                    resnap,
                    snapshotter,
                    differ,
                    samples: Vec::new(),
                });
            }
        }
    }
    let mut floors = Vec::new();
    // Warms up, so that cold caches do not count against the first variant.
    floor(setup, image)?;
    for _ in 0..rounds {
        floors.push(floor(setup, image)?);
        for variant in &mut variants {
            let sample = variant.unpack(setup, image)?;
            sample.show(&variant.name(label));
            variant.samples.push(sample);
        }
        variants.reverse();
    }
    if rounds % 2 == 1 {
        variants.reverse();
    }
    setup.remove(NAMESPACE, image)?;

    let cores = u32::try_from(std::thread::available_parallelism()?.get())?;
    let cpu = median(floors.iter().map(Duration::as_secs_f64).collect());
    let spread: Vec<Duration> = floors.iter().map(|floor| *floor / cores).collect();
    let floor = Row {
        cpu_seconds: cpu,
        ..Row::timed(format!("{label}: floor"), &spread)
    };
    let mut rows = Vec::new();
    for variant in &variants {
        let beside = |resnap: &Resnap, differ: &str| {
            let mut all = variants.iter();
            let found = all.find(|other| {
                other.snapshotter == variant.snapshotter
                    && other.differ == differ
                    && std::ptr::eq(other.resnap, resnap)
            });
            found.map(|found| found.row(label, &floor))
        };
        let mut row = variant.row(label, &floor);
        if variant.differ != DIFFERS[0] {
            let containerds = beside(variant.resnap, DIFFERS[0]);
            row.ratio = containerds.and_then(|containerds| row.of(&containerds));
        }
        if let (Some(other), true) = (&setup.other, std::ptr::eq(variant.resnap, &setup.resnap)) {
            row = match beside(other, variant.differ) {
                Some(others) => row.beside(&others),
                None => row,
            };
        }
        rows.push(row);
    }
    rows.push(floor);
    Ok(rows)
}

/// One way to unpack.
struct Variant<'a> {
    resnap: &'a Resnap,
    snapshotter: &'static str,
    differ: &'static str,
    samples: Vec<Sample>,
}

impl Variant<'_> {
    fn name(&self, label: &str) -> String {
        let (snapshotter, differ) = (self.snapshotter, self.differ);
        self.resnap
            .row(&format!("{label}, {snapshotter}: {differ}"))
    }

    fn row(&self, label: &str, floor: &Row) -> Row {
        let row = Sample::row(self.name(label), &self.samples);
        Row {
            of_floor: row.of(floor),
            ..row
        }
    }

    /// Unpacks the image, and removes what came of it.
    fn unpack(&self, setup: &Setup, image: &Built) -> Result<Sample> {
        let (snapshotter, differ) = (self.snapshotter, self.differ);
        let config = setup.containerd.scratch().join(format!("{differ}.toml"));
        let text = format!("[snapshotters.{snapshotter}]\ndiffer = \"{differ}\"\n");
        fs::write(&config, text).with_context(|| format!("write {config:?}"))?;
        // Otherwise the measurement would include writes of other variants.
        rustix::fs::sync();
        let daemon = setup
            .containerd
            .pid()
            .context("containerd is not running")?;
        let socket = setup.containerd.socket();
        let mut command = self.resnap.unpack(socket, NAMESPACE, snapshotter, image);
        command.arg("--config").arg(&config);
        let before = cpu(daemon)?.0;
        let mut sample = Sample::of(&mut command)?;
        sample.cpu += cpu(daemon)?.0 - before;
        setup.remove_snapshots(NAMESPACE, snapshotter, image)?;
        Ok(sample)
    }
}

/// Measures the floor on one core: inflating, hashing and writing each layer.
fn floor(setup: &Setup, image: &Built) -> Result<Duration> {
    let blobs = "io.containerd.content.v1.content/blobs";
    let blobs = setup.containerd.root().join(blobs);
    let to = setup.containerd.scratch().join("floor");
    let mut buffer = vec![0; 256 * 1024];
    let mut taken = Duration::ZERO;
    rustix::fs::sync();
    for layer in &image.layers {
        let begin = Instant::now();
        let blob = File::open(blobs.join(layer.digest.replace(':', "/")))?;
        let blob = std::io::BufReader::with_capacity(256 * 1024, blob);
        let mut inflated = MultiGzDecoder::new(blob);
        let (mut hash, mut out) = (Sha256::new(), File::create(&to)?);
        loop {
            let count = inflated.read(&mut buffer)?;
            let bytes = buffer.get(..count).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            hash.update(bytes);
            out.write_all(bytes)?;
        }
        let hex = hash.finalize();
        let hex: String = hex.iter().map(|byte| format!("{byte:02x}")).collect();
        taken += begin.elapsed();
        ensure!(layer.diff_id.ends_with(&hex), "a layer is not itself");
        remove(&to)?;
    }
    Ok(taken)
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).with_context(|| format!("remove {path:?}"))
}
