// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Signatures that are made.

use ring::signature::{
    RSA_PKCS1_2048_8192_SHA256 as PKCS1_SHA256, RSA_PKCS1_2048_8192_SHA384 as PKCS1_SHA384,
    RSA_PKCS1_2048_8192_SHA512 as PKCS1_SHA512, RSA_PSS_2048_8192_SHA256 as PSS_SHA256,
    RsaParameters, UnparsedPublicKey,
};
use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};

use crate::certificate::Certificate;
use crate::certificate_file::{check_signer, parse, read};
use crate::certificates_error::CertificatesError;
use crate::encode;
use crate::root_hash::RootHash;
use crate::signature_error::{CERTIFICATES, SignatureError};
use crate::signed_data::SignedData;
use crate::signing_error::SigningError;

/// The certificate of a signer, and those above it that come with its signatures.
#[derive(Debug, Clone)]
pub struct SigningCertificate {
    pub(crate) signer: CertificateDer<'static>,
    pub(crate) above: Vec<CertificateDer<'static>>,
}

impl SigningCertificate {
    /// Reads the certificates of a PEM file: first the signer's, then those of the authorities between it and
    /// the one that is trusted, if there are any.
    ///
    /// # Errors
    ///
    /// There is none, there are more than 16, one is malformed, or signatures with the first would never be
    /// accepted. Whether it is valid now is not checked.
    pub fn from_pem(pem: &[u8]) -> Result<Self, CertificatesError> {
        let mut above = read(pem, CERTIFICATES)?;
        for (number, der) in (1..).zip(&above) {
            let certificate = parse(number, der)?;
            if number == 1 {
                check_signer(number, &certificate)?;
            }
        }
        let signer = above.remove(0);
        Ok(Self { signer, above })
    }

    /// Returns the signature of a root hash, detached PKCS#7 as [`Trust`](crate::Trust) and the kernel take it,
    /// with all certificates in it. The same arguments always give the same bytes.
    ///
    /// `raw` is the RSASSA-PKCS1-v1_5 signature with SHA-256 of the 64 hexadecimal digits of the root hash,
    /// which [`SigningKey::sign`](crate::SigningKey::sign), a hardware module or a key management service made.
    ///
    /// # Errors
    ///
    /// The key of the certificate did not make `raw`, or not for this root hash, or the certificates are too
    /// large together.
    pub fn signature(&self, root_hash: &RootHash, raw: &[u8]) -> Result<Vec<u8>, SigningError> {
        let malformed = SignatureError::Malformed;
        let signer = &Certificate::parse(&self.signer).map_err(malformed)?;
        let modulus = signer.modulus().map_err(malformed)?;
        if raw.len() != modulus.len() {
            return Err(SigningError::Length {
                subject: signer.subject(),
                expected: modulus.len(),
                found: raw.len(),
            });
        }
        let der = encode::signed_data(signer, &self.above, raw).map_err(malformed)?;
        let verified = SignedData::parse(&der)?.verify(signer, root_hash);
        verified.map_err(|error| explained(error, signer, root_hash, raw))?;
        Ok(der)
    }
}

/// Returns the mistake that was made with a signature, if it can be told, or else the error.
fn explained(
    error: SignatureError,
    signer: &Certificate<'_>,
    root_hash: &RootHash,
    raw: &[u8],
) -> SigningError {
    let Ok(key) = signer.rsa_key() else {
        return error.into();
    };
    let subject = signer.subject();
    let digits = root_hash.to_string();
    let mistakes: [(&RsaParameters, &[u8], &str); 6] = [
        (&PSS_SHA256, digits.as_bytes(), "with RSASSA-PSS"),
        (&PKCS1_SHA384, digits.as_bytes(), "with SHA-384"),
        (&PKCS1_SHA512, digits.as_bytes(), "with SHA-512"),
        (
            &PKCS1_SHA256,
            &[digits.as_bytes(), b"\n"].concat(),
            "of the digits and a line feed",
        ),
        (&PKCS1_SHA256, &root_hash.0, "of the 32 bytes"),
        (
            &PKCS1_SHA256,
            &Sha256::digest(digits.as_bytes()),
            "of the SHA-256, which is hashed again,",
        ),
    ];
    let made = |parameters, message: &[u8]| {
        let key = UnparsedPublicKey::new(parameters, key);
        key.verify(message, raw).is_ok()
    };
    let mistake = mistakes
        .iter()
        .find(|(parameters, message, _)| made(*parameters, message));
    match mistake {
        Some((_, _, mistake)) => SigningError::Mistake { subject, mistake },
        None => SigningError::OtherKey {
            subject,
            root_hash: *root_hash,
        },
    }
}
