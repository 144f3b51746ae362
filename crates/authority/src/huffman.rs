// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The Huffman code of HPACK (RFC 7541, appendix B). The code is canonical: the codes of one length
//! are in the order of their symbols, so that the lengths define all of it.

/// The length of the code of each byte, in bits.
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

const SHORTEST: usize = 5;
const LONGEST: usize = 30;

/// The codes of one length.
#[derive(Clone, Copy)]
struct Codes {
    /// The first longer code, padded with zeros: all codes of this length are below it.
    end: u64,
    /// The first code, padded with zeros.
    first: u64,
    /// The index of the first symbol in [`Table::symbols`].
    symbols: usize,
}

struct Table {
    /// The codes of each length.
    codes: [Codes; LONGEST + 1],
    /// All symbols, by the length of their code, then by value.
    symbols: [u8; 256],
}

const TABLE: Table = table();

const fn table() -> Table {
    let none = Codes {
        end: 0,
        first: 0,
        symbols: 0,
    };
    let mut table = Table {
        codes: [none; LONGEST + 1],
        symbols: [0; 256],
    };
    let (mut code, mut count, mut length) = (0_u64, 0, SHORTEST);
    while length <= LONGEST {
        let unit = 1 << (32 - length);
        table.codes[length].first = code;
        table.codes[length].symbols = count;
        let mut symbol = 0;
        while symbol < 256 {
            if LENGTHS[symbol] as usize == length {
                #[expect(clippy::cast_possible_truncation, reason = "it is less than 256")]
                let byte = symbol as u8;
                table.symbols[count] = byte;
                count += 1;
                code += unit;
            }
            symbol += 1;
        }
        table.codes[length].end = code;
        length += 1;
    }
    table
}

/// Decodes a string and appends it to `out`. Returns `None` if it is malformed.
pub(crate) fn decode(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    static DECODING: Table = TABLE;
    // The bits that are not decoded yet, left-aligned.
    let (mut bits, mut count) = (0_u64, 0_usize);
    let mut bytes = text.iter();
    loop {
        while count <= 56
            && let Some(&byte) = bytes.next()
        {
            count += 8;
            bits |= u64::from(byte) << (64 - count);
        }
        let next = bits >> 32;
        let mut lengths = SHORTEST..=LONGEST.min(count);
        // Bits that were not read must not count as a part of the code.
        let Some(length) = lengths.find(|&length| next < DECODING.codes[length].end) else {
            break;
        };
        let codes = &DECODING.codes[length];
        let number = usize::try_from((next - codes.first) >> (32 - length)).ok()?;
        out.push(*DECODING.symbols.get(codes.symbols + number)?);
        bits <<= length;
        count -= length;
    }
    // The padding must be a prefix of the end-of-string code (all ones) of less than eight bits.
    let padding = !(u64::MAX
        .checked_shr(u32::try_from(count).ok()?)
        .unwrap_or(0));
    (count < 8 && bits == padding).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(text: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        decode(text, &mut out).map(|()| out)
    }

    #[test]
    fn the_examples_of_the_specification() {
        for (text, string) in [
            (
                &b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff"[..],
                &b"www.example.com"[..],
            ),
            (b"\xa8\xeb\x10\x64\x9c\xbf", b"no-cache"),
            (b"\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f", b"custom-key"),
            (b"\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf", b"custom-value"),
            (b"", b""),
        ] {
            assert_eq!(decoded(text).as_deref(), Some(string));
        }
    }

    #[test]
    fn malformed_strings_are_refused() {
        for wrong in [
            // Padding of zeros, padding of eight bits, and the end-of-string code.
            &b"\xf0"[..],
            b"\xa8\xeb\x10\x64\x9c\xbf\xff",
            b"\xff\xff\xff\xff",
            b"\xff\xff\xff\xfc\xff",
        ] {
            assert_eq!(decoded(wrong), None, "{wrong:x?}");
        }
    }

    #[test]
    fn every_byte_has_a_code() {
        for byte in 0..=255_u8 {
            let length = usize::from(LENGTHS[usize::from(byte)]);
            let codes = TABLE.codes[length];
            let own = &TABLE.symbols[codes.symbols..];
            let number = own.iter().position(|&symbol| symbol == byte).unwrap();
            let code = codes.first + ((number as u64) << (32 - length));
            let bits = code << 8 | (0xff_ffff_ffff >> length);
            let text = &bits.to_be_bytes()[3..3 + length.div_ceil(8)];
            assert_eq!(decoded(text), Some(vec![byte]), "{byte} {text:x?}");
        }
    }
}
