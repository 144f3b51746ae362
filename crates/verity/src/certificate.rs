// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The parts of certificates that matter.

use std::time::Duration;

use der::asn1::{BitStringRef, GeneralizedTime, ObjectIdentifier, UtcTime};
use der::{DateTime, FixedTag as _, Result, Tag};
use rustls_pki_types::UnixTime;

use crate::asn1::{Element, context};
use crate::name;
use crate::oid::{
    BASIC_CONSTRAINTS, CODE_SIGNING, KEY_IDENTIFIER, KEY_USAGE, PURPOSES, RSA, named,
};
use crate::signature_error::SignatureError;

/// The bits of RSA keys that are accepted.
const BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// A certificate. Its signature is not verified here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Certificate<'a> {
    pub(crate) raw: &'a [u8],
    pub(crate) serial: Element<'a>,
    pub(crate) issuer: Element<'a>,
    subject: Element<'a>,
    not_before: DateTime,
    not_after: DateTime,
    key_algorithm: ObjectIdentifier,
    key: &'a [u8],
    extensions: Option<Element<'a>>,
}

impl<'a> Certificate<'a> {
    /// Parses a certificate.
    pub(crate) fn parse(raw: &'a [u8]) -> Result<Self> {
        let mut outer = Element::only(raw, Tag::Sequence)?.children()?;
        let mut fields = outer.take(Tag::Sequence)?.children()?;
        fields.take_if(context(0, true))?;
        let serial = fields.take(Tag::Integer)?;
        fields.algorithm()?;
        let issuer = fields.take(Tag::Sequence)?;
        let mut validity = fields.take(Tag::Sequence)?.children()?;
        let (not_before, not_after) = (time(validity.next()?)?, time(validity.next()?)?);
        let subject = fields.take(Tag::Sequence)?;
        let mut key = fields.take(Tag::Sequence)?.children()?;
        let key_algorithm = key.algorithm()?;
        let key: BitStringRef<'_> = key.take(BitStringRef::TAG)?.parse()?;
        let key = key.as_bytes().ok_or(Tag::BitString.value_error())?;
        let mut extensions = None;
        while !fields.is_finished() {
            let field = fields.next()?;
            if field.tag == context(3, true) {
                extensions = Some(field.inner(Tag::Sequence)?);
            }
        }
        Ok(Self {
            raw,
            serial,
            issuer,
            subject,
            not_before,
            not_after,
            key_algorithm,
            key,
            extensions,
        })
    }

    /// Returns the name of the subject as text.
    pub(crate) fn subject(&self) -> String {
        name::text(self.subject)
    }

    /// Returns whether the certificate has this issuer and serial number.
    pub(crate) fn has_number(&self, issuer: &Element<'_>, serial: &Element<'_>) -> bool {
        self.issuer.raw == issuer.raw && self.serial.raw == serial.raw
    }

    /// Returns whether the certificate states this identifier of its key.
    pub(crate) fn has_key_identifier(&self, identifier: &[u8]) -> bool {
        let found = self.extension(&KEY_IDENTIFIER, Tag::OctetString);
        found.is_ok_and(|found| found.is_some_and(|found| found.value == identifier))
    }

    /// Checks that the certificate is valid at a time since 1970, as webpki does.
    pub(crate) fn check_validity(&self, now: Duration) -> std::result::Result<(), webpki::Error> {
        let [from, now, until] = [
            self.not_before.unix_duration(),
            now,
            self.not_after.unix_duration(),
        ]
        .map(UnixTime::since_unix_epoch);
        if now < from {
            return Err(webpki::Error::CertNotValidYet {
                time: now,
                not_before: from,
            });
        }
        if now > until {
            return Err(webpki::Error::CertExpired {
                time: now,
                not_after: until,
            });
        }
        Ok(())
    }

    /// Returns whether code signing is among the purposes of the certificate, or `None` if it states none.
    pub(crate) fn is_for_code(&self) -> Result<Option<bool>> {
        let Some(purposes) = self.extension(&PURPOSES, Tag::Sequence)? else {
            return Ok(None);
        };
        let mut purposes = purposes.children()?;
        while !purposes.is_finished() {
            if purposes.take(Tag::ObjectIdentifier)?.value == CODE_SIGNING.as_bytes() {
                return Ok(Some(true));
            }
        }
        Ok(Some(false))
    }

    /// Returns whether the certificate is an authority's.
    pub(crate) fn is_authority(&self) -> Result<bool> {
        let Some(constraints) = self.extension(&BASIC_CONSTRAINTS, Tag::Sequence)? else {
            return Ok(false);
        };
        let is_authority = constraints.children()?.take_if(Tag::Boolean)?;
        let Some(is_authority) = is_authority else {
            return Ok(false);
        };
        Ok(is_authority.parse::<bool>()? && self.may_sign_certificates()?)
    }

    /// Returns whether the key may be used for certificates, which webpki does not check.
    pub(crate) fn may_sign_certificates(&self) -> Result<bool> {
        let Some(usage) = self.extension(&KEY_USAGE, Tag::BitString)? else {
            return Ok(true);
        };
        // After the number of unused bits: keyCertSign is bit 5, counted from the highest.
        Ok(usage.value.get(1).is_some_and(|bits| bits & 0b100 != 0))
    }

    /// Returns the RSA key.
    pub(crate) fn rsa_key(&self) -> std::result::Result<&'a [u8], SignatureError> {
        let unsupported = |key| SignatureError::Key {
            subject: self.subject(),
            key,
        };
        if self.key_algorithm != RSA {
            return Err(unsupported(format!(
                "of the algorithm {}",
                named(&self.key_algorithm)
            )));
        }
        let modulus = self.modulus()?;
        let unused = modulus.first();
        let unused = unused.map_or(0, |byte| byte.leading_zeros() as usize);
        let bits = modulus.len() * 8 - unused;
        if BITS.contains(&bits) {
            Ok(self.key)
        } else {
            Err(unsupported(format!("an RSA key of {bits} bits")))
        }
    }

    /// Returns the modulus of the RSA key, which is as long as a signature.
    pub(crate) fn modulus(&self) -> Result<&'a [u8]> {
        let modulus = Element::only(self.key, Tag::Sequence)?
            .children()?
            .take(Tag::Integer)?;
        let bytes = modulus.value;
        Ok(bytes.strip_prefix(&[0]).unwrap_or(bytes))
    }

    /// Returns the value of an extension.
    fn extension(&self, wanted: &ObjectIdentifier, tag: Tag) -> Result<Option<Element<'a>>> {
        let Some(extensions) = self.extensions else {
            return Ok(None);
        };
        let mut extensions = extensions.children()?;
        while !extensions.is_finished() {
            let mut fields = extensions.take(Tag::Sequence)?.children()?;
            let oid = fields.take(Tag::ObjectIdentifier)?;
            fields.take_if(Tag::Boolean)?;
            let value = fields.take(Tag::OctetString)?;
            if oid.value == wanted.as_bytes() {
                return value.inner(tag).map(Some);
            }
        }
        Ok(None)
    }
}

fn time(element: Element<'_>) -> Result<DateTime> {
    match element.tag {
        Tag::UtcTime => Ok(element.parse::<UtcTime>()?.to_date_time()),
        _ => Ok(element.parse::<GeneralizedTime>()?.to_date_time()),
    }
}
