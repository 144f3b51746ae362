// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! PKCS#7 signed data as OpenSSL writes it.

use der::asn1::{AnyRef, ObjectIdentifier};
use der::{Encode as _, Result, Tag};
use rustls_pki_types::CertificateDer;

use crate::asn1::context;
use crate::certificate::Certificate;
use crate::oid::{DATA, RSA, SHA256, SIGNED_DATA};

/// Encodes a detached signature, with the certificate of its signer and those above it.
pub(crate) fn signed_data(
    signer: &Certificate<'_>,
    above: &[CertificateDer<'_>],
    signature: &[u8],
) -> Result<Vec<u8>> {
    let version = element(Tag::Integer, &[&[1]])?;
    let digest = algorithm(SHA256)?;
    let issuer_and_serial = sequence(&[signer.issuer.raw, signer.serial.raw])?;
    let signer_info = sequence(&[
        &version,
        &issuer_and_serial,
        &digest,
        &algorithm(RSA)?,
        &element(Tag::OctetString, &[signature])?,
    ])?;
    let above = above.iter().map(|certificate| &**certificate);
    let certificates: Vec<&[u8]> = std::iter::once(signer.raw).chain(above).collect();
    let content = sequence(&[
        &version,
        &element(Tag::Set, &[&digest])?,
        &sequence(&[&oid(DATA)?])?,
        &element(context(0, true), &certificates)?,
        &element(Tag::Set, &[&signer_info])?,
    ])?;
    sequence(&[&oid(SIGNED_DATA)?, &element(context(0, true), &[&content])?])
}

/// Encodes an algorithm without parameters.
fn algorithm(number: ObjectIdentifier) -> Result<Vec<u8>> {
    sequence(&[&oid(number)?, &element(Tag::Null, &[])?])
}

fn oid(number: ObjectIdentifier) -> Result<Vec<u8>> {
    element(Tag::ObjectIdentifier, &[number.as_bytes()])
}

fn sequence(parts: &[&[u8]]) -> Result<Vec<u8>> {
    element(Tag::Sequence, parts)
}

/// Encodes an element with this value.
fn element(tag: Tag, value: &[&[u8]]) -> Result<Vec<u8>> {
    AnyRef::new(tag, &value.concat())?.to_der()
}
