// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images that are large, in entries or in bytes, for measuring.
//!
//! The files consist of bytes of real programs and scripts from Debian packages, repeated from different
//! offsets. They compress as well as the originals, since the window of gzip is 32 KiB. Layers are written
//! directly to the archive, so an image needs no more memory than its source material.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result};
use flate2::write::GzEncoder;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::archive::cached;
use super::builder::host_platform;
use super::built::{Built, BuiltLayer};
use super::layer::digest;
use super::payload::Payload;
use super::tar_entry::{self, EPOCH, Entry};

/// Programs and their libraries.
const PROGRAMS: &[&str] = &[
    "libc6",
    "bash",
    "coreutils",
    "busybox",
    "perl-base",
    "python3.11-minimal",
    "nginx",
    "libssl3",
];

/// The packages whose scripts fill the files.
const SCRIPTS: &[&str] = &["perl-modules-5.36", "libpython3.11-stdlib"];

/// Files of [`small_files`].
pub const SMALL_FILES: usize = 66_000;

/// The layers that they are in.
const SMALL_LAYERS: usize = 3;

/// The files of each layer of [`large_files`], in megabytes.
const LARGE: &[&[usize]] = &[&[420, 310, 270], &[180, 120], &[200], &[60, 40]];

/// Those of [`large_layer`].
const LARGE_LAYER: &[&[usize]] = &[&[1000, 1000]];

/// Files of [`million_files`], in directories of a thousand.
const MILLION: usize = 1_000_000;

/// `docker.io/library/small-files:1`: [`SMALL_FILES`] of 256 bytes to 16 KiB, as a tree of packages
/// of scripts has them.
pub fn small_files() -> Result<Built> {
    bulk(
        "small-files",
        SCRIPTS,
        SMALL_LAYERS,
        |index, material, mut tar| {
            let mut random = Random(index as u64 + 1);
            for dir in ["app", "app/node_modules"] {
                Entry::dir(dir).write(&mut tar)?;
            }
            let files = SMALL_FILES / SMALL_LAYERS;
            let mut written = 0;
            let mut package = 0;
            while written < files {
                let top = format!("app/node_modules/package-{index}-{package:04}");
                package += 1;
                for dir in ["", "/lib", "/lib/internal", "/dist", "/test"] {
                    Entry::dir(format!("{top}{dir}")).write(&mut tar)?;
                    for number in 0..2 + random.below(9) {
                        if written < files {
                            let length = (256 << random.below(6)) + random.below(4096);
                            let begin = random.below(material.len() - length);
                            let data = &material[begin..begin + length];
                            Entry::file(format!("{top}{dir}/module-{number}.js"), data)
                                .write(&mut tar)?;
                            written += 1;
                        }
                    }
                }
            }
            Ok(())
        },
    )
}

/// `docker.io/library/large-files:1`: 1.6 GB in files of 40 to 420 MB, 1 GB of them in one layer.
pub fn large_files() -> Result<Built> {
    large("large-files", LARGE)
}

/// `docker.io/library/large-layer:1`: two files of 1 GB in one layer.
pub fn large_layer() -> Result<Built> {
    large("large-layer", LARGE_LAYER)
}

/// `docker.io/library/million-files:1`: a layer of a million files of a few bytes.
pub fn million_files() -> Result<Built> {
    bulk("million-files", SCRIPTS, 1, |_, material, mut tar| {
        let mut random = Random(1);
        for number in 0..MILLION {
            let (dir, file) = (number / 1000, number % 1000);
            if file == 0 {
                Entry::dir(format!("data-{dir:03}")).write(&mut tar)?;
            }
            let length = 1 + random.below(100);
            let begin = random.below(material.len() - length);
            let data = &material[begin..begin + length];
            Entry::file(format!("data-{dir:03}/record-{file:03}"), data).write(&mut tar)?;
        }
        Ok(())
    })
}

fn large(name: &str, layers: &[&[usize]]) -> Result<Built> {
    bulk(name, PROGRAMS, layers.len(), |index, material, mut tar| {
        Entry::dir("opt").write(&mut tar)?;
        for (number, megabytes) in layers[index].iter().enumerate() {
            let size = megabytes * 1_000_000;
            let path = format!("opt/library-{index}-{number}.so");
            tar.write_all(&header(&path, size as u64, 0o755)?)?;
            // From another place in each file.
            let from = (index * 10 + number) * 1_000_003 % material.len();
            let mut rest = size;
            let mut begin = from;
            while rest > 0 {
                let piece = &material[begin..(begin + rest).min(material.len())];
                tar.write_all(piece)?;
                rest -= piece.len();
                begin = 0;
            }
            tar.write_all(&vec![0; size.next_multiple_of(512) - size])?;
        }
        Ok(())
    })
}

/// Returns an image whose layers `fill` writes, made of the files of `packages`.
fn bulk(
    name: &str,
    packages: &[&str],
    layers: usize,
    fill: impl Fn(usize, &[u8], &mut dyn Write) -> io::Result<()>,
) -> Result<Built> {
    // The other images are not made anew for a change here.
    let recipe = digest(include_bytes!("bulk.rs"));
    cached(&format!("{name}-{}", &recipe[7..15]), |path| {
        let material = Payload::debian(packages)?.tar()?;
        let part = path.with_extension("part");
        let reference = format!("docker.io/library/{name}:1");
        let mut archive = Archive(File::create(&part).context("create an archive")?);
        let layers = (0..layers).map(|index| archive.layer(|tar| fill(index, &material, tar)));
        let layers = chained(layers.collect::<Result<_>>()?);
        let built = archive.end(reference, layers, path)?;
        fs::rename(&part, path).context("put the archive in its place")?;
        Ok(built)
    })
}

/// Sets the chain IDs.
fn chained(mut layers: Vec<BuiltLayer>) -> Vec<BuiltLayer> {
    let mut below: Option<String> = None;
    for layer in &mut layers {
        if let Some(below) = below {
            layer.chain_id = digest(format!("{below} {}", layer.diff_id).as_bytes());
        }
        below = Some(layer.chain_id.clone());
    }
    layers
}

/// An OCI layout archive whose blobs get their names after their bytes.
struct Archive(File);

impl Archive {
    fn layer(&mut self, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<BuiltLayer> {
        let begin = self.0.stream_position()?;
        self.0.write_all(&[0; 512])?;
        let blob = Hashed::new(BufWriter::with_capacity(1 << 20, &self.0));
        // As Docker compresses.
        let gzip = GzEncoder::new(blob, flate2::Compression::default());
        let mut tar = Hashed::new(gzip);
        fill(&mut tar)?;
        tar_entry::end(&mut tar)?;
        let (gzip, diff_id, _) = tar.end();
        let (mut file, digest, size) = gzip.finish()?.end();
        file.write_all(&vec![0; padding(size)])?;
        file.flush()?;
        drop(file);
        self.0.seek(SeekFrom::Start(begin))?;
        self.0
            .write_all(&header(&blob_path(&digest), size, 0o644)?)?;
        self.0.seek(SeekFrom::End(0))?;
        Ok(BuiltLayer {
            digest,
            chain_id: diff_id.clone(),
            diff_id,
            size,
        })
    }

    fn file(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        Ok(Entry::file(path, bytes).write(&mut self.0)?)
    }

    fn end(mut self, reference: String, layers: Vec<BuiltLayer>, path: &Path) -> Result<Built> {
        let (os, architecture) = host_platform();
        let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
        let config = json!({
            "os": os,
            "architecture": architecture,
            "config": { "Cmd": ["/bin/true"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        })
        .to_string();
        let config_digest = digest(config.as_bytes());
        self.file(&blob_path(&config_digest), config.as_bytes())?;
        let listed: Vec<_> = layers
            .iter()
            .map(|layer| {
                json!({
                    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": layer.digest,
                    "size": layer.size,
                })
            })
            .collect();
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest,
                "size": config.len(),
            },
            "layers": listed,
        })
        .to_string();
        let manifest_digest = digest(manifest.as_bytes());
        self.file(&blob_path(&manifest_digest), manifest.as_bytes())?;
        let index = json!({ "schemaVersion": 2, "manifests": [{
            "mediaType": media_type,
            "digest": manifest_digest,
            "size": manifest.len(),
            "annotations": {
                "io.containerd.image.name": reference,
                "org.opencontainers.image.ref.name": reference,
            },
        }]});
        self.file("index.json", index.to_string().as_bytes())?;
        let layout = json!({ "imageLayoutVersion": "1.0.0" });
        self.file("oci-layout", layout.to_string().as_bytes())?;
        tar_entry::end(&mut self.0)?;
        Ok(Built {
            reference,
            index: None,
            manifest: manifest_digest,
            config: config_digest,
            layers,
            others: Vec::new(),
            archive: path.to_owned(),
        })
    }
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

/// Returns the header of a file whose bytes come later.
fn header(path: &str, size: u64, mode: u32) -> io::Result<[u8; 512]> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path)?;
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(EPOCH.cast_unsigned());
    header.set_cksum();
    Ok(*header.as_bytes())
}

fn padding(size: u64) -> usize {
    (size.next_multiple_of(512) - size) as usize
}

/// A writer that hashes and counts its input.
struct Hashed<W> {
    out: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Hashed<W> {
    fn new(out: W) -> Self {
        Self {
            out,
            hash: Sha256::new(),
            size: 0,
        }
    }

    fn end(self) -> (W, String, u64) {
        let hex = self.hash.finalize();
        let hex: String = hex.iter().map(|byte| format!("{byte:02x}")).collect();
        (self.out, format!("sha256:{hex}"), self.size)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The same numbers each time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        // A step of SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }
}
