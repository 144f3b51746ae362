// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The reasons why a key does not sign.

use rustls_pki_types::pem;

/// The reason why a private key is refused, or does not sign.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SigningKeyError {
    /// The file has no private key.
    #[error("it has no private key in PEM")]
    Absent,
    /// The file is not PEM.
    #[error("it is not PEM")]
    Pem(#[source] pem::Error),
    /// The key is encrypted.
    #[error(
        "its private key is encrypted; \"openssl pkey -in KEY -out DECRYPTED\" asks for the \
         passphrase and decrypts it"
    )]
    Encrypted,
    /// The key is not an RSA key.
    #[error(
        "its private key is one of {0}, and only RSA keys are supported; \
         \"openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072 -out KEY\" makes one"
    )]
    Algorithm(String),
    /// The key is malformed.
    #[error("its private key is not PKCS#8")]
    Malformed(#[source] der::Error),
    /// The key cannot be used.
    #[error("its private key is damaged, or not an RSA key of 2048 to 4096 bits: {0}")]
    Unusable(String),
    /// The key does not sign.
    #[error("the private key is inconsistent, or the system has no random numbers")]
    Sign,
}
