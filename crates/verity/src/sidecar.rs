// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The files that containerd's snapshotter expects beside a layer.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::root_hash::{RootHash, RootHashError};

/// The name of a [`Sidecar`] in the directory of a snapshot, beside `layer.erofs`.
pub const SIDECAR_FILE: &str = "layer.erofs.dmverity";

/// The name of the file with the signature of the root hash, in DER, beside a sidecar.
pub const SIGNATURE_FILE: &str = "layer.erofs.sig";

/// The largest sidecar, in bytes. Kata Containers reads none that is larger.
const LIMIT: usize = 64 * 1024;

/// The file that says that a layer has a hash tree, and where, as containerd since 2.3 writes and reads it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Sidecar {
    /// The digest of the tree.
    pub root_hash: RootHash,
    /// The offset of the superblock, in bytes.
    pub hash_offset: u64,
    /// Keys that this crate does not know.
    other: Map<String, Value>,
}

/// The reason why a file is not a sidecar.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SidecarError {
    /// The file is too large.
    #[error("it has {0} bytes, more than {LIMIT}")]
    TooLarge(usize),
    /// The file is not a JSON object with the two keys.
    #[error("it is not the JSON of a sidecar")]
    Json(#[source] serde_json::Error),
    /// The root hash is empty or malformed.
    #[error(transparent)]
    RootHash(#[from] RootHashError),
    /// A key that containerd takes for one of the two, because it does not tell upper from lower case.
    #[error("its key \"{}\" is another spelling of a key", .0.escape_debug())]
    Ambiguous(String),
}

#[derive(Serialize, Deserialize)]
struct Document {
    #[serde(default)]
    roothash: String,
    hashoffset: u64,
    #[serde(flatten)]
    other: Map<String, Value>,
}

impl Sidecar {
    /// Creates a sidecar.
    pub fn new(root_hash: RootHash, hash_offset: u64) -> Self {
        Self {
            root_hash,
            hash_offset,
            other: Map::new(),
        }
    }

    /// Parses the bytes of a file.
    ///
    /// # Errors
    ///
    /// Files that are too large, malformed, or that other readers could read as another root hash are refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, SidecarError> {
        if bytes.len() > LIMIT {
            return Err(SidecarError::TooLarge(bytes.len()));
        }
        let document: Document = serde_json::from_slice(bytes).map_err(SidecarError::Json)?;
        // Go folds "ſ" to "s", too; its upper case is "S".
        let known = |key: &String| matches!(&*key.to_uppercase(), "ROOTHASH" | "HASHOFFSET");
        if let Some(key) = document.other.keys().find(|key| known(key)) {
            return Err(SidecarError::Ambiguous(key.clone()));
        }
        Ok(Self {
            root_hash: document.roothash.parse()?,
            hash_offset: document.hashoffset,
            other: document.other,
        })
    }

    /// Returns the bytes of the file: what containerd writes, then the other keys.
    ///
    /// # Errors
    ///
    /// The result would be too large to be read again.
    pub fn encode(&self) -> Result<Vec<u8>, SidecarError> {
        let document = Document {
            roothash: self.root_hash.to_string(),
            hashoffset: self.hash_offset,
            other: self.other.clone(),
        };
        let bytes = serde_json::to_vec_pretty(&document).map_err(SidecarError::Json)?;
        if bytes.len() > LIMIT {
            return Err(SidecarError::TooLarge(bytes.len()));
        }
        Ok(bytes)
    }
}
