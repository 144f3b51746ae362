// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Proofs of layers: dm-verity trees behind their EROFS images.
//!
//! ```text
//! snapshots/N/layer.erofs            the image, zeros up to 4096 bytes, a superblock, the tree
//! snapshots/N/layer.erofs.dmverity   the sidecar: root hash, and the offset of the superblock
//! snapshots/N/layer.erofs.sig        the signature of the root hash, if its publisher signed it
//! ```
//!
//! The names and the sidecar are those of containerd 2.3 (`plugins/diff/erofs`, `internal/dmverity`). It
//! looks for a sidecar beside the image whenever it makes the mounts of a snapshot's child, and mounts the
//! image by the tree then. containerd 2.1 and 2.2 do not look for it.
//!
//! The image is flushed to disk before the sidecar exists: a sidecar whose image was lost makes every read an
//! error, for good.

pub(crate) use hashed_file::HashedFile;
pub(crate) use indexed::IndexedImage;
pub(crate) use seal::seal;
pub(crate) use signed::{verify_signature, verify_snapshot};

pub(crate) mod compare;
mod hashed_file;
mod indexed;
mod inode;
mod seal;
mod signed;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use resnap_core::{Digest, Integrity, Proof, ProofOrigin, SignedIndex};
use resnap_verity::{BlockSize, Leaves, SIDECAR_FILE, SIGNATURE_FILE, Sidecar, Work};
use rustix::fs::{self, AtFlags, Mode, OFlags};

use crate::error::{Error, IoContext as _};
use crate::guard::Guard;

/// The directory by which containerd 2.3 decides whether the kernel has dm-verity (`internal/dmverity`).
const KERNEL_MODULE: &str = "/sys/module/dm_verity";

/// The name of a file that is being written.
const UNFINISHED: &str = "layer.erofs.dmverity.resnap";

/// The most bytes that are read of a sidecar or a signature, one more than either may have.
const SMALL: u64 = 64 * 1024 + 1;

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

/// Writes the tree of an image behind its first `size` bytes, and flushes the file to disk.
pub(crate) fn append(
    file: &File,
    (size, block): (u64, BlockSize),
    leaves: Option<&Leaves>,
    blob: &Digest,
    guard: &Guard,
) -> Result<Sidecar, Error> {
    let size = size.next_multiple_of(block.bytes());
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

/// Writes the signature of a root hash, if there is one, and then the sidecar to the directory of a snapshot,
/// and flushes all to disk.
pub(crate) fn write_sidecar(
    snapshot: &OwnedFd,
    sidecar: &Sidecar,
    signature: Option<&[u8]>,
) -> Result<(), Error> {
    let bytes = sidecar.encode().map_err(io::Error::other);
    let bytes = bytes.context("encode the sidecar")?;
    if let Some(signature) = signature {
        let written = write_file(snapshot, SIGNATURE_FILE, signature);
        written.context("write the signature of the image")?;
    }
    let written = write_file(snapshot, SIDECAR_FILE, &bytes);
    written.context("write the sidecar of the image")?;
    fs::fsync(snapshot).context("flush the snapshot")
}

/// Writes a file as a whole.
fn write_file(snapshot: &OwnedFd, name: &str, bytes: &[u8]) -> io::Result<()> {
    // One of a process that was killed.
    remove_if_there(snapshot, UNFINISHED)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o644);
    let mut file: File = fs::openat(snapshot, UNFINISHED, flags, mode)?.into();
    let written = io::Write::write_all(&mut file, bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| Ok(fs::renameat(snapshot, UNFINISHED, snapshot, name)?));
    if written.is_err() {
        // The error that is returned is the reason for both.
        let _ = remove_if_there(snapshot, UNFINISHED);
    }
    written
}

/// Reads a small file in the directory of a snapshot, if it is there.
fn read_file(snapshot: &OwnedFd, name: &str) -> Result<Option<Vec<u8>>, Error> {
    let file = match inode::open(snapshot, name, OFlags::RDONLY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.context("open a file beside the image")?,
    };
    let mut bytes = Vec::new();
    let read = file.take(SMALL).read_to_end(&mut bytes);
    read.context("read a file beside the image")?;
    Ok(Some(bytes))
}

/// Returns the sidecar of the image in the directory of a snapshot, if it has one.
fn read_sidecar(snapshot: &OwnedFd) -> Result<Option<Sidecar>, Error> {
    let bytes = read_file(snapshot, SIDECAR_FILE)?;
    let sidecar = bytes.map(|bytes| Sidecar::parse(&bytes));
    sidecar.transpose().map_err(Error::Sidecar)
}

fn remove_if_there(directory: &OwnedFd, name: &str) -> io::Result<()> {
    match fs::unlinkat(directory, name, AtFlags::empty()) {
        Err(error) if error != rustix::io::Errno::NOENT => Err(error.into()),
        _ => Ok(()),
    }
}

/// Returns the proof that a sidecar states, of an image with this index of its publisher's or of our own.
pub(crate) fn proof(sidecar: &Sidecar, index: Option<&SignedIndex>) -> Proof {
    let origin = match index {
        Some(_) => ProofOrigin::Artifact,
        None => ProofOrigin::Generated,
    };
    let mut proof = Proof::new(sidecar.root_hash.to_string(), origin);
    proof.signature = index.map(|index| index.verified.clone());
    proof
}
