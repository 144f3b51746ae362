// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The reasons why no signature is made.

use crate::root_hash::RootHash;
use crate::signature_error::SignatureError;

/// The reason why no signature is made.
///
/// Certificates are named by their subjects.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SigningError {
    /// The raw signature has another length than the key's.
    #[error(
        "the raw signature has {found} bytes, and those by the key of \"{subject}\" have {expected}; \
         another key made it, or it is encoded as text or PKCS#7"
    )]
    Length {
        /// The certificate.
        subject: String,
        /// The bytes of the key's signatures.
        expected: usize,
        /// The bytes of this one.
        found: usize,
    },
    /// The key signed something else, or in another way.
    #[error(
        "the key of \"{subject}\" made a signature {mistake} instead of one of the root hash's 64 \
         hexadecimal digits with SHA-256 and RSASSA-PKCS1-v1_5"
    )]
    Mistake {
        /// The certificate.
        subject: String,
        /// The other bytes that were signed, or the other way.
        mistake: &'static str,
    },
    /// Another key made the signature, or of another root hash.
    #[error(
        "the key of \"{subject}\" did not make this signature of the root hash {root_hash}; the key \
         or command that signs does not belong to the certificate, or signed something else"
    )]
    OtherKey {
        /// The certificate.
        subject: String,
        /// The root hash.
        root_hash: RootHash,
    },
    /// The signature would not be accepted.
    #[error(transparent)]
    Unacceptable(#[from] SignatureError),
}
