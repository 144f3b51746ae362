// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Keys that sign root hashes.

use der::Tag;
use der::asn1::ObjectIdentifier;
use ring::error::KeyRejected;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::{self, PemObject as _};
use zeroize::Zeroizing;

use crate::asn1::Element;
use crate::oid::{RSA, named};
use crate::root_hash::RootHash;
use crate::signing_key_error::SigningKeyError;

/// Lines by which PEM says that a key is encrypted: that of PKCS#8, and that of older files.
const ENCRYPTED: [&[u8]; 2] = [
    b"-----BEGIN ENCRYPTED PRIVATE KEY-----",
    b"Proc-Type: 4,ENCRYPTED",
];

/// A private RSA key of 2048 to 4096 bits.
///
/// Debug output has the public key only.
#[derive(Debug)]
pub struct SigningKey(RsaKeyPair);

impl SigningKey {
    /// Reads the first private key of a PEM file: PKCS#8 (`BEGIN PRIVATE KEY`) or PKCS#1
    /// (`BEGIN RSA PRIVATE KEY`), not encrypted. Other items, such as certificates, are skipped.
    ///
    /// The decoded file is overwritten in memory before this returns; `pem` is the caller's.
    ///
    /// # Errors
    ///
    /// There is no key, it is encrypted, or it is not an RSA key that can be used.
    pub fn from_pem(pem: &[u8]) -> Result<Self, SigningKeyError> {
        if pem.split(|byte| *byte == b'\n').any(is_encrypted) {
            return Err(SigningKeyError::Encrypted);
        }
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
            pem::Error::NoItemsFound => SigningKeyError::Absent,
            error => SigningKeyError::Pem(error),
        })?;
        let key = Zeroizing::new(key);
        let pair = match &*key {
            PrivateKeyDer::Pkcs8(key) => {
                let algorithm = algorithm(key.secret_pkcs8_der())?;
                if algorithm != RSA {
                    return Err(SigningKeyError::Algorithm(named(&algorithm)));
                }
                RsaKeyPair::from_pkcs8(key.secret_pkcs8_der())
            }
            PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()),
            _ => return Err(SigningKeyError::Algorithm("elliptic curves".to_owned())),
        };
        let unusable = |reason: KeyRejected| SigningKeyError::Unusable(reason.to_string());
        Ok(Self(pair.map_err(unusable)?))
    }

    /// Returns the RSASSA-PKCS1-v1_5 signature with SHA-256 of the 64 hexadecimal digits of the root hash. The
    /// same key always makes the same. [`SigningCertificate::signature`](crate::SigningCertificate::signature)
    /// makes it a signature that the kernel takes.
    ///
    /// # Errors
    ///
    /// The key is inconsistent, or the system has no random numbers, which hide the key from measurements.
    pub fn sign(&self, root_hash: &RootHash) -> Result<Vec<u8>, SigningKeyError> {
        let mut signature = vec![0; self.0.public().modulus_len()];
        let message = root_hash.to_string();
        let random = SystemRandom::new();
        let signed = self.0.sign(
            &RSA_PKCS1_SHA256,
            &random,
            message.as_bytes(),
            &mut signature,
        );
        signed.map_err(|_| SigningKeyError::Sign)?;
        Ok(signature)
    }
}

fn is_encrypted(line: &[u8]) -> bool {
    ENCRYPTED.contains(&line.trim_ascii())
}

/// Returns the algorithm of a key in PKCS#8.
fn algorithm(der: &[u8]) -> Result<ObjectIdentifier, SigningKeyError> {
    let algorithm = || {
        let mut fields = Element::only(der, Tag::Sequence)?.children()?;
        fields.take(Tag::Integer)?;
        fields.algorithm()
    };
    algorithm().map_err(SigningKeyError::Malformed)
}
