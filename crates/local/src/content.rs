// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The content store, read, and its labels.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::future::ready;
use std::io::{self, Read as _};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use resnap_core::{
    ByteStream, ContentInfo, ContentLabeler, ContentReader, Digest, Hasher, Kind, Labels, Result,
    Scope,
};

use crate::blobs;
use crate::fault::Fault;
use crate::local::Local;
use crate::state::{State, is_own};
use crate::store::check_labels;

/// The size of the pieces of a blob.
const PIECE_BYTES: u64 = 1 << 20;

#[async_trait]
impl ContentReader for Local {
    async fn info(&self, scope: &Scope, digest: &Digest) -> Result<ContentInfo> {
        let wanted = digest.clone();
        self.call_in(scope, "look up content", digest.as_str(), move |state| {
            let store = &state.store;
            store.read(|transaction| blobs::info(transaction, &state.layout, &wanted))
        })
        .await
    }

    /// Returns no blob that has the size of a document and is damaged, and removes it. A larger one is removed
    /// once it has been read.
    async fn open(&self, scope: &Scope, digest: &Digest) -> Result<ByteStream> {
        let wanted = digest.clone();
        let (first, rest) = self
            .call_in(scope, "read content", digest.as_str(), move |state| {
                let mut reading = Reading {
                    file: blobs::open(&state.layout, &wanted)?,
                    hasher: wanted.hasher(),
                    digest: wanted,
                };
                let piece = reading.next()?;
                if !is_last(&piece) {
                    return Ok((piece, Some(reading)));
                }
                match reading.end(state)? {
                    None => Ok((piece, None)),
                    Some(damage) => Err(Fault::Refused(Kind::NotFound, damage)),
                }
            })
            .await?;
        let (local, subject) = (self.clone(), digest.to_string());
        let pieces = stream::unfold(rest, move |rest| {
            let (local, subject) = (local.clone(), subject.clone());
            async move {
                let mut reading = rest?;
                let next = local.call("read content", &subject, |state| {
                    let piece = reading.next()?;
                    if !is_last(&piece) {
                        return Ok((piece, Some(reading)));
                    }
                    // Whoever reads the bytes checks them.
                    reading.end(state)?;
                    Ok((piece, None))
                });
                Some(match next.await {
                    Ok((piece, rest)) => (Ok(piece), rest),
                    Err(error) => (Err(error), None),
                })
            }
        });
        let pieces = stream::iter([Ok(first)]).chain(pieces);
        Ok(pieces.try_filter(|piece| ready(!piece.is_empty())).boxed())
    }

    async fn existing(&self, scope: &Scope, digests: &[Digest]) -> Result<HashSet<Digest>> {
        if !is_own(scope) {
            return Ok(HashSet::new());
        }
        let wanted = digests.to_vec();
        self.call("look up", "content", move |state| {
            let mut existing = HashSet::new();
            for digest in wanted {
                match blobs::size(&state.layout, &digest) {
                    Ok(_) => _ = existing.insert(digest),
                    Err(Fault::Refused(..)) => {}
                    Err(fault) => return Err(fault),
                }
            }
            Ok(existing)
        })
        .await
    }
}

/// A blob that is being read.
struct Reading {
    file: File,
    digest: Digest,
    hasher: Hasher,
}

impl Reading {
    /// Reads the next piece.
    fn next(&mut self) -> io::Result<Bytes> {
        let mut piece = Vec::new();
        (&self.file).take(PIECE_BYTES).read_to_end(&mut piece)?;
        self.hasher.update(&piece);
        Ok(piece.into())
    }

    /// Removes the blob if it is damaged, and returns what is wrong.
    fn end(self, state: &State) -> Result<Option<String>, Fault> {
        let (wanted, found) = (&self.digest, self.hasher.digest());
        if found == *wanted {
            return Ok(None);
        }
        state
            .store
            .write(|_| blobs::remove_damaged(&state.layout, wanted, &self.file))?;
        tracing::warn!(%wanted, %found, "a damaged blob was removed");
        Ok(Some(format!(
            "it was damaged, with the digest {found}, and was removed"
        )))
    }
}

fn is_last(piece: &Bytes) -> bool {
    (piece.len() as u64) < PIECE_BYTES
}

#[async_trait]
impl ContentLabeler for Local {
    async fn set_label(
        &self,
        scope: &Scope,
        digest: &Digest,
        key: &str,
        value: &str,
    ) -> Result<()> {
        let (key, value) = (key.to_owned(), value.to_owned());
        change_labels(self, scope, digest, move |labels| {
            check_labels([(&key, &value)])?;
            labels.insert(key, value);
            Ok(())
        })
        .await
    }

    async fn remove_label(&self, scope: &Scope, digest: &Digest, key: &str) -> Result<()> {
        let key = key.to_owned();
        change_labels(self, scope, digest, move |labels| {
            labels.remove(&key);
            Ok(())
        })
        .await
    }

    async fn list(&self, scope: &Scope) -> Result<BTreeMap<Digest, ContentInfo>> {
        if !is_own(scope) {
            return Ok(BTreeMap::new());
        }
        self.call("list", "content", |state| {
            state.store.read(|transaction| {
                let mut labels = blobs::labelled(transaction)?;
                let mut all = BTreeMap::new();
                for digest in blobs::list(&state.layout)? {
                    let labels = labels.remove(&digest).unwrap_or_default();
                    // It may have been removed meanwhile.
                    if let Ok(size) = blobs::size(&state.layout, &digest) {
                        all.insert(digest, ContentInfo { size, labels });
                    }
                }
                Ok(all)
            })
        })
        .await
    }
}

async fn change_labels(
    local: &Local,
    scope: &Scope,
    digest: &Digest,
    change: impl FnOnce(&mut Labels) -> Result<(), Fault> + Send + 'static,
) -> Result<()> {
    let wanted = digest.clone();
    local
        .call_in(scope, "label content", digest.as_str(), move |state| {
            state.store.write(|transaction| {
                let mut labels = blobs::info(transaction, &state.layout, &wanted)?.labels;
                change(&mut labels)?;
                blobs::set_labels(transaction, &wanted, &labels)
            })
        })
        .await
}
