// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Percent-encoding of specifiers.

/// Returns whether the byte is allowed in an escaped version or feature.
pub(crate) fn is_option_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_.%-".contains(&byte)
}

pub(crate) fn escape_into(text: &mut String, part: &str) {
    for byte in part.bytes() {
        if is_option_byte(byte) && byte != b'%' {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
}
