// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Snapshots (containerd `core/metadata/snapshot.go`).

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, lchown};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use resnap_core::{
    ChainId, Kind, Labels, Mount, Resource, Result, Scope, SnapshotInfo, SnapshotKey, SnapshotKind,
    Snapshotter, Snapshotters, Usage, labels,
};
use rusqlite::Transaction;
use rustix::fs::syncfs;

use crate::disk::usage;
use crate::fault::Fault;
use crate::local::Local;
use crate::mounts::{FILES, IMAGE_MARKER, Place, WORK};
use crate::removal::{empty, set_aside};
use crate::resource;
use crate::rows::{self, NewRow, Row};
use crate::snapshotters::{ALL, EROFS, OVERLAYFS};
use crate::state::{State, is_own};
use crate::store::check_labels;

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

/// Work on the snapshots of one snapshotter.
struct Work<'a> {
    state: &'a State,
    snapshotter: &'a str,
}

#[async_trait]
impl Snapshotter for LocalSnapshotter {
    async fn stat(&self, scope: &Scope, key: &SnapshotKey) -> Result<SnapshotInfo> {
        let wanted = key.clone();
        self.call(scope, "stat snapshot", key.as_str(), move |work| {
            work.read(|transaction| Ok(work.get(transaction, &wanted)?.info()))
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
        let wanted = key.clone();
        self.call(scope, "remove snapshot", key.as_str(), move |work| {
            work.remove(&wanted)
        })
        .await
    }

    async fn set_labels(&self, scope: &Scope, key: &SnapshotKey, labels: &Labels) -> Result<()> {
        let (wanted, new) = (key.clone(), labels.clone());
        self.call(scope, "label snapshot", key.as_str(), move |work| {
            check_labels(&new)?;
            work.state.store.write(|transaction| {
                let row = work.get(transaction, &wanted)?;
                let mut labels = row.labels;
                labels.extend(new);
                labels.retain(|_, value| !value.is_empty());
                rows::set_labels(transaction, row.id, &labels)
            })
        })
        .await
    }

    async fn children(&self, scope: &Scope, parent: &SnapshotKey) -> Result<Vec<SnapshotInfo>> {
        let parent = parent.clone();
        self.list_rows(scope, move |work, transaction| {
            rows::children(transaction, work.snapshotter, &parent)
        })
        .await
    }

    async fn list(&self, scope: &Scope) -> Result<Vec<SnapshotInfo>> {
        self.list_rows(scope, |work, transaction| {
            rows::of(transaction, work.snapshotter)
        })
        .await
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
        list: impl FnOnce(&Work<'_>, &Transaction<'_>) -> Result<Vec<Row>, Fault> + Send + 'static,
    ) -> Result<Vec<SnapshotInfo>> {
        if !is_own(scope) {
            return Ok(Vec::new());
        }
        self.call(scope, "list snapshots of", &self.name, |work| {
            let rows = work.read(|transaction| list(work, transaction))?;
            Ok(rows.into_iter().map(Row::info).collect())
        })
        .await
    }
}

impl<'a> Work<'a> {
    fn new(state: &'a State, snapshotter: &'a str) -> Result<Self, Fault> {
        if ALL.contains(&snapshotter) {
            return Ok(Self { state, snapshotter });
        }
        let text = format!(
            "there is no snapshotter {snapshotter}, only {}",
            ALL.join(" and ")
        );
        Err(Fault::Refused(Kind::InvalidArgument, text))
    }

    fn read<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>) -> Result<T, Fault> {
        self.state.store.read(work)
    }

    fn get(&self, transaction: &Transaction<'_>, key: &SnapshotKey) -> Result<Row, Fault> {
        rows::get(transaction, self.snapshotter, key)
    }

    fn directory(&self, id: i64) -> std::path::PathBuf {
        self.state.layout.snapshot(self.snapshotter, id)
    }

    fn resource(&self, key: &SnapshotKey) -> Resource {
        Resource::Snapshot {
            snapshotter: self.snapshotter.to_owned(),
            key: key.clone(),
        }
    }

    /// Checks that a name is free.
    fn require_free(&self, transaction: &Transaction<'_>, key: &SnapshotKey) -> Result<(), Fault> {
        match rows::find(transaction, self.snapshotter, key)? {
            None => Ok(()),
            Some(_) => Err(Fault::Refused(
                Kind::AlreadyExists,
                format!("the snapshot {key} exists"),
            )),
        }
    }

    fn prepare(
        &self,
        scope: &Scope,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: &Labels,
    ) -> Result<Vec<Mount>, Fault> {
        check_labels(labels)?;
        if let (OVERLAYFS, Some(reason)) = (self.snapshotter, &self.state.no_directories) {
            return Err(Fault::Refused(Kind::PermissionDenied, reason.clone()));
        }
        let target = labels.get(labels::SNAPSHOT_REF).cloned();
        let target = target.map(SnapshotKey::from);
        self.state.store.write(|transaction| {
            for key in target.iter().chain([key]) {
                self.require_free(transaction, key)?;
            }
            let below = rows::chain(transaction, self.snapshotter, parent)?;
            let new = NewRow {
                snapshotter: self.snapshotter,
                key,
                kind: SnapshotKind::Active,
                parent,
                labels,
            };
            let id = new.insert(transaction)?;
            resource::hold(transaction, scope, &self.resource(key))?;
            self.create(id, &below)?;
            Ok(self.place(&below).active(id))
        })
    }

    /// Creates the directory of a snapshot on those `below`, the topmost first.
    fn create(&self, id: i64, below: &[i64]) -> Result<(), Fault> {
        // Left by a transaction that was not committed.
        set_aside(&self.state.layout, self.snapshotter, id)?;
        let directory = self.directory(id);
        let mut builder = DirBuilder::new();
        builder.mode(0o700).create(&directory)?;
        builder.create(directory.join(WORK))?;
        builder.mode(0o755).create(directory.join(FILES))?;
        if self.snapshotter == EROFS {
            fs::write(directory.join(IMAGE_MARKER), "")?;
        } else if let Some(parent) = below.first() {
            // It hides that of the parent.
            let parent = fs::metadata(self.directory(*parent).join(FILES))?;
            let (user, group) = (Some(parent.uid()), Some(parent.gid()));
            lchown(directory.join(FILES), user, group)?;
        }
        Ok(())
    }

    fn place<'b>(&'b self, below: &'b [i64]) -> Place<'b> {
        Place {
            layout: &self.state.layout,
            snapshotter: self.snapshotter,
            below,
        }
    }

    fn view(
        &self,
        scope: &Scope,
        key: &SnapshotKey,
        parent: &SnapshotKey,
    ) -> Result<Vec<Mount>, Fault> {
        self.state.store.write(|transaction| {
            self.require_free(transaction, key)?;
            let below = rows::chain(transaction, self.snapshotter, Some(parent))?;
            let new = NewRow {
                snapshotter: self.snapshotter,
                key,
                kind: SnapshotKind::View,
                parent: Some(parent),
                labels: &Labels::new(),
            };
            new.insert(transaction)?;
            resource::hold(transaction, scope, &self.resource(key))?;
            Ok(self.place(&below).view())
        })
    }

    fn commit(
        &self,
        scope: &Scope,
        name: &SnapshotKey,
        key: &SnapshotKey,
        labels: &Labels,
    ) -> Result<(), Fault> {
        check_labels(labels)?;
        let find = |transaction: &Transaction<'_>| {
            self.require_free(transaction, name)?;
            let row = self.get(transaction, key)?;
            match row.kind {
                SnapshotKind::Active => Ok(row),
                _ => Err(Fault::missing()),
            }
        };
        let row = self.read(find)?;
        let directory = self.directory(row.id);
        // The row must not outlive the files after a loss of power.
        self.flush(&directory)?;
        let usage = usage(&directory)?;
        self.state.store.write(|transaction| {
            let row = find(transaction)?;
            resource::hold(transaction, scope, &self.resource(name))?;
            resource::release(transaction, &self.resource(key))?;
            rows::commit(transaction, row.id, name, labels, usage)
        })
    }

    fn flush(&self, directory: &Path) -> Result<(), Fault> {
        let opened = File::open(directory)?;
        if self.snapshotter != EROFS {
            return Ok(syncfs(&opened)?);
        }
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                File::open(entry.path())?.sync_all()?;
            }
        }
        opened.sync_all()?;
        Ok(File::open(self.state.layout.snapshots(self.snapshotter))?.sync_all()?)
    }

    fn remove(&self, key: &SnapshotKey) -> Result<(), Fault> {
        let id = self.state.store.write(|transaction| {
            let row = self.get(transaction, key)?;
            let children = rows::children(transaction, self.snapshotter, key)?;
            if let Some(child) = children.first() {
                let text = format!("{} stands on it", child.key);
                return Err(Fault::Refused(Kind::FailedPrecondition, text));
            }
            resource::release(transaction, &self.resource(key))?;
            rows::delete(transaction, row.id)?;
            Ok(row.id)
        })?;
        set_aside(&self.state.layout, self.snapshotter, id)?;
        empty(&self.state.layout, self.snapshotter)
    }
}
