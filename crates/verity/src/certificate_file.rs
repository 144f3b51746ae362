// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Certificates in PEM files.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::certificate::Certificate;
use crate::certificates_error::CertificatesError;
use crate::chain;
use crate::signature_error::CERTIFICATE_LIMIT;

/// Reads the certificates of a PEM file, of which there must be some, and at most `limit`.
pub(crate) fn read(
    pem: &[u8],
    limit: usize,
) -> Result<Vec<CertificateDer<'static>>, CertificatesError> {
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        certificates.push(certificate.map_err(CertificatesError::Pem)?);
        if certificates.len() > limit {
            return Err(CertificatesError::TooMany(limit));
        }
    }
    if certificates.is_empty() {
        return Err(CertificatesError::Empty);
    }
    Ok(certificates)
}

/// Parses the certificate at a position that is counted from 1.
pub(crate) fn parse<'a>(
    number: usize,
    der: &'a CertificateDer<'_>,
) -> Result<Certificate<'a>, CertificatesError> {
    if der.len() > CERTIFICATE_LIMIT {
        return Err(CertificatesError::TooLarge { number });
    }
    Certificate::parse(der).map_err(|source| CertificatesError::Malformed { number, source })
}

/// Checks that signatures with this certificate can be accepted.
pub(crate) fn check_signer(
    number: usize,
    certificate: &Certificate<'_>,
) -> Result<(), CertificatesError> {
    let malformed = |source| CertificatesError::Malformed { number, source };
    let key = certificate.rsa_key().map(drop);
    let usable = match certificate.is_for_code().map_err(malformed)? {
        Some(false) => key.and(Err(chain::purpose(certificate))),
        Some(true) | None => key,
    };
    usable.map_err(|source| CertificatesError::Signer {
        number,
        source: Box::new(source),
    })
}
