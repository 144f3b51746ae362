// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The content of an image that is read from a source of blobs, without a content store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use resnap_core::{
    BlobSource, ByteStream, ContentInfo, ContentReader, Descriptor, Digest, Error, Kind, Labels,
    MissingBlob, Referrer, Result, Scope,
};
use resnap_handler_wrapper::MAX_DOCUMENT_BYTES;

/// The number of times that a transfer is continued after it broke without a new byte.
const ATTEMPTS: u32 = 4;

/// The blobs of an image, read from where it is. Blobs are found by their descriptors, which have to be added
/// before.
pub(crate) struct SourceContent {
    source: Arc<dyn BlobSource>,
    reference: Option<String>,
    known: Mutex<HashMap<Digest, Known>>,
}

#[derive(Clone)]
struct Known {
    descriptor: Descriptor,
    /// The bytes of a document.
    bytes: Option<Bytes>,
}

impl SourceContent {
    pub(crate) fn new(source: Arc<dyn BlobSource>, reference: Option<String>) -> Self {
        Self {
            source,
            reference,
            known: Mutex::default(),
        }
    }

    /// Adds a blob.
    pub(crate) fn add(&self, descriptor: &Descriptor) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = known.entry(descriptor.digest.clone());
        entry.or_insert_with(|| Known {
            descriptor: descriptor.clone(),
            bytes: None,
        });
    }

    /// Reads a document and adds it. Returns whether it is new. The bytes are unchecked.
    pub(crate) async fn fetch(&self, descriptor: &Descriptor) -> Result<bool> {
        let known = self.get(&descriptor.digest);
        if known.is_some_and(|known| known.bytes.is_some()) {
            return Ok(false);
        }
        let mut stream = self.transfer(descriptor.clone());
        let mut bytes = Vec::new();
        while let Some(piece) = stream.next().await {
            bytes.extend_from_slice(&piece?);
            if bytes.len() > MAX_DOCUMENT_BYTES {
                let reason = format!("it has more than {MAX_DOCUMENT_BYTES} bytes");
                let read = Error::new(Kind::ResourceExhausted, "read", descriptor.digest.as_str());
                return Err(read.with_source(reason));
            }
        }
        let document = Known {
            descriptor: descriptor.clone(),
            bytes: Some(bytes.into()),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(descriptor.digest.clone(), document);
        Ok(true)
    }

    fn get(&self, digest: &Digest) -> Option<Known> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(digest).cloned()
    }

    fn require(&self, digest: &Digest) -> Result<Known> {
        self.get(digest)
            .ok_or_else(|| Error::new(Kind::NotFound, "read", digest.as_str()))
    }

    /// Returns the manifests that refer to a manifest.
    pub(crate) async fn referrers(
        &self,
        manifest: &Descriptor,
        artifact_types: &[&str],
    ) -> Result<Vec<Referrer>> {
        let subject = MissingBlob::new(manifest.clone(), self.reference.clone());
        self.source.referrers(&subject, artifact_types).await
    }

    /// Returns the bytes of a blob. A transfer that breaks is continued where it broke.
    fn transfer(&self, descriptor: Descriptor) -> ByteStream {
        let transfer = Transfer {
            source: Arc::clone(&self.source),
            blob: MissingBlob::new(descriptor, self.reference.clone()),
            stream: None,
            offset: 0,
            left: ATTEMPTS,
        };
        stream::try_unfold(transfer, Transfer::next).boxed()
    }
}

struct Transfer {
    source: Arc<dyn BlobSource>,
    blob: MissingBlob,
    stream: Option<ByteStream>,
    offset: u64,
    left: u32,
}

impl Transfer {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        loop {
            let piece = match &mut self.stream {
                Some(stream) => stream.next().await,
                None => match self.source.open(&self.blob, self.offset).await {
                    Ok(stream) => {
                        self.stream = Some(stream);
                        continue;
                    }
                    Err(error) => Some(Err(error)),
                },
            };
            match piece {
                None => return Ok(None),
                Some(Ok(piece)) => {
                    self.offset += piece.len() as u64;
                    self.left = ATTEMPTS;
                    return Ok(Some((piece, self)));
                }
                Some(Err(error)) => {
                    let may_pass =
                        matches!(error.kind(), Kind::Unavailable | Kind::DeadlineExceeded);
                    // Opening is repeated by the source itself.
                    if !may_pass || self.left == 0 || self.stream.take().is_none() {
                        return Err(error);
                    }
                    self.left -= 1;
                }
            }
        }
    }
}

#[async_trait]
impl ContentReader for SourceContent {
    async fn info(&self, _: &Scope, digest: &Digest) -> Result<ContentInfo> {
        Ok(ContentInfo {
            size: self.require(digest)?.descriptor.size,
            labels: Labels::new(),
        })
    }

    async fn open(&self, _: &Scope, digest: &Digest) -> Result<ByteStream> {
        let known = self.require(digest)?;
        Ok(match known.bytes {
            Some(bytes) => stream::iter([Ok(bytes)]).boxed(),
            None => self.transfer(known.descriptor),
        })
    }
}
