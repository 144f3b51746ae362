// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The time of containerd's own pulls, with resnap as its diff plugin and without.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use resnap_integration::daemon::Options;
use resnap_integration::debian::{Dist, provision};
use resnap_integration::image::Built;
use resnap_integration::registry::Registry;

use crate::setup::{Served, Setup, images, time};
use crate::table::{Row, Table};

const NAMESPACE: &str = "pull";
const ROUNDS: usize = 3;

/// The layers that are unpacked at once where containerd can do that.
const PARALLEL: u32 = 4;

/// The first containerd that takes a diff plugin, that which unpacks layers in parallel, and that whose transfer
/// service unpacks to erofs unasked.
const TAKES_PLUGINS: (u32, u32) = (1, 7);
const UNPACKS_IN_PARALLEL: (u32, u32) = (2, 2);
const TRANSFERS_TO_EROFS: (u32, u32) = (2, 3);

/// A containerd as it is measured, with the plugin or without.
struct Bed {
    variant: String,
    setup: Setup,
    served: Option<Served>,
}

pub(crate) fn run(setup: &Setup) -> Result<Table> {
    let images = images()?;
    let provisioned = provision()?;
    let dists = provisioned.containerds().iter();
    let dists: Vec<_> = dists
        .filter(|dist| is_at_least(dist, TAKES_PLUGINS))
        .collect();
    let dir = setup.containerd.scratch().join("pull");
    let registry = Registry::start(setup.containerd.dist(), &dir)?;
    let mut rows = Vec::new();
    for dist in &dists {
        let beds = beds(setup, dist)?;
        for (name, image) in &images {
            let reference = registry.reference(&format!("{}:1", name.replace(' ', "-")));
            push(&beds[0].setup, image, &reference)?;
            for snapshotter in beds[0].setup.snapshotters() {
                let name = format!("{}: {name} on {snapshotter}", dist.name());
                rows.extend(pull_by_turns(&beds, &name, snapshotter, &reference)?);
            }
        }
        for bed in beds {
            bed.stop()?;
        }
    }
    drop(registry);
    Ok(Table {
        name: "pull",
        about: format!(
            "`ctr images pull` from a registry on loopback, on tmpfs, {ROUNDS} rounds, with resnap as the diff\n\
             plugin and without, and where containerd can, with {PARALLEL} layers unpacked at once. On erofs with\n\
             `--local` where stock containerd does not pull to it otherwise. Ratio: to the first without."
        ),
        containerd: dists
            .iter()
            .map(|dist| dist.name())
            .collect::<Vec<_>>()
            .join(", "),
        cores: std::thread::available_parallelism()?.get(),
        rows,
    })
}

fn is_at_least(dist: &Dist, version: (u32, u32)) -> bool {
    let (major, minor, _) = dist.version();
    (major, minor) >= version
}

/// Returns a containerd without the plugin, and the others to compare with it.
fn beds(setup: &Setup, dist: &Dist) -> Result<Vec<Bed>> {
    let parallel: &[_] = match is_at_least(dist, UNPACKS_IN_PARALLEL) {
        true => &[None, Some(PARALLEL)],
        false => &[None],
    };
    let mut beds = Vec::new();
    for parallel_unpacks in parallel {
        for diff_plugin in [false, true] {
            let options = Options {
                tmpfs: Some("5g"),
                diff_plugin,
                parallel_unpacks: *parallel_unpacks,
                ..Options::default()
            };
            let variant = if diff_plugin { "with" } else { "without" };
            let parallel = parallel_unpacks.map(|count| format!(", {count} at once"));
            let setup = setup.of(dist, options)?;
            beds.push(Bed {
                variant: format!("{variant}{}", parallel.unwrap_or_default()),
                served: diff_plugin.then(|| serve(&setup)).transpose()?,
                setup,
            });
        }
    }
    Ok(beds)
}

impl Bed {
    fn stop(self) -> Result<()> {
        let Self { setup, served, .. } = self;
        drop(served);
        setup.stop()
    }
}

fn pull_by_turns(beds: &[Bed], name: &str, snapshotter: &str, reference: &str) -> Result<Vec<Row>> {
    let mut times = vec![Vec::new(); beds.len()];
    for round in 0..=ROUNDS {
        for (bed, times) in beds.iter().zip(&mut times) {
            let taken = pull(&bed.setup, snapshotter, reference)?;
            println!("{name}, {}: {:.2} s", bed.variant, taken.as_secs_f64());
            // The first one warms up.
            if round > 0 {
                times.push(taken);
            }
        }
    }
    let rows = beds.iter().zip(&times);
    let rows = rows.map(|(bed, times)| Row::timed(format!("{name}, {}", bed.variant), times));
    let mut rows: Vec<_> = rows.collect();
    let first = rows[0].clone();
    for row in &mut rows[1..] {
        row.ratio = row.of(&first);
    }
    Ok(rows)
}

/// Starts the diff plugin.
fn serve(setup: &Setup) -> Result<Served> {
    let config = setup.containerd.scratch().join("diff.toml");
    let socket = setup.containerd.diff_socket();
    std::fs::write(&config, format!("diff.socket = {socket:?}\n"))?;
    let address = setup.containerd.socket();
    let mut command = setup.resnap.on(address);
    command.arg("--config").arg(&config);
    command
        .arg("--runtime-dir")
        .arg(setup.containerd.scratch().join("run"));
    let served = Served::begin(command.arg("serve"), address.with_file_name("proxy.sock"))?;
    ensure!(socket.exists(), "no diff plugin");
    Ok(served)
}

/// Puts the image into the registry, and leaves nothing of it in containerd.
fn push(setup: &Setup, image: &Built, reference: &str) -> Result<()> {
    setup.import(NAMESPACE, image)?;
    setup.ctr(NAMESPACE, &["images", "tag", &image.reference, reference])?;
    setup.ctr(NAMESPACE, &["images", "push", "--plain-http", reference])?;
    setup.ctr(NAMESPACE, &["images", "rm", "--sync", reference])?;
    setup.remove(NAMESPACE, image)
}

/// Pulls an image, and removes it.
fn pull(setup: &Setup, snapshotter: &str, reference: &str) -> Result<Duration> {
    let mut pull: Command = setup.containerd.ctr(NAMESPACE);
    pull.args([
        "images",
        "pull",
        "--plain-http",
        "--snapshotter",
        snapshotter,
    ]);
    if snapshotter == "erofs" && !is_at_least(setup.containerd.dist(), TRANSFERS_TO_EROFS) {
        pull.arg("--local");
    }
    pull.arg(reference).stdout(std::process::Stdio::null());
    let taken = time(&mut pull)?;
    setup.ctr(NAMESPACE, &["images", "rm", "--sync", reference])?;
    Ok(taken)
}
