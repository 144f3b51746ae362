// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The numbers of what signatures, certificates and keys are made of.

use der::asn1::ObjectIdentifier;

/// PKCS#7 data.
pub(crate) const DATA: ObjectIdentifier = new("1.2.840.113549.1.7.1");
/// PKCS#7 signed data.
pub(crate) const SIGNED_DATA: ObjectIdentifier = new("1.2.840.113549.1.7.2");

pub(crate) const SHA256: ObjectIdentifier = new("2.16.840.1.101.3.4.2.1");
/// RSA keys, and signatures that leave the hash function to another field.
pub(crate) const RSA: ObjectIdentifier = new("1.2.840.113549.1.1.1");
pub(crate) const RSA_PSS: ObjectIdentifier = new("1.2.840.113549.1.1.10");
pub(crate) const RSA_SHA256: ObjectIdentifier = new("1.2.840.113549.1.1.11");

pub(crate) const KEY_IDENTIFIER: ObjectIdentifier = new("2.5.29.14");
pub(crate) const KEY_USAGE: ObjectIdentifier = new("2.5.29.15");
pub(crate) const BASIC_CONSTRAINTS: ObjectIdentifier = new("2.5.29.19");
pub(crate) const PURPOSES: ObjectIdentifier = new("2.5.29.37");
/// The purpose of certificates that sign root hashes.
pub(crate) const CODE_SIGNING: ObjectIdentifier = new("1.3.6.1.5.5.7.3.3");

/// The names of algorithms that are met and not accepted.
const NAMES: &[(&str, &str)] = &[
    ("1.3.14.3.2.26", "SHA-1"),
    ("2.16.840.1.101.3.4.2.2", "SHA-384"),
    ("2.16.840.1.101.3.4.2.3", "SHA-512"),
    ("1.2.840.113549.1.1.5", "RSA with SHA-1"),
    ("1.2.840.113549.1.1.10", "RSASSA-PSS"),
    ("1.2.840.113549.1.1.12", "RSA with SHA-384"),
    ("1.2.840.113549.1.1.13", "RSA with SHA-512"),
    ("1.2.840.10045.2.1", "elliptic curves"),
    ("1.2.840.10045.4.3.2", "ECDSA with SHA-256"),
    ("1.3.101.112", "Ed25519"),
];

const fn new(text: &str) -> ObjectIdentifier {
    ObjectIdentifier::new_unwrap(text)
}

/// Returns the name of an algorithm, or its number.
pub(crate) fn named(oid: &ObjectIdentifier) -> String {
    let oid = oid.to_string();
    let known = NAMES.iter().find(|(number, _)| *number == oid);
    known.map_or(oid, |(_, name)| (*name).to_owned())
}
