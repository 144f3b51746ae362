// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Listed snapshots.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use resnap_core::{
    ChainId, Error, Kind, Labels, Mount, Result, Scope, SnapshotInfo, SnapshotKey, Snapshotter,
    Snapshotters, Usage,
};

/// The snapshots of a snapshotter, or the error of listing them.
type Listed = Result<HashMap<SnapshotKey, SnapshotInfo>>;

/// The snapshotters, some of them with their snapshots.
pub(super) struct ListedSnapshotters {
    pub(super) inner: Arc<dyn Snapshotters>,
    pub(super) listed: HashMap<String, Arc<Listed>>,
}

impl Snapshotters for ListedSnapshotters {
    fn snapshotter(&self, name: &str) -> Arc<dyn Snapshotter> {
        let inner = self.inner.snapshotter(name);
        match self.listed.get(name) {
            None => inner,
            Some(listed) => Arc::new(ListedSnapshotter {
                name: name.to_owned(),
                inner,
                listed: Arc::clone(listed),
            }),
        }
    }
}

/// A snapshotter with its snapshots.
struct ListedSnapshotter {
    name: String,
    inner: Arc<dyn Snapshotter>,
    listed: Arc<Listed>,
}

impl ListedSnapshotter {
    fn listed(&self) -> Result<&HashMap<SnapshotKey, SnapshotInfo>> {
        self.listed.as_ref().as_ref().map_err(Clone::clone)
    }
}

#[async_trait]
impl Snapshotter for ListedSnapshotter {
    async fn stat(&self, _: &Scope, key: &SnapshotKey) -> Result<SnapshotInfo> {
        let info = self.listed()?.get(key).cloned();
        info.ok_or_else(|| {
            let subject = format!("{key} on {}", self.name);
            Error::new(Kind::NotFound, "stat snapshot", subject)
        })
    }

    async fn prepare(
        &self,
        scope: &Scope,
        key: &SnapshotKey,
        parent: Option<&ChainId>,
        labels: &Labels,
    ) -> Result<Vec<Mount>> {
        self.inner.prepare(scope, key, parent, labels).await
    }

    async fn view(&self, scope: &Scope, key: &SnapshotKey, parent: &ChainId) -> Result<Vec<Mount>> {
        self.inner.view(scope, key, parent).await
    }

    async fn commit(
        &self,
        scope: &Scope,
        name: &ChainId,
        key: &SnapshotKey,
        labels: &Labels,
    ) -> Result<()> {
        self.inner.commit(scope, name, key, labels).await
    }

    async fn remove(&self, scope: &Scope, key: &SnapshotKey) -> Result<()> {
        self.inner.remove(scope, key).await
    }

    async fn set_labels(&self, scope: &Scope, key: &SnapshotKey, labels: &Labels) -> Result<()> {
        self.inner.set_labels(scope, key, labels).await
    }

    async fn children(&self, _: &Scope, parent: &SnapshotKey) -> Result<Vec<SnapshotInfo>> {
        let all = self.listed()?.values();
        let children = all.filter(|info| info.parent.as_ref() == Some(parent));
        Ok(children.cloned().collect())
    }

    async fn list(&self, _: &Scope) -> Result<Vec<SnapshotInfo>> {
        Ok(self.listed()?.values().cloned().collect())
    }

    async fn usage(&self, scope: &Scope, key: &SnapshotKey) -> Result<Usage> {
        self.inner.usage(scope, key).await
    }
}

pub(super) fn by_key(snapshots: Vec<SnapshotInfo>) -> HashMap<SnapshotKey, SnapshotInfo> {
    let snapshots = snapshots.into_iter();
    snapshots.map(|info| (info.key.clone(), info)).collect()
}
