// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A backend whose answers come from lists that were read once.
//!
//! Only the look-ups that a [`Reader`](crate::Reader) does are answered so; calls that change something
//! pass through. The lists are older than the next call: what is decided by them is decided again
//! before something is changed.

mod content;
mod images;
mod snapshots;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::join_all;
use resnap_core::{Error, Introspection, Ports, Result, SnapshotterInfo};

use self::content::{ListedContent, Reads};
use self::images::ListedImages;
use self::snapshots::{ListedSnapshotters, by_key};
use crate::backend::Backend;
use crate::known::KnownDocuments;

/// Returns a backend that answers from lists read now: of images, blobs, and snapshots on `names`, or on
/// all working snapshotters.
pub(crate) async fn backend(
    backend: &Backend,
    names: Option<&[String]>,
    documents: &KnownDocuments,
) -> Result<Backend, Error> {
    let (ports, scope) = (&backend.ports, &backend.scope);
    let (images, snapshotters) =
        futures::try_join!(ports.images.list(scope), ports.introspection.snapshotters())?;
    let working = snapshotters.iter().filter(|info| info.failure.is_none());
    let working = || working.clone().map(|info| info.name.clone()).collect();
    let names: Vec<String> = names.map_or_else(working, <[String]>::to_vec);
    let snapshots = join_all(names.into_iter().map(async |name| {
        let listed = ports.snapshotters.snapshotter(&name).list(scope).await;
        (name, listed.map(by_key))
    }));
    // After the images: what they consist of is there by then.
    let (blobs, snapshots) = futures::join!(ports.labeler.list(scope), snapshots);
    let snapshots: BTreeMap<_, _> = snapshots.into_iter().collect();
    let listed = Ports {
        images: Arc::new(ListedImages::new(images)),
        content: Arc::new(ListedContent {
            inner: Arc::clone(&ports.content),
            blobs: blobs?.into_iter().collect(),
            documents: documents.clone(),
            reads: Reads::default(),
        }),
        snapshotters: Arc::new(ListedSnapshotters {
            inner: Arc::clone(&ports.snapshotters),
            listed: snapshots
                .into_iter()
                .map(|(name, snapshots)| (name, Arc::new(snapshots)))
                .collect(),
        }),
        introspection: Arc::new(ListedIntrospection {
            inner: Arc::clone(&ports.introspection),
            snapshotters,
        }),
        ..ports.clone()
    };
    Ok(Backend {
        ports: listed,
        scope: scope.clone(),
        profiles: backend.profiles.clone(),
        sources: Vec::new(),
        keep_fetched: backend.keep_fetched,
        absent: Default::default(),
        feeds: Arc::clone(&backend.feeds),
    })
}

/// The snapshotters as they were listed.
struct ListedIntrospection {
    inner: Arc<dyn Introspection>,
    snapshotters: Vec<SnapshotterInfo>,
}

#[async_trait]
impl Introspection for ListedIntrospection {
    async fn snapshotters(&self) -> Result<Vec<SnapshotterInfo>> {
        Ok(self.snapshotters.clone())
    }

    async fn identity(&self) -> Result<String> {
        self.inner.identity().await
    }

    async fn content_root(&self) -> Result<Option<String>> {
        self.inner.content_root().await
    }
}
