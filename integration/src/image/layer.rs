// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A layer: an uncompressed tar or the EROFS image of one, the blob made of it, and their digests.

use std::fs;
use std::io::Write;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

use super::tar_entry::{self, EPOCH, Entry};
use crate::debian;

/// The format of a layer before compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A tar.
    Tar,
    /// An EROFS image.
    Erofs,
}

impl Format {
    /// Returns the media type of a layer of this format, in OCI's words or Docker's; those of EROFS are
    /// containerd's.
    fn media_type(self, compression: Compression, docker: bool) -> String {
        let (base, dot) = match (self, docker) {
            (Self::Tar, true) => ("application/vnd.docker.image.rootfs.diff.tar", "."),
            (Self::Tar, false) => ("application/vnd.oci.image.layer.v1.tar", "+"),
            (Self::Erofs, _) => ("application/vnd.erofs.layer.v1", "+"),
        };
        match compression {
            Compression::None => base.to_owned(),
            Compression::Gzip | Compression::GzipMembers => format!("{base}{dot}gzip"),
            Compression::Zstd => format!("{base}{dot}zstd"),
        }
    }
}

/// The compression of a layer's blob.
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
    /// The digest of the uncompressed tar, or EROFS image.
    pub diff_id: String,
    /// The size of the blob in bytes.
    pub size: u64,
    /// The compression of the blob.
    pub compression: Compression,
    /// The format before compression.
    pub format: Format,
    pub(super) blob: Arc<Vec<u8>>,
}

impl Layer {
    /// Returns the layer of an uncompressed tar.
    pub fn new(tar: &[u8], compression: Compression) -> Result<Self> {
        Self::of_bytes(tar, Format::Tar, compression)
    }

    /// Returns the layer of the EROFS image that mkfs.erofs makes of a tar, as containerd's differ does.
    /// The same tar gives the same image.
    pub fn erofs(tar: &[u8], compression: Compression) -> Result<Self> {
        let dir = tempfile::tempdir().context("cannot make a directory for an EROFS image")?;
        let (from, to) = (dir.path().join("tar"), dir.path().join("layer.erofs"));
        fs::write(&from, tar).context("cannot write a layer's tar")?;
        let mut mkfs = Command::new(debian::tools()?.join("mkfs.erofs"));
        mkfs.args(["--tar=f", "--aufs", "--quiet", "-Enoinline_data", "-b4096"])
            // The defaults are a random UUID and the current time.
            .args(["-U", "00000000-0000-4000-8000-000000000000", "--mkfs-time"])
            .arg(format!("-T{EPOCH}"))
            .args([&to, &from]);
        debian::output(&mut mkfs)?;
        let image = fs::read(&to).context("cannot read the image that mkfs.erofs made")?;
        Self::of_bytes(&image, Format::Erofs, compression)
    }

    fn of_bytes(bytes: &[u8], format: Format, compression: Compression) -> Result<Self> {
        let blob = compression
            .compress(bytes)
            .context("cannot compress a layer")?;
        Ok(Self {
            digest: digest(&blob),
            diff_id: digest(bytes),
            size: blob.len() as u64,
            compression,
            format,
            blob: Arc::new(blob),
        })
    }

    pub(super) fn media_type(&self, docker: bool) -> String {
        self.format.media_type(self.compression, docker)
    }

    /// Returns the gzip layer of these entries.
    pub fn of<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Result<Self> {
        let tar = tar_entry::pack(entries).context("cannot write a layer's tar")?;
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
        let tar = tar_entry::pack(&[Entry::file("a", "b")]).unwrap();
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
        let named = |format: Format| all.map(|compression| format.media_type(compression, false));
        assert_eq!(named(Format::Tar), types);
        assert_eq!(named(Format::Erofs)[0], "application/vnd.erofs.layer.v1");
        assert_eq!(
            named(Format::Erofs)[3],
            "application/vnd.erofs.layer.v1+zstd"
        );
    }
}
