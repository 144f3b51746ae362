// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Proofs of layers: dm-verity trees behind their EROFS images.
//!
//! ```text
//! snapshots/N/layer.erofs            the image, zeros up to 4096 bytes, a superblock, the tree
//! snapshots/N/layer.erofs.dmverity   the sidecar: root hash, and the offset of the superblock
//! ```
//!
//! The names and the sidecar are those of containerd 2.3 (`plugins/diff/erofs`, `internal/dmverity`). It
//! looks for a sidecar beside the image whenever it makes the mounts of a snapshot's child, and mounts the
//! image by the tree then. containerd 2.1 and 2.2 do not look for it.
//!
//! The image is flushed to disk before the sidecar exists: a sidecar whose image was lost makes every read an
//! error, for good.

pub(crate) use hashed_file::HashedFile;
pub(crate) use seal::seal;

mod hashed_file;
mod inode;
mod seal;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use resnap_core::{Digest, Integrity, Proof, ProofOrigin};
use resnap_erofs::ErofsReader;
use resnap_verity::{BlockSize, Leaves, SIDECAR_FILE, Sidecar, Work};
use rustix::fs::{self, AtFlags, Mode, OFlags};

use crate::error::{Error, IoContext as _};
use crate::guard::Guard;

/// The directory by which containerd 2.3 decides whether the kernel has dm-verity (`internal/dmverity`).
const KERNEL_MODULE: &str = "/sys/module/dm_verity";

/// A tree starts at a multiple of this behind its image, whatever its blocks are.
const ALIGNMENT: u64 = 4096;

/// The name of a sidecar that is being written.
const UNFINISHED_SIDECAR: &str = "layer.erofs.dmverity.resnap";

/// Checks that layers with a proof can be mounted on this machine.
pub(crate) fn require_kernel(integrity: Integrity) -> Result<(), Error> {
    if !integrity.is_on() || has_kernel_support() {
        return Ok(());
    }
    Err(Error::Unproven(format!(
        "the kernel has no dm-verity ({KERNEL_MODULE} is missing), and containerd would mount no layer with a tree: try `modprobe dm_verity`"
    )))
}

/// Returns whether the kernel has dm-verity.
pub(crate) fn has_kernel_support() -> bool {
    Path::new(KERNEL_MODULE).exists()
}

/// Returns the UUID of a layer's tree. A layer gets the same tree on every node.
fn uuid(blob: &Digest) -> [u8; 16] {
    let name = format!("dm-verity:blobs/{blob}");
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, name.as_bytes()).into_bytes()
}

/// Returns the size of the blocks of an image's tree. A device has no smaller blocks than its tree, and an
/// image must not have smaller ones than its device.
fn block_size(file: &File) -> Result<BlockSize, Error> {
    let file = file.try_clone().context("open the image")?;
    let image = ErofsReader::open(file).map_err(Error::NotAnImage)?;
    Ok(match image.block_size() < BlockSize::B4096.bytes() {
        true => BlockSize::B512,
        false => BlockSize::B4096,
    })
}

/// Writes the tree of an image behind its first `size` bytes, and flushes the file to disk.
pub(crate) fn append(
    file: &File,
    size: u64,
    leaves: Option<&Leaves>,
    blob: &Digest,
    guard: &Guard,
) -> Result<Sidecar, Error> {
    let block = block_size(file)?;
    let size = size.next_multiple_of(ALIGNMENT);
    // Removes what is behind the image, and fills its last block with zeros.
    for length in [
        file.metadata()
            .context("look at the image")?
            .len()
            .min(size),
        size,
    ] {
        file.set_len(length).context("resize the image")?;
    }
    let check = || Ok(guard.step()?);
    let appended = resnap_verity::append(file, size, block, uuid(blob), leaves, Work::new(&check))?;
    file.sync_all().context("flush the image")?;
    Ok(Sidecar::new(appended.root_hash, appended.hash_offset))
}

/// Writes a sidecar to the directory of a snapshot, and flushes both to disk.
pub(crate) fn write_sidecar(snapshot: &OwnedFd, sidecar: &Sidecar) -> Result<(), Error> {
    let bytes = sidecar.encode().map_err(io::Error::other);
    let bytes = bytes.context("encode the sidecar")?;
    let written = write_file(snapshot, &bytes);
    written.context("write the sidecar of the image")?;
    fs::fsync(snapshot).context("flush the snapshot")
}

fn write_file(snapshot: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    // One of a process that was killed.
    remove_if_there(snapshot, UNFINISHED_SIDECAR)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o644);
    let mut file: File = fs::openat(snapshot, UNFINISHED_SIDECAR, flags, mode)?.into();
    let written = io::Write::write_all(&mut file, bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| {
            let renamed = fs::renameat(snapshot, UNFINISHED_SIDECAR, snapshot, SIDECAR_FILE);
            Ok(renamed?)
        });
    if written.is_err() {
        // The error that is returned is the reason for both.
        let _ = remove_if_there(snapshot, UNFINISHED_SIDECAR);
    }
    written
}

fn remove_if_there(directory: &OwnedFd, name: &str) -> io::Result<()> {
    match fs::unlinkat(directory, name, AtFlags::empty()) {
        Err(error) if error != rustix::io::Errno::NOENT => Err(error.into()),
        _ => Ok(()),
    }
}

/// Returns the proof that a sidecar states.
pub(crate) fn proof(sidecar: &Sidecar, origin: ProofOrigin) -> Proof {
    Proof::new(sidecar.root_hash.to_string(), origin)
}
