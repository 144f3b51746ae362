// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Digests and the identifiers derived from them (OCI image-spec `descriptor.md`, `config.md`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// A content digest `algorithm:hex`: `sha256`, `sha384` or `sha512` with lower-case hex of the
/// algorithm's own length, as registered by the OCI image-spec and accepted by containerd.
///
/// Digests become parts of paths and keys, so the parser accepts nothing else.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// The error for a string that is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a digest: want sha256, sha384 or sha512, a colon and lower-case hex")]
pub struct InvalidDigest(String);

impl Digest {
    /// Returns the SHA-256 digest of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Self {
        Self(format!("sha256:{}", hex(&Sha256::digest(bytes))))
    }

    /// Returns the digest with this SHA-256 hash.
    pub fn from_sha256(hash: [u8; 32]) -> Self {
        Self(format!("sha256:{}", hex(&hash)))
    }

    /// Returns the algorithm: `sha256`, `sha384` or `sha512`.
    pub fn algorithm(&self) -> &str {
        self.0
            .split_once(':')
            .map_or("", |(algorithm, _)| algorithm)
    }

    /// Returns the lower-case hex after the colon.
    pub fn encoded(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, encoded)| encoded)
    }

    /// Returns the text `algorithm:hex`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the digest of `bytes` by the algorithm of this digest.
    #[must_use]
    pub fn same_algorithm(&self, bytes: &[u8]) -> Self {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.digest()
    }

    /// Returns a hasher with the algorithm of this digest.
    pub fn hasher(&self) -> Hasher {
        match self.algorithm() {
            "sha512" => Hasher::Sha512(Sha512::new()),
            "sha384" => Hasher::Sha384(Sha384::new()),
            _ => Hasher::Sha256(Sha256::new()),
        }
    }
}

/// Computes the digest of bytes that arrive in pieces.
#[derive(Debug, Clone)]
pub enum Hasher {
    /// `sha256`.
    Sha256(Sha256),
    /// `sha384`.
    Sha384(Sha384),
    /// `sha512`.
    Sha512(Sha512),
}

impl Hasher {
    /// Adds the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha384(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// Returns the digest of all pieces.
    pub fn digest(self) -> Digest {
        Digest(match self {
            Self::Sha256(hasher) => format!("sha256:{}", hex(&hasher.finalize())),
            Self::Sha384(hasher) => format!("sha384:{}", hex(&hasher.finalize())),
            Self::Sha512(hasher) => format!("sha512:{}", hex(&hasher.finalize())),
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
            // Writing to a String cannot fail.
            let _ = write!(out, "{byte:02x}");
            out
        })
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let length = match text.split_once(':') {
            Some(("sha256", encoded)) => (encoded, 64),
            Some(("sha384", encoded)) => (encoded, 96),
            Some(("sha512", encoded)) => (encoded, 128),
            _ => return Err(InvalidDigest(shown(&text))),
        };
        match length {
            (encoded, length)
                if encoded.len() == length
                    && encoded
                        .bytes()
                        .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) =>
            {
                Ok(Self(text))
            }
            _ => Err(InvalidDigest(shown(&text))),
        }
    }
}

/// Truncates untrusted input for error messages.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(140).collect()
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The digest of a layer's uncompressed tar, as the image's config lists it (`rootfs.diff_ids`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiffId(pub Digest);

impl fmt::Display for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The identity of a layer on top of its parents (OCI image-spec `config.md`, "Layer ChainID"). It is
/// the name of the layer's committed snapshot in containerd.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ChainId(Digest);

impl ChainId {
    /// Returns the chain ID of a layer on `parent`: the diff ID itself without a parent, otherwise the
    /// SHA-256 digest of `parent diff-id` with one space in between.
    pub fn of(parent: Option<&ChainId>, diff_id: &DiffId) -> Self {
        match parent {
            None => Self(diff_id.0.clone()),
            Some(parent) => Self(Digest::sha256(format!("{parent} {diff_id}").as_bytes())),
        }
    }

    /// Wraps a chain ID received from another process, unchecked.
    pub fn from_trusted(digest: Digest) -> Self {
        Self(digest)
    }

    /// Returns the text `algorithm:hex`.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diff(letter: char) -> DiffId {
        DiffId(
            format!("sha256:{}", String::from(letter).repeat(64))
                .parse()
                .unwrap(),
        )
    }

    #[test]
    fn digests_are_strict() {
        let long = format!("sha256:{}", "a".repeat(64));
        assert_eq!(long.parse::<Digest>().unwrap().encoded(), "a".repeat(64));
        for bad in [
            "",
            "sha256",
            "sha256:",
            "sha256:abc",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            &long.to_uppercase(),
            &format!("sha256:{}", "../".repeat(22)),
            &format!("sha512:{}", "a".repeat(64)),
            &format!("{long} "),
        ] {
            let error = InvalidDigest(bad.to_owned());
            assert_eq!(bad.parse::<Digest>(), Err(error));
        }
        assert!(
            "é".repeat(500)
                .parse::<Digest>()
                .unwrap_err()
                .to_string()
                .len()
                < 1200
        );
    }

    #[test]
    fn digests_hash_in_their_own_algorithm() {
        let empty = Digest::sha256(b"");
        assert_eq!(
            empty.as_str(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        let long: Digest = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
        assert!(
            long.same_algorithm(b"")
                .encoded()
                .starts_with("cf83e1357eefb8bd")
        );
    }

    #[test]
    fn chain_ids_follow_the_spec() {
        let base = ChainId::of(None, &diff('a'));
        assert_eq!(base.as_str(), diff('a').0.as_str());
        let text = format!("{base} {}", diff('b'));
        assert_eq!(
            ChainId::of(Some(&base), &diff('b')).as_str(),
            Digest::sha256(text.as_bytes()).as_str()
        );
    }
}
