// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Numbers of tar headers and pax records, as Go's `archive/tar` reads them.

use crate::entry::Time;

/// Parses a field of a header: [`octal`], or base-256 if the first bit is set.
pub(crate) fn field(bytes: &[u8]) -> Option<i64> {
    match bytes.first() {
        Some(first) if first & 0x80 != 0 => binary(bytes),
        _ => octal(bytes),
    }
}

/// Parses base-256: two's complement, big endian, except for the mark in the highest bit.
fn binary(bytes: &[u8]) -> Option<i64> {
    let negative = bytes.first()? & 0x40 != 0;
    let mut value: i64 = if negative { -1 } else { 0 };
    for (index, byte) in bytes.iter().enumerate() {
        let byte = match (index, negative) {
            (0, false) => byte & 0x7f,
            (0, true) => byte | 0x80,
            _ => *byte,
        };
        // Only copies of the sign may be shifted out.
        value = value.checked_mul(256)? | i64::from(byte);
    }
    Some(value)
}

/// Parses octal digits surrounded by spaces and NULs. No digits are 0; bytes after a NUL are ignored.
pub(crate) fn octal(bytes: &[u8]) -> Option<i64> {
    let is_digit = |byte: &u8| !matches!(byte, b' ' | 0);
    let Some(start) = bytes.iter().position(is_digit) else {
        return Some(0);
    };
    let end = bytes.iter().rposition(is_digit)? + 1;
    let digits = until_nul(bytes.get(start..end)?);
    digits.iter().try_fold(0_i64, |value, byte| match byte {
        b'0'..=b'7' => Some(value.checked_mul(8)? + i64::from(byte - b'0')),
        _ => None,
    })
}

/// Returns the bytes before the first NUL.
pub(crate) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Parses decimal digits with an optional sign.
pub(crate) fn decimal(bytes: &[u8]) -> Option<i64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// Parses decimal seconds with an optional fraction, which is truncated to nine digits.
pub(crate) fn time(bytes: &[u8]) -> Option<Time> {
    let point = bytes.iter().position(|byte| *byte == b'.');
    let (whole, fraction) = match point {
        Some(point) => (bytes.get(..point)?, bytes.get(point + 1..)?),
        None => (bytes, &[][..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanoseconds = digits.fold(0_u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    let seconds = decimal(whole)?;
    if whole.first() == Some(&b'-') && nanoseconds > 0 {
        return Some(Time {
            seconds: seconds.checked_sub(1)?,
            nanoseconds: 1_000_000_000 - nanoseconds,
        });
    }
    Some(Time {
        seconds,
        nanoseconds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        for (bytes, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"", Some(0)),
            (b"12 34\0", None),
            (b"12\x0034", Some(0o12)),
            (b"12 \x0034", None),
            (b"\0 12 \0 ", Some(0o12)),
            (b"8", None),
            (b"-1", None),
            (b"777777777777777777777", Some(i64::MAX)),
            (b"7777777777777777777777", None),
            (b"\x80\0\0\0\0\0\0\x01", Some(1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\x00", Some(-256)),
            (
                b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
                Some(i64::MAX),
            ),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
            (b"\xff\xff\xff\xfe\0\0\0\0\0\0\0\0", None),
        ] {
            assert_eq!(field(bytes), value, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn times() {
        let at = |seconds, nanoseconds| {
            Some(Time {
                seconds,
                nanoseconds,
            })
        };
        for (text, time) in [
            ("0", at(0, 0)),
            ("1.5", at(1, 500_000_000)),
            ("1.030", at(1, 30_000_000)),
            ("1.", at(1, 0)),
            ("1.1234567899", at(1, 123_456_789)),
            ("-1", at(-1, 0)),
            ("-1.25", at(-2, 750_000_000)),
            ("-0.25", at(-1, 750_000_000)),
            ("", None),
            (".5", None),
            ("1.x", None),
            ("-9223372036854775808.5", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(super::time(text.as_bytes()), time, "{text}");
        }
    }
}
