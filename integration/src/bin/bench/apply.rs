// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Who writes layers how fast: resnap itself, or containerd's differ for it.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use flate2::bufread::MultiGzDecoder;
use resnap_integration::daemon::Options;
use resnap_integration::image::{Built, large_files, small_files, web};
use sha2::{Digest as _, Sha256};

use crate::bed::{Bed, memory};
use crate::plot;
use crate::table::{Row, Table};

const NAMESPACE: &str = "apply";

/// Where containerd's files are, and how often all is measured there: a disk takes its time.
const PLACES: [(&str, Option<&str>, usize); 2] = [("tmpfs", Some("6g"), 3), ("disk", None, 1)];

/// As the configuration has them; the first is what the others are compared with.
const DIFFERS: [&str; 2] = ["containerd", "resnap"];

/// How often the kernel says a second of CPU time has ticked, on every architecture.
const TICKS: f64 = 100.0;

/// Often enough for the peak, which only grows, to be that of the last moment.
const LOOK: Duration = Duration::from_millis(2);

/// What one run took.
#[derive(Default)]
struct Sample {
    wall: Duration,
    cpu: f64,
    peak_kib: u64,
}

pub(crate) fn run(bed: &Bed) -> Result<Table> {
    let images = [
        ("small files", small_files()?),
        ("large files", large_files()?),
        ("web", web()?),
    ];
    let mut rows = Vec::new();
    for (place, tmpfs, rounds) in PLACES {
        let there = bed.another(Options {
            tmpfs,
            ..Options::default()
        })?;
        for (name, image) in &images {
            let label = format!("{name}, {place}");
            rows.extend(image_rows(&there, image, &label, rounds)?);
        }
        there.stop()?;
    }
    plot::write("apply", &rows)?;
    let (places, cores) = (PLACES.len(), std::thread::available_parallelism()?.get());
    Ok(Table {
        name: "apply",
        about: format!(
            "`resnap unpack` of cold images in {places} places, the layers written by resnap or by\n\
             containerd's differ (`differ` in the configuration). CPU: of resnap and containerd with\n\
             their children. Peak: of resnap. Ratio: to containerd's. Floor: inflating, SHA-256 and\n\
             one copy, measured on one core and divided by {cores}, as if perfectly spread."
        ),
        containerd: bed.containerd.name(),
        cores,
        rows,
    })
}

fn image_rows(bed: &Bed, image: &Built, label: &str, rounds: usize) -> Result<Vec<Row>> {
    bed.import(NAMESPACE, image)?;
    let mut variants = Vec::new();
    for snapshotter in bed.snapshotters() {
        for differ in DIFFERS {
            variants.push((*snapshotter, differ, Vec::new()));
        }
    }
    let mut floors = Vec::new();
    // What is read or loaded for the first time is not to be the first variant's.
    floor(bed, image)?;
    for _ in 0..rounds {
        floors.push(floor(bed, image)?);
        for (snapshotter, differ, samples) in &mut variants {
            let sample = unpack(bed, image, snapshotter, differ)?;
            // It takes minutes.
            println!(
                "{label}, {snapshotter}: {differ}: {:.2} s, {:.2} s CPU, {} KiB",
                sample.wall.as_secs_f64(),
                sample.cpu,
                sample.peak_kib
            );
            samples.push(sample);
        }
        variants.reverse();
    }
    if rounds % 2 == 1 {
        variants.reverse();
    }
    bed.remove(NAMESPACE, image)?;

    let cores = u32::try_from(std::thread::available_parallelism()?.get())?;
    let cpu = median(floors.iter().map(Duration::as_secs_f64).collect());
    let spread: Vec<Duration> = floors.iter().map(|floor| *floor / cores).collect();
    let floor = Row {
        cpu_seconds: cpu,
        ..Row::timed(format!("{label}: floor"), &spread)
    };
    let mut rows = Vec::new();
    let mut containerds = None;
    for (snapshotter, differ, samples) in variants {
        let walls: Vec<_> = samples.iter().map(|sample: &Sample| sample.wall).collect();
        let row = Row::timed(format!("{label}, {snapshotter}: {differ}"), &walls);
        let mut row = Row {
            cpu_seconds: median(samples.iter().map(|sample| sample.cpu).collect()),
            peak_kib: samples.iter().map(|sample| sample.peak_kib).max(),
            of_floor: row.median.zip(floor.median).map(|(own, of)| own / of),
            ..row
        };
        if differ == DIFFERS[0] {
            containerds = row.median;
        } else {
            row.ratio = row.median.zip(containerds).map(|(own, of)| own / of);
        }
        rows.push(row);
    }
    rows.push(floor);
    Ok(rows)
}

/// Unpacks the image, and removes what came of it.
fn unpack(bed: &Bed, image: &Built, snapshotter: &str, differ: &str) -> Result<Sample> {
    let config = bed.containerd.scratch().join(format!("{differ}.toml"));
    let text = format!("[snapshotters.{snapshotter}]\ndiffer = \"{differ}\"\n");
    fs::write(&config, text).with_context(|| format!("write {config:?}"))?;
    // What others wrote is not to be waited for.
    rustix::fs::sync();
    let daemon = bed.containerd.pid().context("containerd is not running")?;
    let socket = bed.containerd.socket();
    let mut command = bed.unpack(socket, NAMESPACE, snapshotter, image);
    command.arg("--config").arg(&config);
    let before = cpu(daemon)?.0 + cpu(std::process::id())?.1;
    let (wall, peak_kib) = watch(&mut command)?;
    let after = cpu(daemon)?.0 + cpu(std::process::id())?.1;
    let chains: Vec<_> = image.layers.iter().rev().collect();
    let mut remove = vec!["snapshots", "--snapshotter", snapshotter, "rm"];
    remove.extend(chains.iter().map(|layer| &*layer.chain_id));
    bed.ctr(NAMESPACE, &remove)?;
    Ok(Sample {
        wall,
        cpu: after - before,
        peak_kib,
    })
}

/// Runs it to its end; with the most memory that it had.
fn watch(command: &mut Command) -> Result<(Duration, u64)> {
    let begin = Instant::now();
    let mut child = command.spawn().context("start resnap")?;
    let mut peak = 0;
    loop {
        // There is none when it is ending.
        peak = memory(child.id(), "VmHWM").unwrap_or(peak);
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "{command:?}: {status}");
            return Ok((begin.elapsed(), peak));
        }
        std::thread::sleep(LOOK);
    }
}

/// The CPU seconds of a process with its ended children, and those of its ended children alone.
fn cpu(process: u32) -> Result<(f64, f64)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name, which may hold anything, is in parentheses; after it the state is field 3.
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    let ticks: Vec<f64> = fields
        .skip(11)
        .take(4)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let [user, system, children_user, children_system] = ticks[..] else {
        anyhow::bail!("{stat:?} has no times");
    };
    let children = (children_user + children_system) / TICKS;
    Ok(((user + system) / TICKS + children, children))
}

/// What nobody can do without, on one core: inflating, hashing and writing each layer.
fn floor(bed: &Bed, image: &Built) -> Result<Duration> {
    let blobs = "io.containerd.content.v1.content/blobs";
    let blobs = bed.containerd.root().join(blobs);
    let to = bed.containerd.scratch().join("floor");
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

fn median(mut samples: Vec<f64>) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied()
}
