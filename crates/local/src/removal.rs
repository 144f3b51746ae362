// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The removal of the directories of snapshots, which may take long: they are set aside in one step, and then
//! removed outside of any transaction. What a killed process has not removed, the next one removes.

use std::fs::{self, File};
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use resnap_applier::remove_tree;
use rusqlite::Transaction;

use crate::fault::Fault;
use crate::layout::Layout;
use crate::rows;
use crate::snapshotters::ALL;

/// Sets the directory of a snapshot aside that has no row.
pub(crate) fn set_aside(layout: &Layout, snapshotter: &str, id: i64) -> Result<(), Fault> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    // The directory of a transaction that was not committed may have had the same number.
    let name = format!("{id}-{:x}", since.unwrap_or_default().as_nanos());
    let to = layout.removed(snapshotter).join(name);
    match fs::rename(layout.snapshot(snapshotter, id), to) {
        // Another process did it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => Ok(renamed?),
    }
}

/// Sets all directories aside that have no row. Nobody else may be writing.
pub(crate) fn set_aside_unknown(
    transaction: &Transaction<'_>,
    layout: &Layout,
) -> Result<(), Fault> {
    for snapshotter in ALL {
        for entry in fs::read_dir(layout.snapshots(snapshotter))? {
            let entry = entry?;
            let name = entry.file_name();
            match name.to_str().and_then(|name| name.parse().ok()) {
                Some(id) if rows::exists(transaction, id)? => {}
                Some(id) => set_aside(layout, snapshotter, id)?,
                // A file by which the applier tried what it may do.
                None => remove_tree(&entry.path())?,
            }
        }
    }
    Ok(())
}

/// Removes what was set aside. One process at a time does so.
pub(crate) fn empty(layout: &Layout, snapshotter: &str) -> Result<(), Fault> {
    let path = layout.removed(snapshotter);
    let directory = File::open(&path)?;
    directory.lock()?;
    for entry in fs::read_dir(&path)? {
        remove_tree(&entry?.path())?;
    }
    Ok(())
}
