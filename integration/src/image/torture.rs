// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers that hold what real layers rarely do, one oddity each.
//!
//! Every layer works in a directory of its own below `/t` and states that directory and its
//! parents, unless not stating it is the oddity. A case of several layers is several rows: the
//! order of the table is the order in the image. containerd's walking differ on overlayfs takes
//! all of them from 1.6 to 2.1, and what it makes of them is the reference; it refuses the rows
//! of [`REFUSED`].

mod contents;
mod deletions;
mod known;
mod links;
mod metadata;
mod names;
mod refused;
mod replacements;

use std::io;

use anyhow::{Context, Result};

use super::archive::cached;
use super::builder::ImageBuilder;
use super::built::Built;
use super::catalog::web_layers;
use super::layer::{Compression, Layer};
use super::tape::{self, Entry};

pub use known::{TORTURE_CLOCK, TORTURE_MKFS};
pub use refused::REFUSED;

/// The line that a container of [`torture`] prints.
pub const TORTURE_SAYS: &str = "tortured";

/// A layer of the table: its name and what makes its tar.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// What is odd about it.
    pub name: &'static str,
    /// Makes the uncompressed tar.
    pub tar: fn() -> io::Result<Vec<u8>>,
    /// How mkfs.erofs 1.8, with which containerd 2.1 makes EROFS layers, fails on it.
    pub mkfs_fails: Option<&'static str>,
}

/// The torture layers, from the lowest; the image has them on two layers of real programs.
pub const TORTURE: [&[Case]; 7] = [
    names::CASES,
    metadata::CASES,
    contents::CASES,
    links::CASES,
    replacements::CASES,
    deletions::CASES,
    metadata::ROOT,
];

/// How many of the layers of [`super::web`] are below the torture layers.
const BASE: usize = 2;

/// Taken in turn, so that every kind of blob is in the image.
const COMPRESSIONS: [Compression; 4] = [
    Compression::Gzip,
    Compression::None,
    Compression::GzipMembers,
    Compression::Zstd,
];

/// `docker.io/library/torture:1`: the layers of [`TORTURE`] on a real base.
pub fn torture() -> Result<Built> {
    image("torture", |_| true)
}

/// `docker.io/library/torture-mkfs:1`: those of them that mkfs.erofs 1.8 takes.
pub fn torture_mkfs() -> Result<Built> {
    image("torture-mkfs", |case| case.mkfs_fails.is_none())
}

fn image(name: &str, keep: fn(&&Case) -> bool) -> Result<Built> {
    cached(name, |path| {
        let mut image = ImageBuilder::new(&format!("docker.io/library/{name}:1"))
            .layers(web_layers(BASE)?)
            .cmd([
                "/bin/sh",
                "-c",
                &format!("test -e /t/names && echo {TORTURE_SAYS}"),
            ]);
        let cases = TORTURE.iter().copied().flatten().filter(keep);
        for (case, compression) in cases.zip(COMPRESSIONS.iter().cycle()) {
            image = image.layer(case.layer(*compression)?);
        }
        image.write(path)
    })
}

impl Case {
    const fn new(name: &'static str, tar: fn() -> io::Result<Vec<u8>>) -> Self {
        Self {
            name,
            tar,
            mkfs_fails: None,
        }
    }

    const fn mkfs_fails(mut self, how: &'static str) -> Self {
        self.mkfs_fails = Some(how);
        self
    }

    /// The layer of this case.
    pub fn layer(&self, compression: Compression) -> Result<Layer> {
        let tar = (self.tar)().with_context(|| format!("cannot write the layer {}", self.name))?;
        Layer::new(&tar, compression)
    }
}

/// The tar of `entries` with their paths, and the targets of hard links, taken from `dir`, which
/// is stated before them with its parents.
fn within<const N: usize>(dir: &str, entries: [Entry; N]) -> io::Result<Vec<u8>> {
    all_within(dir, entries.to_vec())
}

/// [`within`] for entries that are counted at run time.
fn all_within(dir: &str, entries: Vec<Entry>) -> io::Result<Vec<u8>> {
    let mut all: Vec<_> = dir
        .match_indices('/')
        .map(|(end, _)| Entry::dir(&dir[..end]))
        .chain([Entry::dir(dir)])
        .collect();
    for mut entry in entries {
        entry.path = [dir.as_bytes(), b"/", &entry.path].concat();
        if entry.typeflag == b'1' {
            entry.link = [dir.as_bytes(), b"/", &entry.link].concat();
        }
        all.push(entry);
    }
    tape::pack(&all)
}

/// `length` bytes that do not compress, always the same ones.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}
