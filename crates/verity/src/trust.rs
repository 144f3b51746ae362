// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The certificates that signers are checked against.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};

use crate::certificate::Certificate;
use crate::chain;
use crate::name::hex;
use crate::root_hash::RootHash;
use crate::signature_error::{CERTIFICATE_LIMIT, SignatureError};
use crate::signed_data::SignedData;
use crate::trust_error::{CERTIFICATES, TrustError};

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
    pub fn add_authorities(&mut self, pem: &[u8]) -> Result<(), TrustError> {
        let more = certificates(pem)?;
        for (number, der) in (1..).zip(&more) {
            let certificate = parse(number, der)?;
            let is_authority = certificate.is_authority();
            let is_authority =
                is_authority.map_err(|source| TrustError::Malformed { number, source })?;
            if !is_authority || webpki::anchor_from_trusted_cert(der).is_err() {
                let subject = certificate.subject();
                return Err(TrustError::NotAnAuthority { number, subject });
            }
        }
        add(&mut self.authorities, more)
    }

    /// Adds the signers of a PEM file. They may be self-signed, and need not have come from an authority.
    ///
    /// # Errors
    ///
    /// A file without certificates, or with one whose signatures would never be accepted, is refused as a whole.
    pub fn add_signers(&mut self, pem: &[u8]) -> Result<(), TrustError> {
        let more = certificates(pem)?;
        for (number, der) in (1..).zip(&more) {
            let certificate = parse(number, der)?;
            let malformed = |source| TrustError::Malformed { number, source };
            let key = certificate.rsa_key().map(drop);
            let usable = match certificate.is_for_code().map_err(malformed)? {
                Some(false) => key.and(Err(chain::purpose(&certificate))),
                Some(true) | None => key,
            };
            usable.map_err(|source| TrustError::Signer {
                number,
                source: Box::new(source),
            })?;
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
            let trusted = verify_signature(&signed, certificate, root_hash).and_then(|()| {
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

fn verify_signature(
    signed: &SignedData<'_>,
    certificate: &Certificate<'_>,
    root_hash: &RootHash,
) -> Result<(), SignatureError> {
    let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, certificate.rsa_key()?);
    let verified = key.verify(root_hash.to_string().as_bytes(), signed.signature);
    verified.map_err(|_| SignatureError::RootHash {
        subject: certificate.subject(),
        root_hash: *root_hash,
    })
}

fn signer(certificate: &Certificate<'_>) -> Signer {
    Signer {
        subject: certificate.subject(),
        fingerprint: hex(&Sha256::digest(certificate.raw)),
    }
}

/// Reads the certificates of a PEM file.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        certificates.push(certificate.map_err(TrustError::Pem)?);
        if certificates.len() > CERTIFICATES {
            return Err(TrustError::TooMany);
        }
    }
    if certificates.is_empty() {
        return Err(TrustError::Empty);
    }
    Ok(certificates)
}

fn parse<'a>(number: usize, der: &'a CertificateDer<'_>) -> Result<Certificate<'a>, TrustError> {
    if der.len() > CERTIFICATE_LIMIT {
        return Err(TrustError::TooLarge { number });
    }
    Certificate::parse(der).map_err(|source| TrustError::Malformed { number, source })
}

fn add(
    to: &mut Vec<CertificateDer<'static>>,
    more: Vec<CertificateDer<'static>>,
) -> Result<(), TrustError> {
    if to.len() + more.len() > CERTIFICATES {
        return Err(TrustError::TooMany);
    }
    to.extend(more);
    Ok(())
}
