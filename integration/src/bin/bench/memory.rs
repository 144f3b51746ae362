// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The most memory that resnap takes.

use anyhow::{Context as _, Result, ensure};
use resnap_integration::image::{Built, MANY_MAX, many, web};
use resnap_integration::tap::{Method, Point};

use crate::bed::{Bed, memory};
use crate::table::{Row, Table};

const NAMESPACE: &str = "memory";

pub(crate) fn run(bed: &Bed) -> Result<Table> {
    let mut rows = Vec::new();
    for image in [web()?, many(MANY_MAX)?] {
        let bytes: u64 = image.layers.iter().map(|layer| layer.size).sum();
        let (layers, megabytes) = (image.layers.len(), bytes as f64 / 1e6);
        rows.push(Row {
            variant: format!("{layers} layers, {megabytes:.1} MB"),
            peak_kib: Some(peak(bed, &image)?),
            ..Row::default()
        });
    }
    Ok(Table {
        name: "memory",
        about: format!(
            "the peak resident memory of `resnap unpack` of a cold image on {}",
            bed.lazy()
        ),
        containerd: bed.containerd.name(),
        cores: std::thread::available_parallelism()?.get(),
        rows,
    })
}

/// In KiB, read while the process waits for its last call.
fn peak(bed: &Bed, image: &Built) -> Result<u64> {
    bed.import(NAMESPACE, image)?;
    let tap = bed.containerd.tap()?;
    let last = tap.hold(Method::LEASE_DELETE, 1, Point::Before);
    let mut unpack = bed.unpack(tap.socket(), NAMESPACE, bed.lazy(), image);
    let mut child = unpack.spawn().context("start resnap")?;
    let peak = last.wait().and_then(|_| memory(child.id(), "VmHWM"));
    last.release();
    ensure!(child.wait()?.success(), "{unpack:?} failed");
    tap.finish()?;
    bed.remove(NAMESPACE, image)?;
    peak
}
