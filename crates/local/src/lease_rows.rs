// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The rows of leases.

use std::time::SystemTime;

use resnap_core::{Labels, LeaseId};
use rusqlite::Transaction;

use crate::fault::Fault;
use crate::store::{check_labels, labels_text, nanoseconds};

/// Inserts a lease of a new name.
pub(crate) fn insert(
    transaction: &Transaction<'_>,
    lease: &LeaseId,
    labels: &Labels,
) -> Result<(), Fault> {
    check_labels(labels)?;
    let created = nanoseconds(SystemTime::now());
    let inserted = transaction.execute(
        "INSERT OR IGNORE INTO leases VALUES (?1, ?2, ?3)",
        (&*lease.0, created, labels_text(labels)),
    )?;
    match inserted {
        0 => Err(Fault::taken()),
        _ => Ok(()),
    }
}

/// Deletes a lease, and returns whether there was one.
pub(crate) fn delete(transaction: &Transaction<'_>, lease: &LeaseId) -> Result<bool, Fault> {
    let deleted = transaction.execute("DELETE FROM leases WHERE id = ?1", [&*lease.0])?;
    Ok(deleted > 0)
}
