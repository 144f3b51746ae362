// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Names of subjects and issuers as text.

use std::fmt::Write as _;

use der::Tag;
use der::asn1::ObjectIdentifier;

use crate::asn1::Element;

/// The largest number of characters of a name that are shown.
const SHOWN: usize = 200;

/// Returns the name as RFC 4514 writes it, the last part first, such as `CN=signer,O=Example`. Characters that
/// could mislead a terminal are escaped, and what is malformed is left out.
pub(crate) fn text(name: Element<'_>) -> String {
    let mut parts = Vec::new();
    let Ok(mut sets) = name.children() else {
        return String::new();
    };
    while let Ok(set) = sets.next() {
        let Ok(mut attributes) = set.children() else {
            break;
        };
        while let Ok(attribute) = attributes.next() {
            parts.extend(part(attribute));
        }
    }
    parts.reverse();
    let mut text = parts.join(",");
    if let Some((end, _)) = text.char_indices().nth(SHOWN) {
        text.truncate(end);
        text.push_str("...");
    }
    text
}

/// Returns one attribute, such as `CN=signer`.
fn part(attribute: Element<'_>) -> Option<String> {
    let mut fields = attribute.children().ok()?;
    let oid: ObjectIdentifier = fields.next().ok()?.parse().ok()?;
    let value = fields.next().ok()?;
    let mut text = short(&oid).map_or_else(|| oid.to_string(), str::to_owned);
    text.push('=');
    match value.tag {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::TeletexString => {
            for character in String::from_utf8_lossy(value.value).chars() {
                match character {
                    ',' | '+' | ';' | '<' | '>' => text.extend(['\\', character]),
                    _ => text.extend(character.escape_debug()),
                }
            }
        }
        _ => text.push_str(&hex(value.raw)),
    }
    Some(text)
}

fn short(oid: &ObjectIdentifier) -> Option<&'static str> {
    Some(match oid.as_bytes() {
        [0x55, 4, 3] => "CN",
        [0x55, 4, 6] => "C",
        [0x55, 4, 7] => "L",
        [0x55, 4, 8] => "ST",
        [0x55, 4, 10] => "O",
        [0x55, 4, 11] => "OU",
        _ => return None,
    })
}

/// Returns lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
