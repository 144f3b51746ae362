// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The decoders that are compared.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use flate2::bufread::GzDecoder;

use crate::isal::Isal;
use crate::miniz::Miniz;

/// Bytes of the buffer for a blob and of that for output, as in resnap's pipeline.
const BUFFER: usize = 256 * 1024;

/// A decoder of gzip.
pub(crate) struct Decoder {
    /// The packages that it consists of.
    packages: &'static [&'static str],
    /// Whether it works on whole buffers, for the blob and for the output.
    pub(crate) is_whole: bool,
    pub(crate) language: &'static str,
    /// The programs that its build needs, besides Rust.
    pub(crate) needs: &'static str,
    /// Decompresses a file of one member, and returns the size of the output.
    pub(crate) run: fn(&Path) -> Result<u64>,
}

/// All decoders. The first is that of resnap.
pub(crate) const DECODERS: [Decoder; 4] = [
    Decoder {
        packages: &["flate2", "zlib-rs"],
        is_whole: false,
        language: "Rust",
        needs: "nothing",
        run: |path| drain(GzDecoder::new(open(path)?)),
    },
    Decoder {
        packages: &["miniz_oxide"],
        is_whole: false,
        language: "Rust",
        needs: "nothing",
        run: |path| drain(Miniz::new(open(path)?)?),
    },
    Decoder {
        packages: &["libdeflater", "libdeflate-sys"],
        is_whole: true,
        language: "C",
        needs: "C compiler",
        run: libdeflate,
    },
    Decoder {
        packages: &["isal-sys"],
        is_whole: false,
        language: "C+assembly",
        needs: "C compiler, make, nasm, autoconf, automake, libtool",
        run: |path| drain(Isal::new(open(path)?)),
    },
];

impl Decoder {
    /// Returns its packages with their versions.
    pub(crate) fn name(&self) -> Result<String> {
        let packages = self.packages.iter();
        let packages: Vec<String> = packages
            .map(|package| Ok(format!("{package} {}", version(package)?)))
            .collect::<Result<_>>()?;
        Ok(packages.join(" + "))
    }
}

/// Returns the version of a package in this build.
fn version(package: &str) -> Result<&'static str> {
    let mut lines = include_str!("../Cargo.lock").lines();
    let name = format!("name = \"{package}\"");
    lines.find(|line| *line == name).context(name)?;
    let version = lines.next().and_then(|line| line.split('"').nth(1));
    version.with_context(|| format!("no version of {package}"))
}

fn open(path: &Path) -> Result<BufReader<File>> {
    let file = File::open(path).with_context(|| format!("open {path:?}"))?;
    Ok(BufReader::with_capacity(BUFFER, file))
}

/// Reads to the end in full chunks, and returns the number of bytes.
fn drain(mut decoder: impl Read) -> Result<u64> {
    // Through a pointer, as resnap's pipeline has its decoders.
    let decoder: &mut dyn Read = &mut decoder;
    let mut chunk = vec![0; BUFFER];
    let mut total = 0;
    loop {
        let mut count = 0;
        while let Some(rest) = chunk.get_mut(count..).filter(|rest| !rest.is_empty()) {
            match decoder.read(rest)? {
                0 => break,
                read => count += read,
            }
        }
        black_box(&chunk);
        total += count as u64;
        if count < chunk.len() {
            return Ok(total);
        }
    }
}

/// Decompresses from memory to memory. The time to read the file, and to get pages for the output, is part of it.
fn libdeflate(path: &Path) -> Result<u64> {
    let blob = fs::read(path).with_context(|| format!("read {path:?}"))?;
    // The size is the last field of a member, modulo 4 GiB.
    let Some(size) = blob.last_chunk() else {
        bail!("the blob has no end");
    };
    let mut output = vec![0; u32::from_le_bytes(*size) as usize];
    let count = libdeflater::Decompressor::new().gzip_decompress(&blob, &mut output)?;
    black_box(&output);
    Ok(count as u64)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    #[test]
    fn all_verify_what_they_decompress() {
        let bytes: Vec<u8> = (0..3 * BUFFER + 7)
            .map(|at| (at * at / 100) as u8)
            .collect();
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&bytes).unwrap();
        let blob = encoder.finish().unwrap();
        let mut damaged = blob.clone();
        damaged[blob.len() - 8] ^= 1;
        let truncated = &blob[..blob.len() / 2];
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("blob");
        for decoder in &DECODERS {
            let name = decoder.name().unwrap();
            fs::write(&path, &blob).unwrap();
            assert_eq!((decoder.run)(&path).unwrap(), bytes.len() as u64, "{name}");
            fs::write(&path, &damaged).unwrap();
            assert!((decoder.run)(&path).is_err(), "{name}: wrong checksum");
            fs::write(&path, truncated).unwrap();
            assert!((decoder.run)(&path).is_err(), "{name}: truncated");
        }
    }
}
