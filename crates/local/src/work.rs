// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The work on snapshots (containerd `core/metadata/snapshot.go`), in one thread.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, lchown};
use std::path::{Path, PathBuf};

use resnap_core::{Kind, Labels, Mount, Resource, Scope, SnapshotKey, SnapshotKind, labels};
use rusqlite::Transaction;
use rustix::fs::syncfs;

use crate::blobs::unlink;
use crate::disk::usage;
use crate::fault::Fault;
use crate::mounts::{FILES, IMAGE, IMAGE_MARKER, Place, WORK};
use crate::removal::{empty, set_aside};
use crate::resource;
use crate::rows::{self, NewRow, Row};
use crate::snapshotters::{ALL, EROFS, OVERLAYFS};
use crate::state::State;
use crate::store::check_labels;
use crate::whole::{has_files, is_whole, retain_whole};

/// Work on the snapshots of one snapshotter.
pub(crate) struct Work<'a> {
    state: &'a State,
    snapshotter: &'a str,
}

impl<'a> Work<'a> {
    pub(crate) fn new(state: &'a State, snapshotter: &'a str) -> Result<Self, Fault> {
        if ALL.contains(&snapshotter) {
            return Ok(Self { state, snapshotter });
        }
        let text = format!(
            "there is no snapshotter {snapshotter}, only {}",
            ALL.join(" and ")
        );
        Err(Fault::Refused(Kind::InvalidArgument, text))
    }

    pub(crate) fn read<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.state.store.read(work)
    }

    pub(crate) fn get(
        &self,
        transaction: &Transaction<'_>,
        key: &SnapshotKey,
    ) -> Result<Row, Fault> {
        rows::get(transaction, self.snapshotter, key)
    }

    /// Returns a snapshot that is whole.
    pub(crate) fn find(&self, key: &SnapshotKey) -> Result<Row, Fault> {
        self.read(|transaction| {
            let row = self.get(transaction, key)?;
            match self.is_whole(transaction, &row)? {
                true => Ok(row),
                false => Err(Fault::missing()),
            }
        })
    }

    /// Returns the snapshots that are whole, of those on `parent`, or of all.
    pub(crate) fn list(&self, parent: Option<&SnapshotKey>) -> Result<Vec<Row>, Fault> {
        let layout = &self.state.layout;
        self.read(|transaction| {
            let Some(parent) = parent else {
                return Ok(retain_whole(
                    layout,
                    rows::of(transaction, self.snapshotter)?,
                ));
            };
            let mut whole = Vec::new();
            for row in rows::children(transaction, self.snapshotter, parent)? {
                if self.is_whole(transaction, &row)? {
                    whole.push(row);
                }
            }
            Ok(whole)
        })
    }

    fn is_whole(&self, transaction: &Transaction<'_>, row: &Row) -> Result<bool, Fault> {
        is_whole(transaction, &self.state.layout, row)
    }

    pub(crate) fn set_labels(&self, key: &SnapshotKey, new: Labels) -> Result<(), Fault> {
        check_labels(&new)?;
        self.state.store.write(|transaction| {
            let row = self.get(transaction, key)?;
            let mut labels = row.labels;
            labels.extend(new);
            labels.retain(|_, value| !value.is_empty());
            rows::set_labels(transaction, row.id, &labels)
        })
    }

    pub(crate) fn directory(&self, id: i64) -> PathBuf {
        self.state.layout.snapshot(self.snapshotter, id)
    }

    fn resource(&self, key: &SnapshotKey) -> Resource {
        Resource::Snapshot {
            snapshotter: self.snapshotter.to_owned(),
            key: key.clone(),
        }
    }

    /// Checks that a name is free, or that of a snapshot whose files are gone, which is returned.
    fn require_free(
        &self,
        transaction: &Transaction<'_>,
        key: &SnapshotKey,
    ) -> Result<Option<Row>, Fault> {
        match rows::find(transaction, self.snapshotter, key)? {
            Some(row) if self.is_whole(transaction, &row)? => Err(Fault::Refused(
                Kind::AlreadyExists,
                format!("the snapshot {key} exists"),
            )),
            free => Ok(free),
        }
    }

    /// Makes a name free, if it can be. Snapshots above a removed one stand on the next of its name.
    fn free(&self, transaction: &Transaction<'_>, key: &SnapshotKey) -> Result<(), Fault> {
        match self.require_free(transaction, key)? {
            Some(row) => rows::delete(transaction, row.id),
            None => Ok(()),
        }
    }

    /// Returns the numbers of the snapshots from `top` down.
    fn below(
        &self,
        transaction: &Transaction<'_>,
        top: Option<&SnapshotKey>,
    ) -> Result<Vec<i64>, Fault> {
        rows::chain(transaction, self.snapshotter, top, |row| {
            has_files(&self.state.layout, row)
        })
    }

    pub(crate) fn prepare(
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
                self.free(transaction, key)?;
            }
            let below = self.below(transaction, parent)?;
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

    pub(crate) fn view(
        &self,
        scope: &Scope,
        key: &SnapshotKey,
        parent: &SnapshotKey,
    ) -> Result<Vec<Mount>, Fault> {
        self.state.store.write(|transaction| {
            self.free(transaction, key)?;
            let below = self.below(transaction, Some(parent))?;
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

    pub(crate) fn commit(
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
        if !directory.join(IMAGE).try_exists()? {
            unlink(&directory.join(IMAGE_MARKER))?;
        }
        // The row must not outlive the files after a loss of power.
        self.flush(&directory)?;
        let usage = usage(&directory)?;
        self.state.store.write(|transaction| {
            let row = find(transaction)?;
            self.free(transaction, name)?;
            resource::hold(transaction, scope, &self.resource(name))?;
            resource::release(transaction, scope, &self.resource(key))?;
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

    pub(crate) fn remove(&self, scope: &Scope, key: &SnapshotKey) -> Result<(), Fault> {
        let id = self.state.store.write(|transaction| {
            let row = self.get(transaction, key)?;
            let children = rows::children(transaction, self.snapshotter, key)?;
            if let Some(child) = children.first() {
                let text = format!("{} stands on it", child.key);
                return Err(Fault::Refused(Kind::FailedPrecondition, text));
            }
            resource::release(transaction, scope, &self.resource(key))?;
            rows::delete(transaction, row.id)?;
            Ok(row.id)
        })?;
        set_aside(&self.state.layout, self.snapshotter, id)?;
        empty(&self.state.layout, self.snapshotter)
    }
}
