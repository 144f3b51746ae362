// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Percent-encoding in specifiers, and the bytes that need none.

/// Whether a version or feature may hold the byte in its escaped form.
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
