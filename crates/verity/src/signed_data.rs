// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! PKCS#7 signed data, as the kernel takes it for root hashes.

use der::Tag;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};

use crate::asn1::{Element, context};
use crate::certificate::Certificate;
use crate::name::{hex, text};
use crate::oid::{RSA, RSA_PSS, RSA_SHA256, SHA256, SIGNED_DATA, named};
use crate::root_hash::RootHash;
use crate::signature_error::{CERTIFICATE_LIMIT, CERTIFICATES, LIMIT, SignatureError};

/// A detached signature with one signer, SHA-256 and RSASSA-PKCS1-v1_5, and without signed attributes.
#[derive(Debug)]
pub(crate) struct SignedData<'a> {
    pub(crate) certificates: Vec<Certificate<'a>>,
    pub(crate) signature: &'a [u8],
    signer: Element<'a>,
}

impl<'a> SignedData<'a> {
    /// Parses a signature.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, SignatureError> {
        if bytes.is_empty() {
            return Err(SignatureError::Absent);
        }
        if bytes.len() > LIMIT {
            return Err(SignatureError::TooLarge(bytes.len()));
        }
        let mut outer = Element::only(bytes, Tag::Sequence)?.children()?;
        let kind = outer.take(Tag::ObjectIdentifier)?;
        if kind.value != SIGNED_DATA.as_bytes() {
            return Err(der::Error::from(der::ErrorKind::OidUnknown { oid: kind.parse()? }).into());
        }
        let content = outer.take(context(0, true))?.inner(Tag::Sequence)?;
        outer.end()?;

        let mut fields = content.children()?;
        fields.take(Tag::Integer)?;
        fields.take(Tag::Set)?;
        let mut content = fields.take(Tag::Sequence)?.children()?;
        content.take(Tag::ObjectIdentifier)?;
        if !content.is_finished() {
            return Err(SignatureError::Attached);
        }
        let certificates = match fields.take_if(context(0, true))? {
            Some(set) => certificates(set)?,
            None => Vec::new(),
        };
        fields.take_if(context(1, true))?;
        let signers = fields.take(Tag::Set)?;
        fields.end()?;
        let (signer, signature) = signer(signers)?;
        Ok(Self {
            certificates,
            signature,
            signer,
        })
    }

    /// Returns whether the signer says that this is its certificate.
    pub(crate) fn names(&self, certificate: &Certificate<'_>) -> bool {
        match self.number() {
            Ok((issuer, serial)) => certificate.has_number(&issuer, &serial),
            Err(_) => certificate.has_key_identifier(self.signer.value),
        }
    }

    /// Checks that this is a signature of the root hash with the key of the certificate.
    pub(crate) fn verify(
        &self,
        certificate: &Certificate<'_>,
        root_hash: &RootHash,
    ) -> Result<(), SignatureError> {
        let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, certificate.rsa_key()?);
        let verified = key.verify(root_hash.to_string().as_bytes(), self.signature);
        verified.map_err(|_| SignatureError::RootHash {
            subject: certificate.subject(),
            root_hash: *root_hash,
        })
    }

    /// Returns what the signer says about its certificate.
    pub(crate) fn signer(&self) -> String {
        match self.number() {
            Ok((issuer, serial)) => {
                format!("number {} of \"{}\"", shown(serial.value), text(issuer))
            }
            Err(_) => format!("key identifier {}", shown(self.signer.value)),
        }
    }

    /// Returns issuer and serial number, or an error for the identifier of a key.
    fn number(&self) -> der::Result<(Element<'a>, Element<'a>)> {
        self.signer.tag.assert_eq(Tag::Sequence)?;
        let mut fields = self.signer.children()?;
        Ok((fields.take(Tag::Sequence)?, fields.take(Tag::Integer)?))
    }
}

fn certificates(set: Element<'_>) -> Result<Vec<Certificate<'_>>, SignatureError> {
    let mut elements = set.children()?;
    let mut certificates = Vec::new();
    while !elements.is_finished() {
        let element = elements.take(Tag::Sequence)?;
        if certificates.len() == CERTIFICATES {
            return Err(SignatureError::TooManyCertificates);
        }
        if element.raw.len() > CERTIFICATE_LIMIT {
            return Err(SignatureError::CertificateTooLarge(element.raw.len()));
        }
        certificates.push(Certificate::parse(element.raw)?);
    }
    Ok(certificates)
}

/// Returns what the only signer says about its certificate, and its signature.
fn signer(set: Element<'_>) -> Result<(Element<'_>, &[u8]), SignatureError> {
    let mut signers = set.children()?;
    let mut all = Vec::new();
    while !signers.is_finished() {
        all.push(signers.take(Tag::Sequence)?);
    }
    let [signer] = all[..] else {
        return Err(SignatureError::Signers(all.len()));
    };
    let mut fields = signer.children()?;
    fields.take(Tag::Integer)?;
    let signer = fields.next()?;
    if signer.tag != Tag::Sequence {
        signer.tag.assert_eq(context(0, false))?;
    }
    let digest = fields.algorithm()?;
    if digest != SHA256 {
        return Err(SignatureError::DigestAlgorithm(named(&digest)));
    }
    if fields.take_if(context(0, true))?.is_some() {
        return Err(SignatureError::SignedAttributes);
    }
    match fields.algorithm()? {
        RSA | RSA_SHA256 => {}
        RSA_PSS => return Err(SignatureError::Pss),
        other => return Err(SignatureError::SignatureAlgorithm(named(&other))),
    }
    let signature = fields.take(Tag::OctetString)?.value;
    // Attributes that are not signed say nothing that matters.
    fields.take_if(context(1, true))?;
    fields.end()?;
    Ok((signer, signature))
}

/// Returns the first bytes as text.
fn shown(bytes: &[u8]) -> String {
    hex(&bytes[..bytes.len().min(32)])
}
