// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The reasons why a signature proves nothing.

use crate::root_hash::RootHash;

/// The largest signature, in bytes.
pub(crate) const LIMIT: usize = 64 * 1024;

/// The largest certificate, in bytes.
pub(crate) const CERTIFICATE_LIMIT: usize = 8 * 1024;

/// The largest number of certificates that come with a signature.
pub(crate) const CERTIFICATES: usize = 16;

/// The reason why a signature is not accepted.
///
/// Certificates are named by their subjects.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// There are no bytes.
    #[error("there is no signature")]
    Absent,
    /// The signature is too large.
    #[error("the signature has {0} bytes, more than {LIMIT}")]
    TooLarge(usize),
    /// The bytes are not PKCS#7 signed data in DER.
    #[error("the signature is not PKCS#7 signed data in DER")]
    Malformed(#[from] der::Error),
    /// The signature has what it signs in it.
    #[error("the signature is not detached, and the kernel takes no others")]
    Attached,
    /// There are several signers, or none.
    #[error("the signature has {0} signers, and should have one")]
    Signers(usize),
    /// There are attributes, which are signed instead of the root hash.
    #[error(
        "the signature has signed attributes, which dm-verity does not support; sign without them"
    )]
    SignedAttributes,
    /// Another hash function than SHA-256.
    #[error("the signature uses {0}, and only SHA-256 is supported")]
    DigestAlgorithm(String),
    /// RSASSA-PSS.
    #[error("the signature uses RSASSA-PSS, and only RSASSA-PKCS1-v1_5 is supported")]
    Pss,
    /// A signature algorithm that is not RSA.
    #[error("the signature uses {0}, and only RSASSA-PKCS1-v1_5 is supported")]
    SignatureAlgorithm(String),
    /// Too many certificates.
    #[error("the signature comes with more than {CERTIFICATES} certificates")]
    TooManyCertificates,
    /// A certificate that is too large.
    #[error("the signature comes with a certificate of {0} bytes, more than {CERTIFICATE_LIMIT}")]
    CertificateTooLarge(usize),
    /// The signer's certificate is neither in the signature nor configured.
    #[error("the certificate of the signer ({0}) is not in the signature and not configured")]
    UnknownSigner(String),
    /// A key that is not an RSA key of a supported size.
    #[error(
        "the key of \"{subject}\" is {key}, and only RSA keys of 2048 to 4096 bits are supported"
    )]
    Key {
        /// The certificate.
        subject: String,
        /// The kind of key.
        key: String,
    },
    /// The signature is of something else, or damaged.
    #[error("the signature by \"{subject}\" is not of the root hash {root_hash}")]
    RootHash {
        /// The certificate.
        subject: String,
        /// The root hash that it should be of.
        root_hash: RootHash,
    },
    /// No configured authority issued the certificate.
    #[error(
        "\"{subject}\" is not a configured signer, and no configured authority issued its certificate"
    )]
    ForeignAuthority {
        /// The certificate.
        subject: String,
    },
    /// The certificate, or one above it, has expired.
    #[error("the certificate of \"{subject}\", or one above it, expired at {until}")]
    Expired {
        /// The certificate.
        subject: String,
        /// The end of its validity.
        until: String,
    },
    /// The certificate, or one above it, is not valid yet.
    #[error("the certificate of \"{subject}\", or one above it, is not valid before {from}")]
    NotYetValid {
        /// The certificate.
        subject: String,
        /// The start of its validity.
        from: String,
    },
    /// The certificate is for another purpose.
    #[error("the certificate of \"{subject}\" is not for code signing")]
    Purpose {
        /// The certificate.
        subject: String,
    },
    /// The signer is an authority itself.
    #[error(
        "\"{subject}\" is an authority, which signs certificates only; configure it as a signer to trust it"
    )]
    AuthoritySigned {
        /// The certificate.
        subject: String,
    },
    /// A certificate above it is not an authority's.
    #[error("the certificate of \"{subject}\" was issued by one that may not issue certificates")]
    NotAnAuthority {
        /// The certificate.
        subject: String,
    },
    /// The chain of certificates is invalid for another reason.
    #[error("the certificate of \"{subject}\" cannot be verified")]
    Chain {
        /// The certificate.
        subject: String,
        /// The reason.
        #[source]
        source: webpki::Error,
    },
}
