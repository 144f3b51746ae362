// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! An image that is ready already.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use resnap_integration::image::{Built, MANY_MAX, many, web};

use crate::setup::{Setup, time};
use crate::table::{Row, Table};

const NAMESPACE: &str = "warm";
const SNAPSHOTTER: &str = "overlayfs";
const ROUNDS: usize = 15;

pub(crate) fn run(setup: &Setup) -> Result<Table> {
    let mut rows = Vec::new();
    for image in [web()?, many(MANY_MAX)?] {
        rows.extend(image_rows(setup, &image)?);
    }
    Ok(Table {
        name: "warm",
        about: format!(
            "an image that is ready on {SNAPSHOTTER} already. Nothing of ctr's only looks; nearest\n\
             is `ctr images mount`, which looks at every layer first, as any client of containerd\n\
             does, and then mounts. The ratio is ctr to resnap; unmounting is not counted. Other: the least\n\
             time, to another build's."
        ),
        containerd: setup.containerd.name(),
        cores: std::thread::available_parallelism()?.get(),
        rows,
    })
}

fn image_rows(setup: &Setup, image: &Built) -> Result<Vec<Row>> {
    let unpack = |socket| setup.unpack(socket, NAMESPACE, SNAPSHOTTER, image);
    let socket = setup.containerd.socket();
    setup.import(NAMESPACE, image)?;
    time(&mut unpack(socket))?;
    let dir = setup.containerd.scratch().join("mnt");
    std::fs::create_dir_all(&dir)?;
    let dir = dir.to_string_lossy();
    let mount = |by: Option<&str>| -> Result<Duration> {
        let mut command = setup.containerd.ctr(NAMESPACE);
        // The last address counts.
        by.map(|by| command.args(["--address", by]));
        quiet(&mut command).args(["images", "mount", "--snapshotter", SNAPSHOTTER]);
        let taken = time(command.args([&*image.reference, &*dir]))?;
        let unmount = ["images", "unmount", "--rm", "--snapshotter", SNAPSHOTTER];
        setup.ctr(NAMESPACE, &[&unmount[..], &[&*dir]].concat())?;
        Ok(taken)
    };
    // Without the tap, which takes time of its own.
    let (mut resnap, mut others, mut ctr) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        resnap.push(time(&mut unpack(socket))?);
        if let Some(other) = &setup.other {
            let mut unpack = other.unpack(socket, NAMESPACE, SNAPSHOTTER, image);
            others.push(time(&mut unpack)?);
        }
        ctr.push(mount(None)?);
    }
    let tap = setup.containerd.tap()?;
    time(&mut unpack(tap.socket()))?;
    let resnap_calls = tap.counts();
    tap.reset();
    mount(Some(&tap.socket().to_string_lossy()))?;
    let ctr_calls = tap.counts();
    tap.finish()?;
    setup.remove(NAMESPACE, image)?;
    let layers = image.layers.len();
    let name = format!("{layers} layers: resnap unpack");
    let mut resnap = Row {
        calls: resnap_calls,
        ..Row::timed(setup.resnap.row(&name), &resnap)
    };
    let ctr = Row {
        calls: ctr_calls,
        ..Row::timed(format!("{layers} layers: ctr images mount"), &ctr)
    };
    let ctr = ctr.against(&resnap);
    let other = setup.other.as_ref();
    let other = other.map(|other| Row::timed(other.row(&name), &others));
    if let Some(other) = &other {
        resnap = resnap.beside(other);
    }
    Ok([Some(resnap), other, Some(ctr)]
        .into_iter()
        .flatten()
        .collect())
}

fn quiet(command: &mut Command) -> &mut Command {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::null())
}
