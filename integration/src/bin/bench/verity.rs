// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The speed of hash trees, next to `veritysetup`, and what they cost when images are unpacked.

mod index;
mod unpack;

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use resnap_integration::debian::{output, provision};
use resnap_integration::image::noise;
use resnap_verity::{BlockSize, BoxedError, Leaves, Sidecar, Work, append, verify};

use crate::setup::Setup;
use crate::table::{Row, Table};

/// The size of the data.
const SIZE: u64 = 512 << 20;

const ROUNDS: usize = 5;

const UUID: [u8; 16] = *b"0123456789abcdef";

pub(crate) fn run(setup: &Setup) -> Result<Table> {
    let device = Device::new(setup.containerd.scratch().join("device"))?;
    let mut rows = Vec::new();
    for block in [BlockSize::B4096, BlockSize::B512] {
        rows.extend(device.rows(block)?);
    }
    device.remove()?;
    rows.extend(index::rows(setup)?);
    rows.extend(unpack::rows(setup)?);
    Ok(Table {
        name: "verity",
        about: format!(
            "dm-verity trees of {} MiB in the page cache, written and verified by `veritysetup` and by\n\
             resnap-verity. Digests known: all were computed before, as while an image is written.\n\
             Indexes of the tars of images, by `mkfs.erofs --tar=i` and by resnap-erofs. `resnap unpack` on\n\
             tmpfs without and with trees. Ratio: to the row of the other program, or without a tree.",
            SIZE >> 20
        ),
        containerd: setup.containerd.name(),
        cores: std::thread::available_parallelism()?.get(),
        rows,
    })
}

fn go_on() -> Result<(), BoxedError> {
    Ok(())
}

/// A file with data that is hashed again and again.
struct Device {
    path: PathBuf,
    file: File,
    veritysetup: PathBuf,
}

/// One way to write or verify a tree.
struct Variant<'a> {
    name: String,
    run: Box<dyn Fn() -> Result<()> + 'a>,
    /// Whether the tree is removed first.
    writes: bool,
    samples: Vec<Duration>,
}

impl<'a> Variant<'a> {
    fn new(block: BlockSize, name: &str, writes: bool, run: impl Fn() -> Result<()> + 'a) -> Self {
        Self {
            name: format!("{} bytes, {name}", block.bytes()),
            run: Box::new(run),
            writes,
            samples: Vec::new(),
        }
    }
}

impl Device {
    fn new(path: PathBuf) -> Result<Self> {
        let mut file = File::create_new(&path).with_context(|| format!("create {path:?}"))?;
        let piece = noise(1, 1 << 20);
        while file.stream_position()? < SIZE {
            file.write_all(&piece)?;
        }
        Ok(Self {
            file: File::options().read(true).write(true).open(&path)?,
            path,
            veritysetup: provision()?.tools().join("veritysetup"),
        })
    }

    fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).with_context(|| format!("remove {:?}", self.path))
    }

    fn rows(&self, block: BlockSize) -> Result<Vec<Row>> {
        let leaves = self.leaves(block)?;
        let sidecar = self.append(block, None, Work::new(&go_on))?;
        let mut variants = self.writers(block, &sidecar, &leaves);
        variants.extend(self.verifiers(block, &sidecar));
        self.measure(&mut variants)?;

        let mut rows = Vec::new();
        for half in variants.chunk_by(|first, second| first.writes == second.writes) {
            let base = half.first().map(|first| Row::timed("", &first.samples));
            let base = base.unwrap_or_default();
            let row =
                |variant: &Variant<'_>| Row::timed(&variant.name, &variant.samples).against(&base);
            rows.extend(half.iter().map(row));
        }
        Ok(rows)
    }

    fn writers<'a>(
        &'a self,
        block: BlockSize,
        sidecar: &'a Sidecar,
        leaves: &'a Leaves,
    ) -> Vec<Variant<'a>> {
        let all = Work::new(&go_on);
        let resnap = |name, leaves, work| {
            Variant::new(block, name, true, move || {
                let written = self.append(block, leaves, work)?;
                ensure!(written == *sidecar, "another tree");
                Ok(())
            })
        };
        vec![
            Variant::new(block, "write: veritysetup", true, move || {
                self.format(block, sidecar)
            }),
            resnap(
                "write: resnap, one core",
                None,
                all.threads(NonZeroUsize::MIN),
            ),
            resnap("write: resnap, all cores", None, all),
            resnap("write: resnap, digests known", Some(leaves), all),
        ]
    }

    fn verifiers<'a>(&'a self, block: BlockSize, sidecar: &'a Sidecar) -> Vec<Variant<'a>> {
        let all = Work::new(&go_on);
        let resnap = |name, work| {
            Variant::new(block, name, false, move || {
                verify(
                    &self.file,
                    sidecar.hash_offset,
                    &sidecar.root_hash,
                    ..,
                    work,
                )?;
                Ok(())
            })
        };
        vec![
            Variant::new(block, "verify: veritysetup", false, move || {
                self.veritysetup_verify(sidecar)
            }),
            resnap("verify: resnap, one core", all.threads(NonZeroUsize::MIN)),
            resnap("verify: resnap, all cores", all),
        ]
    }

    /// Lets all variants take turns.
    fn measure(&self, variants: &mut [Variant<'_>]) -> Result<()> {
        for _ in 0..ROUNDS {
            for variant in &mut *variants {
                if variant.writes {
                    self.file.set_len(SIZE)?;
                }
                let begin = Instant::now();
                (variant.run)().with_context(|| variant.name.clone())?;
                variant.samples.push(begin.elapsed());
            }
        }
        Ok(())
    }

    /// Computes all digests, as a writer of an image would.
    fn leaves(&self, block: BlockSize) -> Result<Leaves> {
        let mut leaves = Leaves::new(block, usize::MAX);
        let mut file = std::io::Read::take(File::open(&self.path)?, SIZE);
        let mut piece = vec![0; 1 << 20];
        loop {
            match std::io::Read::read(&mut file, &mut piece)? {
                0 => return Ok(leaves),
                count => leaves.update(piece.get(..count).unwrap_or_default()),
            }
        }
    }

    fn append(&self, block: BlockSize, leaves: Option<&Leaves>, work: Work<'_>) -> Result<Sidecar> {
        let tree = append(&self.file, SIZE, block, UUID, leaves, work)?;
        Ok(Sidecar::new(tree.root_hash, tree.hash_offset))
    }

    fn format(&self, block: BlockSize, sidecar: &Sidecar) -> Result<()> {
        let said = output(
            self.command("format", sidecar)
                .args([&*self.path, &self.path])
                .arg(format!("--data-block-size={}", block.bytes()))
                .arg(format!("--hash-block-size={}", block.bytes()))
                .arg(format!("--data-blocks={}", SIZE / block.bytes()))
                .arg(format!("--salt={}", "0".repeat(64))),
        )?;
        ensure!(
            said.contains(&sidecar.root_hash.to_string()),
            "another root hash: {said}"
        );
        Ok(())
    }

    fn veritysetup_verify(&self, sidecar: &Sidecar) -> Result<()> {
        let paths: [&Path; 2] = [&self.path, &self.path];
        let root = sidecar.root_hash.to_string();
        output(self.command("verify", sidecar).args(paths).arg(root)).map(drop)
    }

    fn command(&self, action: &str, sidecar: &Sidecar) -> Command {
        let mut command = Command::new(&self.veritysetup);
        let offset = format!("--hash-offset={}", sidecar.hash_offset);
        command.arg(action).arg(offset);
        command
    }
}
