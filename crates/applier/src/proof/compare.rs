// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images of committed layers, compared with their trees.

use std::error::Error as _;
use std::os::fd::OwnedFd;

use resnap_core::{Evidence, Verified, error_chain};
use resnap_verity::{Error as VerityError, SIDECAR_FILE, Trust, Work, verify};

use super::inode::open_image;
use super::sidecar::read_sidecar;
use super::signed::verify_snapshot;
use crate::erofs::NAME;
use crate::error::Error;
use crate::pace::Pace;

/// Bytes between two looks at the pace, as those of a [`Work`].
const PIECE: u64 = 1 << 20;

/// The root hash and signature that a committed layer must have.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Expected<'a> {
    /// The root hash, if its snapshot has a label with one.
    pub(crate) root_hash: Option<&'a str>,
    /// The certificates, if the root hash must be signed.
    pub(crate) signers: Option<&'a Trust>,
}

/// Compares the image in the directory of a committed snapshot with its tree. Returns `None` if it has
/// none.
pub(crate) fn compare(
    snapshot: &OwnedFd,
    expected: Expected<'_>,
    pace: &Pace,
) -> Result<Option<Verified>, Error> {
    let mut verified = Verified::new(Evidence::Tree, 0);
    let differences = &mut verified.differences;
    let sidecar = match read_sidecar(snapshot) {
        Err(Error::Sidecar(error)) => {
            differences.add(|| format!("{SIDECAR_FILE}: {}", error_chain(&error)));
            return Ok(Some(verified));
        }
        read => read?,
    };
    let Some(sidecar) = sidecar else {
        let Some(root) = expected.root_hash else {
            return Ok(None);
        };
        differences.add(|| format!("{SIDECAR_FILE} is missing; the root hash is {root}"));
        return Ok(Some(verified));
    };
    let (offset, found) = (sidecar.hash_offset, sidecar.root_hash);
    if let Some(root) = expected.root_hash
        && *root != found.to_string()
    {
        let text = format!("{SIDECAR_FILE} has the root hash {found} instead of {root}");
        differences.add(|| text);
    }
    match expected
        .signers
        .map(|trust| verify_snapshot(trust, snapshot, None))
    {
        Some(Err(Error::Unproven(why))) => differences.add(|| why),
        Some(Err(error @ Error::Signature(_))) => differences.add(|| error_chain(&error)),
        Some(verified) => verified?,
        None => {}
    }
    let image = open_image(snapshot)?;
    let check = || Ok(pace.read(PIECE)?);
    match verify(&image, offset, &found, .., Work::new(&check)) {
        Ok(_) => {}
        Err(error) if is_difference(&error) => {
            differences.add(|| format!("{NAME}: {}", error_chain(&error)));
        }
        Err(error) => return Err(error.into()),
    }
    verified.bytes = offset.min(pace.total());
    Ok(Some(verified))
}

/// Returns whether the bytes of an image or its tree are the reason.
fn is_difference(error: &VerityError) -> bool {
    match error {
        VerityError::Corrupt(_)
        | VerityError::Superblock { .. }
        | VerityError::HashOffset { .. }
        | VerityError::Padding(_)
        | VerityError::Short { .. } => true,
        // The file ends before its superblock.
        VerityError::Read { .. } => {
            let source = error.source().and_then(|source| source.downcast_ref());
            source.is_some_and(|source: &std::io::Error| {
                source.kind() == std::io::ErrorKind::UnexpectedEof
            })
        }
        _ => false,
    }
}
