// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The resources of leases, as rows.

use resnap_core::{LeaseId, Resource, Scope, SnapshotKey};
use rusqlite::{OptionalExtension as _, Transaction};

use crate::fault::Fault;

/// The kinds of resources (containerd `core/metadata/leases.go`). The name of a snapshotter follows the last.
const CONTENT: &str = "content";
const INGEST: &str = "ingests";
const SNAPSHOT: &str = "snapshots/";

fn row(resource: &Resource) -> (String, &str) {
    match resource {
        Resource::Content(digest) => (CONTENT.to_owned(), digest.as_str()),
        Resource::Ingest(name) => (INGEST.to_owned(), name),
        Resource::Snapshot { snapshotter, key } => {
            (format!("{SNAPSHOT}{snapshotter}"), key.as_str())
        }
    }
}

/// Returns the resource of a row; `None` if it is of no known kind.
fn parse(kind: &str, name: String) -> Option<Resource> {
    match kind {
        CONTENT => name.parse().ok().map(Resource::Content),
        INGEST => Some(Resource::Ingest(name)),
        _ => Some(Resource::Snapshot {
            snapshotter: kind.strip_prefix(SNAPSHOT)?.to_owned(),
            key: SnapshotKey::from(name),
        }),
    }
}

/// Checks that a lease exists.
pub(crate) fn require(transaction: &Transaction<'_>, lease: &LeaseId) -> Result<(), Fault> {
    let found = transaction
        .query_row(
            "SELECT 1 FROM leases WHERE id = ?1",
            [&*lease.0],
            |_| Ok(()),
        )
        .optional()?;
    found.ok_or_else(|| {
        let text = format!("the lease {} does not exist", lease.0);
        Fault::Refused(resnap_core::Kind::NotFound, text)
    })
}

/// Adds a resource to a lease that exists.
pub(crate) fn add(
    transaction: &Transaction<'_>,
    lease: &LeaseId,
    resource: &Resource,
) -> Result<(), Fault> {
    require(transaction, lease)?;
    let (kind, name) = row(resource);
    transaction.execute(
        "INSERT OR IGNORE INTO resources VALUES (?1, ?2, ?3)",
        (&*lease.0, kind, name),
    )?;
    Ok(())
}

/// Adds a resource to the lease of a call, if it has one.
pub(crate) fn hold(
    transaction: &Transaction<'_>,
    scope: &Scope,
    resource: &Resource,
) -> Result<(), Fault> {
    match &scope.lease {
        Some(lease) => add(transaction, lease, resource),
        None => Ok(()),
    }
}

/// Removes a resource from the lease of a call, if it has one.
pub(crate) fn release(
    transaction: &Transaction<'_>,
    scope: &Scope,
    resource: &Resource,
) -> Result<(), Fault> {
    let Some(lease) = &scope.lease else {
        return Ok(());
    };
    let (kind, name) = row(resource);
    transaction.execute(
        "DELETE FROM resources WHERE lease = ?1 AND kind = ?2 AND name = ?3",
        (&*lease.0, kind, name),
    )?;
    Ok(())
}

/// Returns the resources of a lease, or of all leases.
pub(crate) fn list(
    transaction: &Transaction<'_>,
    lease: Option<&LeaseId>,
) -> Result<Vec<Resource>, Fault> {
    let mut statement =
        transaction.prepare("SELECT kind, name FROM resources WHERE ?1 IS NULL OR lease = ?1")?;
    let rows = statement.query_map([lease.map(|lease| &*lease.0)], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
    })?;
    let mut resources = Vec::new();
    for row in rows {
        let (kind, name) = row?;
        resources.extend(parse(&kind, name));
    }
    Ok(resources)
}
