// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The backend of an engine: the ports, and the look-ups that several modules need.

use std::collections::BTreeSet;
use std::sync::Arc;

use resnap_core::{
    ChainId, Error, Kind, Ports, Profiles, Scope, SnapshotInfo, SnapshotKey, SnapshotKind,
    Snapshotter,
};
use tokio::sync::Semaphore;

use crate::absent::Absent;
use crate::sources::{KeepFetched, Source};
use crate::{Request, UnpackError};

/// One containerd namespace, reached through the ports.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) ports: Ports,
    pub(crate) scope: Scope,
    pub(crate) profiles: Profiles,
    /// The sources of missing content, in order.
    pub(crate) sources: Vec<Source>,
    pub(crate) keep_fetched: KeepFetched,
    /// Images that had no artifacts recently.
    pub(crate) absent: Absent,
    /// The permits for layers that are written while their blobs are fetched.
    pub(crate) feeds: Arc<Semaphore>,
}

impl Backend {
    pub(crate) fn snapshotter(&self, name: &str) -> Arc<dyn Snapshotter> {
        self.ports.snapshotters.snapshotter(name)
    }

    /// Returns the committed snapshot of a chain, if it exists.
    pub(crate) async fn committed(
        &self,
        snapshotter: &dyn Snapshotter,
        chain_id: &ChainId,
    ) -> Result<Option<SnapshotInfo>, Error> {
        let key = SnapshotKey::from(chain_id);
        match snapshotter.stat(&self.scope, &key).await {
            Ok(info) => Ok(Some(info).filter(|info| info.kind == SnapshotKind::Committed)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns whether the layer at `index` of `count` must have labels on the snapshotter.
    pub(crate) fn needs_labels(&self, snapshotter: &str, index: usize, count: usize) -> bool {
        let need = self.profiles.need(snapshotter);
        need.is_some_and(|need| need.covers(index, count))
    }

    /// Returns the OS features of the snapshotter that `request` names; none if it names none.
    pub(crate) fn features(&self, request: &Request) -> BTreeSet<String> {
        let snapshotter = request.snapshotter.as_deref();
        let profile = snapshotter.map(|name| self.profiles.get(name));
        profile.map_or_else(BTreeSet::new, |profile| profile.os_features.clone())
    }

    /// Checks that `name` is a snapshotter that works.
    pub(crate) async fn require_snapshotter(&self, name: &str) -> Result<(), UnpackError> {
        let all = self.ports.introspection.snapshotters().await?;
        let found = all.iter().find(|snapshotter| snapshotter.name == name);
        if found.is_some_and(|snapshotter| snapshotter.failure.is_none()) {
            return Ok(());
        }
        Err(UnpackError::NoSuchSnapshotter {
            snapshotter: name.to_owned(),
            failure: found.and_then(|snapshotter| snapshotter.failure.clone()),
            available: all
                .iter()
                .filter(|snapshotter| snapshotter.failure.is_none())
                .map(|snapshotter| snapshotter.name.clone())
                .collect(),
        })
    }

    /// Returns the error that explains `error` best. containerd answers every call for an unknown
    /// snapshotter with InvalidArgument; looking it up only after a failure saves a call otherwise.
    pub(crate) async fn explain(&self, snapshotter: &str, error: UnpackError) -> UnpackError {
        if !matches!(
            error.kind(),
            Kind::InvalidArgument | Kind::NotFound | Kind::Unknown
        ) {
            return error;
        }
        match self.require_snapshotter(snapshotter).await {
            Err(missing @ UnpackError::NoSuchSnapshotter { .. }) => missing,
            _ => error,
        }
    }
}
