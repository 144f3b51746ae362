// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Sources of blobs that are missing in the content store.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;

use crate::{ByteStream, Descriptor, PodId, Referrer, Result};

/// A blob that is missing in the content store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingBlob {
    /// Its descriptor in the manifest or index.
    pub descriptor: Descriptor,
    /// The reference by which the image can be pulled, such as `docker.io/library/web:1`.
    pub reference: Option<String>,
    /// The repositories that the blob's image was pulled from before, by the host of their registry
    /// (the labels `containerd.io/distribution.source.HOST`).
    pub repositories: BTreeMap<String, Vec<String>>,
    /// The addresses that its descriptor gives for it, outside of any registry (`urls` of a foreign
    /// layer).
    pub urls: Vec<String>,
    /// The pods that wait for the image.
    pub pods: BTreeSet<PodId>,
}

impl MissingBlob {
    /// Returns a blob of which no more is known, and which no pod waits for.
    pub fn new(descriptor: Descriptor, reference: Option<String>) -> Self {
        Self {
            descriptor,
            reference,
            repositories: BTreeMap::new(),
            urls: Vec::new(),
            pods: BTreeSet::new(),
        }
    }
}

/// A source of blobs. It may be asked for several blobs concurrently.
#[async_trait]
pub trait BlobSource: Send + Sync {
    /// Returns the name of the source as the configuration has it, such as `registry`.
    fn name(&self) -> &'static str;

    /// Returns whether the source has the blob. A source that would have to ask others returns true.
    ///
    /// # Errors
    /// Those of [`BlobSource::open`].
    async fn has(&self, blob: &MissingBlob) -> Result<bool> {
        let _ = blob;
        Ok(true)
    }

    /// Opens a blob from byte `offset` on. The bytes are unchecked. Dropping the stream ends the
    /// transfer.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::Kind::NotFound) if the source does not have the blob;
    /// [`Kind::Unauthenticated`](crate::Kind::Unauthenticated) or
    /// [`Kind::PermissionDenied`](crate::Kind::PermissionDenied) if it asks for other credentials;
    /// [`Kind::Unavailable`](crate::Kind::Unavailable) or
    /// [`Kind::DeadlineExceeded`](crate::Kind::DeadlineExceeded) if it does not answer, or the transfer
    /// stalls. The stream ends at its first error.
    async fn open(&self, blob: &MissingBlob, offset: u64) -> Result<ByteStream>;

    /// Returns the manifests that refer to a manifest, `subject`, and have one of these artifact types.
    /// Nothing about them is checked: whoever may push to the repository may add one. They are opened like
    /// other blobs.
    ///
    /// # Errors
    /// Those of [`BlobSource::open`], except that a source that has none returns none.
    async fn referrers(
        &self,
        subject: &MissingBlob,
        artifact_types: &[&str],
    ) -> Result<Vec<Referrer>> {
        let _ = (subject, artifact_types);
        Ok(Vec::new())
    }

    /// Called when the bytes of the last transfer of a blob were not those of its digest, or came too
    /// slowly. Returns whether another server would be asked now.
    fn reject(&self, blob: &MissingBlob) -> bool {
        let _ = blob;
        false
    }
}
