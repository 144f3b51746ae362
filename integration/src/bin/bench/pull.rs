// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The time of containerd's own pulls, with resnap as its diff plugin and without.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use resnap_integration::daemon::Options;
use resnap_integration::image::Built;
use resnap_integration::registry::Registry;

use crate::setup::{Served, Setup, images, time_all};
use crate::table::{Row, Table};

const NAMESPACE: &str = "pull";
const ROUNDS: usize = 3;

pub(crate) fn run(setup: &Setup) -> Result<Table> {
    let images = images()?;
    let options = |diff_plugin| Options {
        tmpfs: Some("8g"),
        diff_plugin,
        ..Options::default()
    };
    let beds = [
        setup.another(options(false))?,
        setup.another(options(true))?,
    ];
    let [without, with] = &beds;
    let served = serve(with)?;
    let dir = setup.containerd.scratch().join("pull");
    let registry = Registry::start(setup.containerd.dist(), &dir)?;
    let mut rows = Vec::new();
    for (name, image) in &images {
        let reference = registry.reference(&format!("{}:1", name.replace(' ', "-")));
        push(without, image, &reference)?;
        for snapshotter in without.snapshotters() {
            let [mut plain, mut ours] = [const { Vec::new() }; 2];
            for round in 0..=ROUNDS {
                let pull = |bed: &Setup, times: &mut Vec<Duration>, variant: &str| {
                    let taken = pull(bed, snapshotter, &reference)?;
                    println!(
                        "{name} on {snapshotter}, {variant}: {:.2} s",
                        taken.as_secs_f64()
                    );
                    // The first one warms up.
                    if round > 0 {
                        times.push(taken);
                    }
                    anyhow::Ok(())
                };
                pull(without, &mut plain, "without")?;
                pull(with, &mut ours, "with")?;
            }
            let row = |variant| format!("{name} on {snapshotter}, {variant}");
            let plain = Row::timed(row("without"), &plain);
            let ours = Row::timed(row("with"), &ours).against(&plain);
            rows.extend([plain, ours]);
        }
    }
    drop((served, registry));
    for bed in beds {
        bed.stop()?;
    }
    Ok(Table {
        name: "pull",
        about: format!(
            "`ctr images pull` from a registry on loopback, on tmpfs, {ROUNDS} rounds, on two containerds of\n\
             one version: with resnap as the diff plugin and without. On erofs with `--local`, as stock\n\
             containerd does not pull to it otherwise. Ratio: to the one without."
        ),
        containerd: setup.containerd.name(),
        cores: std::thread::available_parallelism()?.get(),
        rows,
    })
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
    if snapshotter == "erofs" {
        pull.arg("--local");
    }
    pull.arg(reference).stdout(std::process::Stdio::null());
    let taken = time_all(&mut [pull])?;
    setup.ctr(NAMESPACE, &["images", "rm", "--sync", reference])?;
    Ok(taken)
}
