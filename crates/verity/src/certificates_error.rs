// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The reasons why certificates are refused.

use rustls_pki_types::pem;

use crate::signature_error::{CERTIFICATE_LIMIT, SignatureError};

/// The reason why the certificates of a file are refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificatesError {
    /// The file is not PEM.
    #[error("it is not PEM")]
    Pem(#[source] pem::Error),
    /// The file has no certificates.
    #[error("it has no certificates")]
    Empty,
    /// There are too many certificates.
    #[error("there are more than {0} certificates")]
    TooMany(usize),
    /// A certificate is too large.
    #[error("its certificate {number} has more than {CERTIFICATE_LIMIT} bytes")]
    TooLarge {
        /// The position in the file, counted from 1.
        number: usize,
    },
    /// A certificate is malformed.
    #[error("its certificate {number} is malformed")]
    Malformed {
        /// The position in the file, counted from 1.
        number: usize,
        /// The reason.
        #[source]
        source: der::Error,
    },
    /// A certificate of an authority is not an authority's, or not of version 3.
    #[error(
        "its certificate {number}, of \"{subject}\", is not an authority's; a signer's belongs to the signers"
    )]
    NotAnAuthority {
        /// The position in the file, counted from 1.
        number: usize,
        /// The name in the certificate.
        subject: String,
    },
    /// A certificate of a signer cannot be one.
    #[error("its certificate {number} cannot be a signer's")]
    Signer {
        /// The position in the file, counted from 1.
        number: usize,
        /// The reason.
        #[source]
        source: Box<SignatureError>,
    },
}
