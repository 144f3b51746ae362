// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The most memory that resnap takes.

use anyhow::{Context as _, Result, ensure};
use resnap_integration::image::{Built, MANY_MAX, large_layer, many, million_files, web};
use resnap_integration::tap::{Method, Point};

use crate::process::memory;
use crate::setup::Setup;
use crate::table::{Row, Table};

const NAMESPACE: &str = "memory";

pub(crate) fn run(setup: &Setup) -> Result<Table> {
    let mut rows = Vec::new();
    let images = [
        ("web", web()?),
        ("127 layers", many(MANY_MAX)?),
        ("2 GB in a layer", large_layer()?),
        ("a million files in a layer", million_files()?),
    ];
    for (name, image) in images {
        setup.import(NAMESPACE, &image)?;
        for snapshotter in setup.snapshotters() {
            rows.push(Row {
                variant: format!("{name}, {snapshotter}"),
                peak_kib: Some(peak(setup, &image, snapshotter)?),
                ..Row::default()
            });
        }
        setup.remove(NAMESPACE, &image)?;
    }
    Ok(Table {
        name: "memory",
        about: "the peak resident memory of `resnap unpack` of a cold image".to_owned(),
        containerd: setup.containerd.name(),
        cores: std::thread::available_parallelism()?.get(),
        rows,
    })
}

/// In KiB, read while the process waits for its last call.
fn peak(setup: &Setup, image: &Built, snapshotter: &str) -> Result<u64> {
    let tap = setup.containerd.tap()?;
    let last = tap.hold(Method::LEASE_DELETE, 1, Point::Before);
    let mut unpack = setup.unpack(tap.socket(), NAMESPACE, snapshotter, image);
    let mut child = unpack.spawn().context("start resnap")?;
    let peak = last.wait().and_then(|_| memory(child.id(), "VmHWM"));
    last.release();
    ensure!(child.wait()?.success(), "{unpack:?} failed");
    tap.finish()?;
    peak
}
