// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The description of a store, and its containers.

use async_trait::async_trait;
use resnap_core::{Container, Containers, Introspection, Platform, Result, Scope, SnapshotterInfo};

use crate::local::Local;
use crate::rows::{self, Row};
use crate::snapshotters::{ALL, OVERLAYFS};
use crate::state::is_own;

#[async_trait]
impl Introspection for Local {
    async fn snapshotters(&self) -> Result<Vec<SnapshotterInfo>> {
        self.call("list", "snapshotters", |state| {
            let all = ALL.map(|name| SnapshotterInfo {
                name: name.to_owned(),
                capabilities: Vec::new(),
                platforms: vec![Platform::host()],
                root: Some(
                    state
                        .layout
                        .snapshotter(name)
                        .to_string_lossy()
                        .into_owned(),
                ),
                failure: state.no_directories.clone().filter(|_| name == OVERLAYFS),
            });
            Ok(all.to_vec())
        })
        .await
    }

    async fn identity(&self) -> Result<String> {
        self.call("look up", "identity", |state| {
            state.store.read(|transaction| {
                let query = "SELECT identity FROM store";
                Ok(transaction.query_row(query, [], |row| row.get(0))?)
            })
        })
        .await
    }

    async fn content_root(&self) -> Result<Option<String>> {
        self.call("look up", "content", |state| {
            Ok(Some(state.layout.root().to_string_lossy().into_owned()))
        })
        .await
    }
}

/// A container is whatever an active snapshot was prepared for that is no extraction, and has its name.
#[async_trait]
impl Containers for Local {
    async fn list(&self, scope: &Scope) -> Result<Vec<Container>> {
        if !is_own(scope) {
            return Ok(Vec::new());
        }
        self.call("list", "containers", |state| {
            let rows = state.store.read(rows::all)?.into_iter();
            let rows = rows.filter(Row::is_of_container);
            let containers = rows.map(|row| Container {
                id: row.key.as_str().to_owned(),
                snapshotter: row.snapshotter,
                snapshot: row.key,
            });
            Ok(containers.collect())
        })
        .await
    }
}
