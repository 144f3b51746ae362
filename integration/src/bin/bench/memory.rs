// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The most memory that resnap takes.

use anyhow::{Context as _, Result, ensure};
use resnap_integration::image::{Built, MANY_MAX, large_layer, many, million_files, web};
use resnap_integration::tap::{Method, Point};

use crate::bed::Bed;
use crate::process::memory;
use crate::table::{Row, Table};

const NAMESPACE: &str = "memory";

pub(crate) fn run(bed: &Bed) -> Result<Table> {
    let mut rows = Vec::new();
    let images = [
        ("web", web()?),
        ("127 layers", many(MANY_MAX)?),
        ("2 GB in a layer", large_layer()?),
        ("a million files in a layer", million_files()?),
    ];
    for (name, image) in images {
        bed.import(NAMESPACE, &image)?;
        for snapshotter in bed.snapshotters() {
            rows.push(Row {
                variant: format!("{name}, {snapshotter}"),
                peak_kib: Some(peak(bed, &image, snapshotter)?),
                ..Row::default()
            });
        }
        bed.remove(NAMESPACE, &image)?;
    }
    Ok(Table {
        name: "memory",
        about: "the peak resident memory of `resnap unpack` of a cold image".to_owned(),
        containerd: bed.containerd.name(),
        cores: std::thread::available_parallelism()?.get(),
        rows,
    })
}

/// In KiB, read while the process waits for its last call.
fn peak(bed: &Bed, image: &Built, snapshotter: &str) -> Result<u64> {
    let tap = bed.containerd.tap()?;
    let last = tap.hold(Method::LEASE_DELETE, 1, Point::Before);
    let mut unpack = bed.unpack(tap.socket(), NAMESPACE, snapshotter, image);
    let mut child = unpack.spawn().context("start resnap")?;
    let peak = last.wait().and_then(|_| memory(child.id(), "VmHWM"));
    last.release();
    ensure!(child.wait()?.success(), "{unpack:?} failed");
    tap.finish()?;
    peak
}
