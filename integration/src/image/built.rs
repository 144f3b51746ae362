// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The digests and layers of a written image.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

/// A layer of a written image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuiltLayer {
    /// The digest of the blob.
    pub digest: String,
    /// The digest of the uncompressed tar, or EROFS image, as the config states it.
    pub diff_id: String,
    /// The chain ID of this layer and all below.
    pub chain_id: String,
    /// The size of the blob in bytes.
    pub size: u64,
}

/// A manifest of a written image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuiltManifest {
    /// The digest of the manifest.
    pub digest: String,
    /// The digest of the config.
    pub config: String,
    /// The layers, from the lowest.
    pub layers: Vec<BuiltLayer>,
}

/// A written image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Built {
    /// The name it is imported under.
    pub reference: String,
    /// The digest of the index, if the name points to one and not to a manifest.
    pub index: Option<String>,
    /// The digest of the manifest, of the first platform's in an index.
    pub manifest: String,
    /// The digest of that manifest's config: the image ID in CRI.
    pub config: String,
    /// The layers of that manifest, from the lowest.
    pub layers: Vec<BuiltLayer>,
    /// The manifests of the further platforms of an index.
    pub others: Vec<BuiltManifest>,
    /// The archive that `ctr images import` takes.
    pub archive: PathBuf,
}

impl Built {
    /// Returns the digest that the name points to.
    pub fn target(&self) -> &str {
        self.index.as_deref().unwrap_or(&self.manifest)
    }

    /// Returns the chain ID of the whole image, empty without layers.
    pub fn chain_id(&self) -> &str {
        self.layers.last().map_or("", |layer| &layer.chain_id)
    }

    /// Returns the bytes of a blob.
    ///
    /// # Errors
    /// If it is not in the archive.
    pub fn blob(&self, digest: &str) -> Result<Vec<u8>> {
        let path = format!("blobs/{}", digest.replace(':', "/"));
        let file = File::open(&self.archive).with_context(|| format!("open {:?}", self.archive))?;
        for entry in tar::Archive::new(file).entries()? {
            let mut entry = entry?;
            if entry.path()?.as_os_str() == path.as_str() {
                let mut blob = Vec::new();
                entry.read_to_end(&mut blob)?;
                return Ok(blob);
            }
        }
        bail!("{digest} is not in {:?}", self.archive)
    }

    /// Returns the same with the manifest at `index` of the index in the place of the first.
    ///
    /// # Panics
    /// If there are not so many.
    #[must_use]
    pub fn entry(&self, index: usize) -> Self {
        let Some(other) = index.checked_sub(1) else {
            return self.clone();
        };
        let other = self.others[other].clone();
        Self {
            manifest: other.digest,
            config: other.config,
            layers: other.layers,
            others: Vec::new(),
            ..self.clone()
        }
    }
}
