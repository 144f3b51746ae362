// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The snapshotters.

use std::sync::Arc;

use async_trait::async_trait;
use resnap_core::{
    ChainId, Labels, Mount, Result, Scope, SnapshotInfo, SnapshotKey, SnapshotKind, Snapshotter,
    Snapshotters, Usage,
};

use crate::disk::usage;
use crate::fault::Fault;
use crate::local::Local;
use crate::rows::Row;
use crate::state::is_own;
use crate::work::Work;

impl Snapshotters for Local {
    fn snapshotter(&self, name: &str) -> Arc<dyn Snapshotter> {
        Arc::new(LocalSnapshotter {
            local: self.clone(),
            name: name.to_owned(),
        })
    }
}

struct LocalSnapshotter {
    local: Local,
    name: String,
}

#[async_trait]
impl Snapshotter for LocalSnapshotter {
    async fn stat(&self, scope: &Scope, key: &SnapshotKey) -> Result<SnapshotInfo> {
        let wanted = key.clone();
        self.call(scope, "stat snapshot", key.as_str(), move |work| {
            Ok(work.find(&wanted)?.info())
        })
        .await
    }

    async fn prepare(
        &self,
        scope: &Scope,
        key: &SnapshotKey,
        parent: Option<&ChainId>,
        labels: &Labels,
    ) -> Result<Vec<Mount>> {
        let parent = parent.map(SnapshotKey::from);
        let (called, name, labels) = (scope.clone(), key.clone(), labels.clone());
        self.call(scope, "prepare snapshot", key.as_str(), move |work| {
            work.prepare(&called, &name, parent.as_ref(), &labels)
        })
        .await
    }

    async fn view(&self, scope: &Scope, key: &SnapshotKey, parent: &ChainId) -> Result<Vec<Mount>> {
        let (called, name, parent) = (scope.clone(), key.clone(), SnapshotKey::from(parent));
        self.call(scope, "view snapshot", key.as_str(), move |work| {
            work.view(&called, &name, &parent)
        })
        .await
    }

    async fn commit(
        &self,
        scope: &Scope,
        name: &ChainId,
        key: &SnapshotKey,
        labels: &Labels,
    ) -> Result<()> {
        let name = SnapshotKey::from(name);
        let (called, active, labels) = (scope.clone(), key.clone(), labels.clone());
        self.call(scope, "commit snapshot", key.as_str(), move |work| {
            work.commit(&called, &name, &active, &labels)
        })
        .await
    }

    async fn remove(&self, scope: &Scope, key: &SnapshotKey) -> Result<()> {
        let (called, wanted) = (scope.clone(), key.clone());
        self.call(scope, "remove snapshot", key.as_str(), move |work| {
            work.remove(&called, &wanted)
        })
        .await
    }

    async fn set_labels(&self, scope: &Scope, key: &SnapshotKey, labels: &Labels) -> Result<()> {
        let (wanted, new) = (key.clone(), labels.clone());
        self.call(scope, "label snapshot", key.as_str(), move |work| {
            work.set_labels(&wanted, new)
        })
        .await
    }

    async fn children(&self, scope: &Scope, parent: &SnapshotKey) -> Result<Vec<SnapshotInfo>> {
        self.list_rows(scope, Some(parent.clone())).await
    }

    async fn list(&self, scope: &Scope) -> Result<Vec<SnapshotInfo>> {
        self.list_rows(scope, None).await
    }

    async fn usage(&self, scope: &Scope, key: &SnapshotKey) -> Result<Usage> {
        let wanted = key.clone();
        self.call(scope, "measure snapshot", key.as_str(), move |work| {
            let row = work.read(|transaction| work.get(transaction, &wanted))?;
            match row.kind {
                SnapshotKind::Committed => Ok(row.usage),
                SnapshotKind::View => Ok(Usage::default()),
                SnapshotKind::Active => Ok(usage(&work.directory(row.id))?),
            }
        })
        .await
    }
}

impl LocalSnapshotter {
    async fn call<T: Send + 'static>(
        &self,
        scope: &Scope,
        operation: &'static str,
        subject: &str,
        work: impl FnOnce(&Work<'_>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T> {
        let name = self.name.clone();
        self.local
            .call_in(scope, operation, subject, move |state| {
                work(&Work::new(state, &name)?)
            })
            .await
    }

    async fn list_rows(
        &self,
        scope: &Scope,
        parent: Option<SnapshotKey>,
    ) -> Result<Vec<SnapshotInfo>> {
        if !is_own(scope) {
            return Ok(Vec::new());
        }
        self.call(scope, "list snapshots of", &self.name, move |work| {
            let rows = work.list(parent.as_ref())?.into_iter();
            Ok(rows.map(Row::info).collect())
        })
        .await
    }
}
