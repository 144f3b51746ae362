// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The files beside an image: the sidecar, and the signature of its root hash.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;

use resnap_core::{Proof, ProofOrigin, SignedRoot};
use resnap_verity::{SIDECAR_FILE, SIGNATURE_FILE, Sidecar};
use rustix::fs::{self, AtFlags, Mode, OFlags};

use super::inode::open;
use crate::error::{Error, IoContext as _};

/// The names of files that are being written.
const UNFINISHED: &str = "layer.erofs.dmverity.resnap";
const UNFINISHED_SIGNATURE: &str = "layer.erofs.sig.resnap";

/// The most bytes that are read of a sidecar or a signature, one more than either may have.
const SMALL: u64 = 64 * 1024 + 1;

/// Writes the signature of a root hash, if there is one, and the sidecar to the directory of a snapshot, and
/// flushes all to disk.
pub(crate) fn write_sidecar(
    snapshot: &OwnedFd,
    sidecar: &Sidecar,
    signature: Option<&[u8]>,
) -> Result<(), Error> {
    StagedSidecar::write(snapshot, sidecar, signature)?.place()
}

/// A sidecar and a signature that are flushed to disk, and not in their places yet.
pub(super) struct StagedSidecar<'a> {
    snapshot: &'a OwnedFd,
    has_signature: bool,
}

impl<'a> StagedSidecar<'a> {
    pub(super) fn write(
        snapshot: &'a OwnedFd,
        sidecar: &Sidecar,
        signature: Option<&[u8]>,
    ) -> Result<Self, Error> {
        let bytes = sidecar.encode().map_err(io::Error::other);
        let bytes = bytes.context("encode the sidecar")?;
        let staged = Self {
            snapshot,
            has_signature: signature.is_some(),
        };
        if let Some(signature) = signature {
            let written = write_file(snapshot, UNFINISHED_SIGNATURE, signature);
            written.context("write the signature of the image")?;
        }
        let written = write_file(snapshot, UNFINISHED, &bytes);
        written.context("write the sidecar of the image")?;
        Ok(staged)
    }

    /// Moves the files to their places, the sidecar last.
    pub(super) fn place(self) -> Result<(), Error> {
        let snapshot = self.snapshot;
        let signature = self
            .has_signature
            .then_some((UNFINISHED_SIGNATURE, SIGNATURE_FILE));
        for (from, to) in signature.into_iter().chain([(UNFINISHED, SIDECAR_FILE)]) {
            let renamed = fs::renameat(snapshot, from, snapshot, to);
            renamed.context("move the sidecar of the image to its place")?;
        }
        fs::fsync(snapshot).context("flush the snapshot")
    }
}

impl Drop for StagedSidecar<'_> {
    fn drop(&mut self) {
        for name in [UNFINISHED_SIGNATURE, UNFINISHED] {
            // Whoever writes the next one removes it.
            let _ = remove_if_there(self.snapshot, name);
        }
    }
}

/// Writes a file as a whole, and flushes it to disk.
fn write_file(snapshot: &OwnedFd, name: &str, bytes: &[u8]) -> io::Result<()> {
    // One of a process that was killed.
    remove_if_there(snapshot, name)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o644);
    let mut file: File = fs::openat(snapshot, name, flags, mode)?.into();
    io::Write::write_all(&mut file, bytes)?;
    file.sync_all()
}

/// Reads a small file in the directory of a snapshot, if it is there.
pub(super) fn read_file(snapshot: &OwnedFd, name: &str) -> Result<Option<Vec<u8>>, Error> {
    let file = match open(snapshot, name, OFlags::RDONLY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.context("open a file beside the image")?,
    };
    let mut bytes = Vec::new();
    let read = file.take(SMALL).read_to_end(&mut bytes);
    read.context("read a file beside the image")?;
    Ok(Some(bytes))
}

/// Returns the sidecar of the image in the directory of a snapshot, if it has one.
pub(super) fn read_sidecar(snapshot: &OwnedFd) -> Result<Option<Sidecar>, Error> {
    let bytes = read_file(snapshot, SIDECAR_FILE)?;
    let sidecar = bytes.map(|bytes| Sidecar::parse(&bytes));
    sidecar.transpose().map_err(Error::Sidecar)
}

pub(super) fn remove_if_there(directory: &OwnedFd, name: &str) -> io::Result<()> {
    match fs::unlinkat(directory, name, AtFlags::empty()) {
        Err(error) if error != rustix::io::Errno::NOENT => Err(error.into()),
        _ => Ok(()),
    }
}

/// Returns the proof that a sidecar states. If the publisher has signed a root hash, it must be that one.
pub(crate) fn proof(
    sidecar: &Sidecar,
    origin: ProofOrigin,
    signed: Option<&SignedRoot>,
) -> Result<Proof, Error> {
    let mut proof = Proof::new(sidecar.root_hash.to_string(), origin);
    if let Some(signed) = signed {
        if signed.root_hash != proof.root_hash {
            let of = match &signed.index {
                Some(_) => "the publisher's index and the layer's tar",
                None => "the layer's image",
            };
            return Err(Error::WrongArtifact(format!(
                "the root hash of {of} is {}, and {} is signed",
                proof.root_hash, signed.root_hash
            )));
        }
        proof.signature = Some(signed.verified.clone());
    }
    Ok(proof)
}
