// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Signatures of root hashes.

use std::os::fd::OwnedFd;
use std::time::SystemTime;

use resnap_core::{Digest, ProofSignature};
use resnap_verity::{RootHash, SIGNATURE_FILE, Trust};

use super::sidecar::{read_file, read_sidecar};
use crate::error::Error;

/// Verifies a signature of a root hash.
pub(crate) fn verify_signature(
    trust: &Trust,
    root_hash: &str,
    signature: &[u8],
) -> Result<ProofSignature, Error> {
    let malformed = |error| Error::Unproven(format!("{error}"));
    let root: RootHash = root_hash.parse().map_err(malformed)?;
    let signer = trust.verify(signature, &root, SystemTime::now());
    let signer = signer.map_err(|error| Error::Signature(Box::new(error)))?;
    Ok(ProofSignature {
        digest: Digest::sha256(signature).to_string(),
        signer: signer.to_string(),
    })
}

/// Checks that the image in the directory of a snapshot has a sidecar whose root hash is signed, and is the
/// expected one, if that is known. Reads nothing of the image.
pub(crate) fn verify_snapshot(
    trust: &Trust,
    snapshot: &OwnedFd,
    expected: Option<&str>,
) -> Result<(), Error> {
    let missing = |name: &str| Error::Unproven(format!("it has no {name}"));
    let sidecar = read_sidecar(snapshot)?.ok_or_else(|| missing("sidecar"))?;
    let root = sidecar.root_hash.to_string();
    if let Some(expected) = expected.filter(|expected| *expected != root) {
        let text = format!("its sidecar has the root hash {root}, and its label {expected}");
        return Err(Error::Unproven(text));
    }
    let signature = read_file(snapshot, SIGNATURE_FILE)?.ok_or_else(|| missing("signature"))?;
    verify_signature(trust, &root, &signature).map(drop)
}
