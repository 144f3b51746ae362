// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The content store, read, and its labels.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read as _};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use resnap_core::{
    ByteStream, ContentInfo, ContentLabeler, ContentReader, Digest, Labels, Result, Scope,
};
use tokio::task::spawn_blocking;

use crate::blobs;
use crate::fault::Fault;
use crate::local::Local;
use crate::state::is_own;
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

    async fn open(&self, scope: &Scope, digest: &Digest) -> Result<ByteStream> {
        let wanted = digest.clone();
        let file = self
            .call_in(scope, "read content", digest.as_str(), move |state| {
                blobs::open(&state.layout, &wanted)
            })
            .await?;
        let subject = digest.to_string();
        let pieces = stream::unfold(Some(file), move |file| {
            let subject = subject.clone();
            async move {
                let read = spawn_blocking(move || file.map(read_piece).transpose()).await;
                let read = read.map_err(io::Error::other).and_then(|read| read);
                match read {
                    Ok(read) => {
                        let (piece, file) = read?;
                        (!piece.is_empty()).then_some((Ok(piece), Some(file)))
                    }
                    Err(error) => {
                        let error = Fault::File(error).of("read content", &subject);
                        Some((Err(error), None))
                    }
                }
            }
        });
        Ok(pieces.boxed())
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

fn read_piece(mut file: File) -> io::Result<(Bytes, File)> {
    let mut piece = Vec::new();
    (&mut file).take(PIECE_BYTES).read_to_end(&mut piece)?;
    Ok((piece.into(), file))
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
