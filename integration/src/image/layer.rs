// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A layer: an uncompressed tar, the blob made of it, and their digests.

use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, Result};
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

use super::tape::{self, Entry};

/// How a layer's blob is made of its tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// The tar itself.
    None,
    /// One gzip member, at a fast level.
    Gzip,
    /// Two concatenated gzip members, as parallel and seekable compressors make them.
    GzipMembers,
    /// A zstd frame of stored blocks: small to write here, and decoded like any other.
    Zstd,
}

impl Compression {
    /// The media type of such a layer, in OCI's words or Docker's.
    pub(super) fn media_type(self, docker: bool) -> String {
        let (base, dot) = match docker {
            true => ("application/vnd.docker.image.rootfs.diff.tar", "."),
            false => ("application/vnd.oci.image.layer.v1.tar", "+"),
        };
        match self {
            Self::None => base.to_owned(),
            Self::Gzip | Self::GzipMembers => format!("{base}{dot}gzip"),
            Self::Zstd => format!("{base}{dot}zstd"),
        }
    }

    fn compress(self, tar: &[u8]) -> Result<Vec<u8>> {
        let (head, tail) = tar.split_at(tar.len() / 2);
        match self {
            Self::None => Ok(tar.to_vec()),
            Self::Gzip => gzip(tar),
            Self::GzipMembers => Ok([gzip(head)?, gzip(tail)?].concat()),
            Self::Zstd => Ok(zstd_stored(tar)),
        }
    }
}

/// A layer, ready to go into an image. A clone shares the bytes.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The digest of the blob.
    pub digest: String,
    /// The digest of the uncompressed tar.
    pub diff_id: String,
    /// The size of the blob in bytes.
    pub size: u64,
    /// How the blob was made.
    pub compression: Compression,
    pub(super) blob: Arc<Vec<u8>>,
}

impl Layer {
    /// The layer of an uncompressed tar.
    pub fn new(tar: &[u8], compression: Compression) -> Result<Self> {
        let blob = compression
            .compress(tar)
            .context("cannot compress a layer")?;
        Ok(Self {
            digest: digest(&blob),
            diff_id: digest(tar),
            size: blob.len() as u64,
            compression,
            blob: Arc::new(blob),
        })
    }

    /// The gzip layer of these entries.
    pub fn of<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Result<Self> {
        let tar = tape::pack(entries).context("cannot write a layer's tar")?;
        Self::new(&tar, Compression::Gzip)
    }
}

/// `sha256:` and the hexadecimal digest of `bytes`.
pub fn digest(bytes: &[u8]) -> String {
    let hash: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hash}")
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// RFC 8878 with raw blocks only: magic, a frame header without a size, the blocks.
fn zstd_stored(bytes: &[u8]) -> Vec<u8> {
    // Window descriptor 0x38: 128 KiB, which is also the largest block.
    let mut out = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38];
    for block in bytes.chunks(128 << 10) {
        let header = (block.len() as u32) << 3;
        out.extend_from_slice(&header.to_le_bytes()[..3]);
        out.extend_from_slice(block);
    }
    // An empty last block.
    out.extend_from_slice(&[1, 0, 0]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_compression_has_the_same_diff_id_and_its_own_media_type() {
        let tar = tape::pack(&[Entry::file("a", "b")]).unwrap();
        let all = [
            Compression::None,
            Compression::Gzip,
            Compression::GzipMembers,
            Compression::Zstd,
        ];
        let layers = all.map(|compression| Layer::new(&tar, compression).unwrap());
        assert!(layers.iter().all(|layer| layer.diff_id == digest(&tar)));
        assert_eq!(layers[0].digest, layers[0].diff_id);
        let types = [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
        ];
        assert_eq!(all.map(|compression| compression.media_type(false)), types);
    }
}
