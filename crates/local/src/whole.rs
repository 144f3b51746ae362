// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Committed snapshots whose files somebody else has removed. They, and those above, count as missing: whoever
//! looks for one makes it again, in the place of its record.
//!
//! Only whether the files are there is looked at, since a snapshot is looked up each time that it is used.

use std::collections::HashMap;

use resnap_core::{SnapshotKey, SnapshotKind};
use rusqlite::Transaction;

use crate::fault::Fault;
use crate::layout::Layout;
use crate::mounts::{FILES, IMAGE, IMAGE_MARKER};
use crate::rows::{self, Row};
use crate::snapshotters::EROFS;

/// Returns whether the files of a snapshot are there, without those below.
pub(crate) fn has_files(layout: &Layout, row: &Row) -> bool {
    if row.kind != SnapshotKind::Committed {
        return true;
    }
    let directory = layout.snapshot(&row.snapshotter, row.id);
    let exists = |name| directory.join(name).symlink_metadata().is_ok();
    // A snapshot to which nothing was written has lost its marker with the commit.
    exists(FILES) && (row.snapshotter != EROFS || exists(IMAGE) || !exists(IMAGE_MARKER))
}

/// Returns whether a snapshot and those below have their files.
pub(crate) fn is_whole(
    transaction: &Transaction<'_>,
    layout: &Layout,
    row: &Row,
) -> Result<bool, Fault> {
    if row.kind != SnapshotKind::Committed {
        return Ok(true);
    }
    let below = rows::chain(transaction, &row.snapshotter, Some(&row.key), |row| {
        has_files(layout, row)
    });
    match below {
        Ok(_) => Ok(true),
        Err(fault) if fault.is_missing() => Ok(false),
        Err(fault) => Err(fault),
    }
}

/// Keeps the snapshots that are whole, of all of a snapshotter.
pub(crate) fn retain_whole(layout: &Layout, rows: Vec<Row>) -> Vec<Row> {
    let by_key: HashMap<_, _> = rows.iter().map(|row| (&row.key, row)).collect();
    let mut whole: HashMap<SnapshotKey, bool> = HashMap::with_capacity(rows.len());
    for row in &rows {
        let (mut climbed, mut next) = (Vec::new(), Some(&row.key));
        let mut is_whole = true;
        while let Some(key) = next {
            if let Some(known) = whole.get(key) {
                is_whole = *known;
                break;
            }
            let Some(row) = by_key.get(key).filter(|row| has_files(layout, row)) else {
                whole.insert(key.clone(), false);
                is_whole = false;
                break;
            };
            // A damaged database may have a circle.
            whole.insert(key.clone(), false);
            climbed.push(key);
            next = row.parent.as_ref();
        }
        whole.extend(climbed.into_iter().map(|key| (key.clone(), is_whole)));
    }
    let keep: Vec<bool> = rows
        .iter()
        .map(|row| row.kind != SnapshotKind::Committed || whole.get(&row.key) == Some(&true))
        .collect();
    let kept = rows.into_iter().zip(keep);
    kept.filter_map(|(row, keep)| keep.then_some(row)).collect()
}
