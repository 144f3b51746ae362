// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! An image of which nothing is there but its blobs.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use resnap_integration::image::{Built, web};
use resnap_integration::tap::Method;

use crate::setup::{Setup, time_all};
use crate::table::{Row, Table};

const ROUNDS: usize = 7;
const MANY: usize = 16;

pub(crate) fn run(setup: &Setup) -> Result<Table> {
    let image = web()?;
    // Warms up, so that cold caches do not count against the first variant.
    unpack(setup, &image, "cold-first", 1)?;
    let mut samples = [1, MANY].map(|processes| (processes, Vec::new()));
    for round in 0..ROUNDS {
        for (processes, times) in &mut samples {
            let namespace = format!("cold-{round}-{processes}");
            times.push(unpack(setup, &image, &namespace, *processes)?);
        }
        samples.reverse();
    }
    samples.sort_by_key(|(processes, _)| *processes);
    let [one, many] = samples.map(|(processes, times)| {
        let variant = format!("processes at once: {processes}");
        Row::timed(variant, &times)
    });
    let many = Row {
        calls: commits(setup, &image)?,
        ..many.against(&one)
    };
    Ok(Table {
        name: "cold",
        about: format!(
            "`resnap unpack` of {} layers on {}, each time in a new namespace, until the last process\n\
             ends. Of the calls only the Commits of all are counted.",
            image.layers.len(),
            setup.lazy()
        ),
        containerd: setup.containerd.name(),
        cores: std::thread::available_parallelism()?.get(),
        rows: vec![one, many],
    })
}

fn unpack(setup: &Setup, image: &Built, namespace: &str, processes: usize) -> Result<Duration> {
    setup.import(namespace, image)?;
    let socket = setup.containerd.socket();
    let unpack = || setup.unpack(socket, namespace, setup.lazy(), image);
    let mut commands: Vec<Command> = (0..processes).map(|_| unpack()).collect();
    let taken = time_all(&mut commands)?;
    setup.remove(namespace, image)?;
    Ok(taken)
}

/// Counts the Commits of all processes together, by their method.
fn commits(setup: &Setup, image: &Built) -> Result<std::collections::BTreeMap<String, u64>> {
    let namespace = "cold-counted";
    setup.import(namespace, image)?;
    let tap = setup.containerd.tap()?;
    let unpack = || setup.unpack(tap.socket(), namespace, setup.lazy(), image);
    let mut commands: Vec<Command> = (0..MANY).map(|_| unpack()).collect();
    time_all(&mut commands)?;
    let commits = tap.count(Method::COMMIT);
    tap.finish()?;
    setup.remove(namespace, image)?;
    let layers = image.layers.len();
    ensure!(
        commits == layers as u64,
        "{commits} Commits for {layers} layers"
    );
    Ok([(Method::COMMIT.to_string(), commits)].into())
}
