// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers that hold what real layers rarely do, one oddity each.
//!
//! Every layer works in a directory of its own below `/t` and states that directory and its
//! parents, unless not stating it is the oddity. A case of several layers is several rows: the
//! order of the table is the order in the image. containerd's walking differ on overlayfs takes
//! all of them from 1.6 to 2.1, and what it makes of them is the reference; it refuses the rows
//! of [`REFUSED`].

mod case;
mod contents;
mod deletions;
mod known;
mod links;
mod metadata;
mod names;
mod refused;
mod replacements;

use anyhow::Result;

use super::archive::cached;
use super::builder::ImageBuilder;
use super::built::Built;
use super::catalog::web_layers;
use super::layer::Compression;

pub use case::Case;
pub use known::{EDGE_CASES_CLOCK, EDGE_CASES_MKFS};
pub use refused::REFUSED;

/// The line that a container of [`edge_cases`] prints.
pub const EDGE_CASES_SAYS: &str = "edge cases";

/// The layers of edge cases, from the lowest. The image has them on two layers of real programs.
pub const EDGE_CASES: [&[Case]; 7] = [
    names::CASES,
    metadata::CASES,
    contents::CASES,
    links::CASES,
    replacements::CASES,
    deletions::CASES,
    metadata::ROOT,
];

/// The number of layers of [`super::web`] below the layers of the table.
const BASE: usize = 2;

/// Taken in turn, so that every kind of blob is in the image.
const COMPRESSIONS: [Compression; 4] = [
    Compression::Gzip,
    Compression::None,
    Compression::GzipMembers,
    Compression::Zstd,
];

/// `docker.io/library/edge_cases:1`: the layers of [`EDGE_CASES`] on a real base.
pub fn edge_cases() -> Result<Built> {
    image("edge-cases", |_| true)
}

/// `docker.io/library/edge_cases-mkfs:1`: those of them that mkfs.erofs 1.8 takes.
pub fn edge_cases_mkfs() -> Result<Built> {
    image("edge-cases-mkfs", |case| case.mkfs_fails.is_none())
}

fn image(name: &str, keep: fn(&&Case) -> bool) -> Result<Built> {
    cached(name, |path| {
        let mut image = ImageBuilder::new(&format!("docker.io/library/{name}:1"))
            .layers(web_layers(BASE)?)
            .cmd([
                "/bin/sh",
                "-c",
                &format!("test -e /t/names && echo {EDGE_CASES_SAYS}"),
            ]);
        let cases = EDGE_CASES.iter().copied().flatten().filter(keep);
        for (case, compression) in cases.zip(COMPRESSIONS.iter().cycle()) {
            image = image.layer(case.layer(*compression)?);
        }
        image.write(path)
    })
}
