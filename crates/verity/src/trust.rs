// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The certificates that signers are checked against.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};

use crate::certificate::Certificate;
use crate::certificate_file::{check_signer, parse, read};
use crate::certificates_error::CertificatesError;
use crate::chain;
use crate::name::hex;
use crate::root_hash::RootHash;
use crate::signature_error::SignatureError;
use crate::signed_data::SignedData;

/// The largest number of authorities, and of signers.
const CERTIFICATES: usize = 64;

/// The certificates that signers are checked against: those of authorities, which issue others, and of signers.
///
/// Signatures are detached PKCS#7, such as `layer.erofs.sig`. They are what the kernel takes with
/// `root_hash_sig_key_desc`, and what this makes:
///
/// ```console
/// $ openssl smime -sign -nocerts -noattr -binary -in root-hash -signer cert.pem -inkey key.pem -outform der
/// ```
///
/// A signature has one signer, no signed attributes, SHA-256, and RSASSA-PKCS1-v1_5 with an RSA key of 2048 to
/// 4096 bits. It is over the 64 hexadecimal digits of the root hash, and says nothing about a layer or an image.
/// The signer is trusted in one of two ways:
///
/// - Its certificate is configured ([`Trust::add_signers`]). It may be self-signed, and must be valid now. If it
///   states purposes, code signing must be among them.
/// - Its certificate comes with the signature (made without `-nocerts`), and a configured authority
///   ([`Trust::add_authorities`]) issued it, directly or through others that come with it. All must be valid now,
///   and code signing must be a stated purpose of it.
///
/// Nothing is revoked: a certificate is trusted until it expires, or is no longer here.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    authorities: Vec<CertificateDer<'static>>,
    signers: Vec<CertificateDer<'static>>,
}

/// The certificate that a signature was made with.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Signer {
    /// The name of the subject, such as `CN=signer,O=Example`, with characters escaped that could mislead a
    /// terminal.
    pub subject: String,
    /// The SHA-256 of the certificate, as hexadecimal digits.
    pub fingerprint: String,
}

impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.subject, self.fingerprint)
    }
}

impl Trust {
    /// Creates a set without certificates, which no signature is accepted by.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the authorities of a PEM file. Whom they issue a certificate for code signing to may sign.
    ///
    /// # Errors
    ///
    /// A file without certificates, or with one that is not an authority's, is refused as a whole.
    pub fn add_authorities(&mut self, pem: &[u8]) -> Result<(), CertificatesError> {
        let more = read(pem, CERTIFICATES)?;
        for (number, der) in (1..).zip(&more) {
            let certificate = parse(number, der)?;
            let is_authority = certificate.is_authority();
            let is_authority =
                is_authority.map_err(|source| CertificatesError::Malformed { number, source })?;
            if !is_authority || webpki::anchor_from_trusted_cert(der).is_err() {
                let subject = certificate.subject();
                return Err(CertificatesError::NotAnAuthority { number, subject });
            }
        }
        add(&mut self.authorities, more)
    }

    /// Adds the signers of a PEM file. They may be self-signed, and need not have come from an authority.
    ///
    /// # Errors
    ///
    /// A file without certificates, or with one whose signatures would never be accepted, is refused as a whole.
    pub fn add_signers(&mut self, pem: &[u8]) -> Result<(), CertificatesError> {
        let more = read(pem, CERTIFICATES)?;
        for (number, der) in (1..).zip(&more) {
            check_signer(number, &parse(number, der)?)?;
        }
        add(&mut self.signers, more)
    }

    /// Checks that `der`, detached PKCS#7 as the kernel takes it, is a signature of the root hash (64 lower-case
    /// hexadecimal digits) by a signer that is trusted at the time `now`.
    ///
    /// # Errors
    ///
    /// Each reason has an error of its own.
    pub fn verify(
        &self,
        der: &[u8],
        root_hash: &RootHash,
        now: SystemTime,
    ) -> Result<Signer, SignatureError> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let signed = SignedData::parse(der)?;
        let pinned = self.signers.iter().map(|der| Certificate::parse(der));
        let pinned = pinned.collect::<Result<Vec<_>, _>>()?;
        let pinned = pinned.iter().map(|certificate| (certificate, true));
        let others = signed.certificates.iter();
        let others = others.map(|certificate| (certificate, false));
        let mut error = None;
        for (certificate, pinned) in pinned.chain(others) {
            if !signed.names(certificate) {
                continue;
            }
            let trusted = signed.verify(certificate, root_hash).and_then(|()| {
                if pinned {
                    let valid = certificate.check_validity(now);
                    valid.map_err(|reason| chain::error(certificate, reason))
                } else {
                    chain::verify(certificate, &signed.certificates, &self.authorities, now)
                }
            });
            match trusted {
                Ok(()) => return Ok(signer(certificate)),
                Err(reason) => error.get_or_insert(reason),
            };
        }
        Err(error.unwrap_or_else(|| SignatureError::UnknownSigner(signed.signer())))
    }
}

fn signer(certificate: &Certificate<'_>) -> Signer {
    Signer {
        subject: certificate.subject(),
        fingerprint: hex(&Sha256::digest(certificate.raw)),
    }
}

fn add(
    to: &mut Vec<CertificateDer<'static>>,
    more: Vec<CertificateDer<'static>>,
) -> Result<(), CertificatesError> {
    if to.len() + more.len() > CERTIFICATES {
        return Err(CertificatesError::TooMany(CERTIFICATES));
    }
    to.extend(more);
    Ok(())
}
