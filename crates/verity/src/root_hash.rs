// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Root hashes.

use std::fmt;
use std::str::FromStr;

/// The digest of the top block of a tree. It is written as 64 lower-case hexadecimal digits, and signatures are
/// of these digits.
///
/// ```
/// # use resnap_verity::RootHash;
/// let text = "00ff".repeat(16);
/// let root: RootHash = text.parse()?;
/// assert_eq!(root.to_string(), text);
/// assert!("00FF".repeat(16).parse::<RootHash>().is_err());
/// # Ok::<(), resnap_verity::RootHashError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RootHash(pub [u8; 32]);

/// The reason why a text is not a root hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RootHashError {
    /// There is no text.
    #[error("the root hash is empty")]
    Empty,
    /// The text has another length, or other characters.
    #[error("the root hash \"{}\" is not 64 lower-case hexadecimal digits", .0.escape_debug())]
    Malformed(String),
}

/// Characters of a malformed root hash that an error shows.
const SHOWN: usize = 80;

impl fmt::Display for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootHash({self})")
    }
}

impl FromStr for RootHash {
    type Err = RootHashError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(RootHashError::Empty);
        }
        let malformed = || RootHashError::Malformed(text.chars().take(SHOWN).collect());
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(malformed()),
        };
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
            return Err(malformed());
        };
        let pairs: &[[u8; 2]; 32] = pairs.try_into().map_err(|_| malformed())?;
        let mut root = [0; 32];
        for (byte, [high, low]) in root.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Ok(Self(root))
    }
}
