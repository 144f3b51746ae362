// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The files, the database, and the rights of this process.

use std::path::PathBuf;

use resnap_core::{Result, Scope};

use crate::fault::Fault;
use crate::layout::Layout;
use crate::snapshotters::{ALL, OVERLAYFS};
use crate::store::Store;

/// The namespace of a store: it has one.
pub(crate) const NAMESPACE: &str = "local";

/// A store that is open.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) layout: Layout,
    pub(crate) store: Store,
    /// The reason why this process may not write layers as directories, if it may not.
    pub(crate) no_directories: Option<String>,
}

impl State {
    /// Opens the store in a directory that has one.
    pub(crate) fn open_existing(root: PathBuf) -> Result<Self> {
        Layout::require(&root)?;
        Self::open(root)
    }

    /// Opens the store in a directory, which is created if it does not exist.
    pub(crate) fn open(root: PathBuf) -> Result<Self> {
        let layout = Layout::create(root)?;
        let failed = |fault: Fault| fault.of("open the store", &layout.root().to_string_lossy());
        let lock = layout.lock().map_err(|error| failed(error.into()))?;
        let store = Store::open(&layout.database()).map_err(failed)?;
        drop(lock);
        for snapshotter in ALL {
            let cleared = resnap_applier::clear(&layout.snapshotter(snapshotter));
            cleared.map_err(|error| failed(error.into()))?;
        }
        let probed = resnap_applier::probe(OVERLAYFS, &layout.snapshotter(OVERLAYFS));
        let no_directories = probed.err().map(|error| {
            format!(
                "only root may write layers as directories, with their owners and devices ({error})"
            )
        });
        Ok(Self {
            layout,
            store,
            no_directories,
        })
    }
}

/// Returns whether a call is in the namespace of the store.
pub(crate) fn is_own(scope: &Scope) -> bool {
    &*scope.namespace == NAMESPACE
}
