// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Certificates that an authority issued.

use std::time::Duration;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use crate::certificate::Certificate;
use crate::oid::CODE_SIGNING;
use crate::signature_error::SignatureError;

/// Checks that one of the authorities issued a certificate for code signing, directly or through `others`.
pub(crate) fn verify(
    certificate: &Certificate<'_>,
    others: &[Certificate<'_>],
    authorities: &[CertificateDer<'_>],
    now: Duration,
) -> Result<(), SignatureError> {
    let anchors = authorities.iter().map(webpki::anchor_from_trusted_cert);
    let anchors: Vec<TrustAnchor<'_>> = anchors.flatten().collect();
    let others = others.iter().map(|other| CertificateDer::from(other.raw));
    let others: Vec<CertificateDer<'_>> = others.collect();
    let raw = CertificateDer::from(certificate.raw);
    let failed = |reason| error(certificate, reason);
    EndEntityCert::try_from(&raw)
        .map_err(failed)?
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &others,
            UnixTime::since_unix_epoch(now),
            KeyUsage::required_if_present(CODE_SIGNING.as_bytes()),
            None,
            Some(&|path| check_authorities(path, authorities, now)),
        )
        .map_err(failed)?;
    // Authorities need not state purposes, signers must.
    if certificate.is_for_code()? == Some(true) {
        Ok(())
    } else {
        Err(purpose(certificate))
    }
}

/// Checks what webpki does not: the key usage of those between, and the validity of the authority.
fn check_authorities(
    path: &VerifiedPath<'_>,
    authorities: &[CertificateDer<'_>],
    now: Duration,
) -> Result<(), webpki::Error> {
    for between in path.intermediate_certificates() {
        let der = between.der();
        let certificate = Certificate::parse(&der).map_err(|_| webpki::Error::BadDer)?;
        if !certificate.may_sign_certificates().unwrap_or(false) {
            return Err(webpki::Error::EndEntityUsedAsCa);
        }
    }
    let mut result = Err(webpki::Error::UnknownIssuer);
    for der in authorities {
        let anchor = webpki::anchor_from_trusted_cert(der)?;
        let used = path.anchor();
        // There may be several certificates of one key.
        let same = anchor.subject == used.subject
            && anchor.subject_public_key_info == used.subject_public_key_info;
        if same && result.is_err() {
            let certificate = Certificate::parse(der).map_err(|_| webpki::Error::BadDer)?;
            result = certificate.check_validity(now);
        }
    }
    result
}

/// Returns the error for a certificate of another purpose.
pub(crate) fn purpose(certificate: &Certificate<'_>) -> SignatureError {
    let subject = certificate.subject();
    SignatureError::Purpose { subject }
}

/// Returns the error for a certificate that is invalid.
pub(crate) fn error(certificate: &Certificate<'_>, reason: webpki::Error) -> SignatureError {
    let subject = certificate.subject();
    let date = |time: UnixTime| {
        let time = Duration::from_secs(time.as_secs());
        der::DateTime::from_unix_duration(time).map_or_else(|_| String::new(), |at| at.to_string())
    };
    match reason {
        webpki::Error::UnknownIssuer => SignatureError::ForeignAuthority { subject },
        webpki::Error::CertExpired { not_after, .. } => SignatureError::Expired {
            subject,
            until: date(not_after),
        },
        webpki::Error::CertNotValidYet { not_before, .. } => SignatureError::NotYetValid {
            subject,
            from: date(not_before),
        },
        webpki::Error::RequiredEkuNotFoundContext(_) | webpki::Error::EmptyEkuExtension => {
            SignatureError::Purpose { subject }
        }
        webpki::Error::CaUsedAsEndEntity => SignatureError::AuthoritySigned { subject },
        webpki::Error::EndEntityUsedAsCa => SignatureError::NotAnAuthority { subject },
        source => SignatureError::Chain { subject, source },
    }
}
