// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The rows of snapshots.

use std::time::SystemTime;

use resnap_core::{Kind, Labels, Resource, SnapshotInfo, SnapshotKey, SnapshotKind, Usage};
use rusqlite::{OptionalExtension as _, Params, Transaction};

use crate::fault::Fault;
use crate::store::{labels_text, nanoseconds, parse_labels, time};

const COLUMNS: &str =
    "SELECT id, snapshotter, key, kind, parent, labels, created, bytes, inodes FROM snapshots";

/// The most layers below a snapshot. The engine allows fewer.
const MAX_DEPTH: usize = 1 << 12;

/// A snapshot.
#[derive(Debug)]
pub(crate) struct Row {
    /// The number of its directory.
    pub(crate) id: i64,
    pub(crate) snapshotter: String,
    pub(crate) key: SnapshotKey,
    pub(crate) kind: SnapshotKind,
    pub(crate) parent: Option<SnapshotKey>,
    pub(crate) labels: Labels,
    created: SystemTime,
    pub(crate) usage: Usage,
}

impl Row {
    pub(crate) fn info(self) -> SnapshotInfo {
        SnapshotInfo {
            key: self.key,
            parent: self.parent,
            kind: self.kind,
            labels: self.labels,
            created: self.created,
        }
    }

    pub(crate) fn resource(&self) -> Resource {
        self.resource_of(self.key.clone())
    }

    /// Returns its parent, if it has one.
    pub(crate) fn parent(&self) -> Option<Resource> {
        self.parent.clone().map(|parent| self.resource_of(parent))
    }

    fn resource_of(&self, key: SnapshotKey) -> Resource {
        Resource::Snapshot {
            snapshotter: self.snapshotter.clone(),
            key,
        }
    }

    /// Returns whether it is a container's root file system: whoever prepares a snapshot by another key than
    /// that of an extraction wants to keep it.
    pub(crate) fn is_of_container(&self) -> bool {
        self.kind == SnapshotKind::Active && !self.key.is_extraction()
    }
}

/// A snapshot that is to be inserted.
pub(crate) struct NewRow<'a> {
    pub(crate) snapshotter: &'a str,
    pub(crate) key: &'a SnapshotKey,
    pub(crate) kind: SnapshotKind,
    pub(crate) parent: Option<&'a SnapshotKey>,
    pub(crate) labels: &'a Labels,
}

impl NewRow<'_> {
    /// Inserts the snapshot, and returns its number.
    pub(crate) fn insert(&self, transaction: &Transaction<'_>) -> Result<i64, Fault> {
        transaction.execute(
            "INSERT INTO snapshots (snapshotter, key, kind, parent, labels, created)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            (
                self.snapshotter,
                self.key.as_str(),
                kind_text(self.kind),
                self.parent.map(SnapshotKey::as_str),
                labels_text(self.labels),
                nanoseconds(SystemTime::now()),
            ),
        )?;
        Ok(transaction.last_insert_rowid())
    }
}

fn kind_text(kind: SnapshotKind) -> &'static str {
    match kind {
        SnapshotKind::Active => "active",
        SnapshotKind::Committed => "committed",
        SnapshotKind::View => "view",
    }
}

fn parse_kind(text: &str) -> Result<SnapshotKind, Fault> {
    match text {
        "active" => Ok(SnapshotKind::Active),
        "committed" => Ok(SnapshotKind::Committed),
        "view" => Ok(SnapshotKind::View),
        other => Err(Fault::Refused(
            Kind::DataLoss,
            format!("a snapshot of kind {other:?}"),
        )),
    }
}

fn parse(row: &rusqlite::Row<'_>) -> Result<Row, Fault> {
    Ok(Row {
        id: row.get(0)?,
        snapshotter: row.get(1)?,
        key: SnapshotKey::from(row.get::<_, String>(2)?),
        kind: parse_kind(&row.get::<_, String>(3)?)?,
        parent: row.get::<_, Option<String>>(4)?.map(SnapshotKey::from),
        labels: parse_labels(&row.get::<_, String>(5)?)?,
        created: time(row.get(6)?),
        usage: Usage {
            bytes: row.get::<_, i64>(7)?.cast_unsigned(),
            inodes: row.get::<_, i64>(8)?.cast_unsigned(),
        },
    })
}

fn select(
    transaction: &Transaction<'_>,
    condition: &str,
    parameters: impl Params,
) -> Result<Vec<Row>, Fault> {
    let mut statement = transaction.prepare(&format!("{COLUMNS} {condition}"))?;
    let mut rows = statement.query(parameters)?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        all.push(parse(row)?);
    }
    Ok(all)
}

/// Returns the snapshots of all snapshotters.
pub(crate) fn all(transaction: &Transaction<'_>) -> Result<Vec<Row>, Fault> {
    select(transaction, "", [])
}

/// Returns the snapshots of a snapshotter.
pub(crate) fn of(transaction: &Transaction<'_>, snapshotter: &str) -> Result<Vec<Row>, Fault> {
    select(transaction, "WHERE snapshotter = ?1", [snapshotter])
}

/// Returns the snapshots on `parent`.
pub(crate) fn children(
    transaction: &Transaction<'_>,
    snapshotter: &str,
    parent: &SnapshotKey,
) -> Result<Vec<Row>, Fault> {
    let condition = "WHERE snapshotter = ?1 AND parent = ?2";
    select(transaction, condition, (snapshotter, parent.as_str()))
}

/// Returns the snapshot of a name, if it exists.
pub(crate) fn find(
    transaction: &Transaction<'_>,
    snapshotter: &str,
    key: &SnapshotKey,
) -> Result<Option<Row>, Fault> {
    let condition = "WHERE snapshotter = ?1 AND key = ?2";
    let found = select(transaction, condition, (snapshotter, key.as_str()))?;
    Ok(found.into_iter().next())
}

/// Returns the snapshot of a name.
pub(crate) fn get(
    transaction: &Transaction<'_>,
    snapshotter: &str,
    key: &SnapshotKey,
) -> Result<Row, Fault> {
    find(transaction, snapshotter, key)?.ok_or_else(Fault::missing)
}

/// Returns the numbers of the committed snapshot `top` and of those below, the topmost first. Those that are not
/// `there` do not exist.
pub(crate) fn chain(
    transaction: &Transaction<'_>,
    snapshotter: &str,
    top: Option<&SnapshotKey>,
    is_there: impl Fn(&Row) -> bool,
) -> Result<Vec<i64>, Fault> {
    let mut chain = Vec::new();
    let mut next = top.cloned();
    while let Some(key) = next {
        let row = find(transaction, snapshotter, &key)?;
        let row = row.filter(|row| row.kind == SnapshotKind::Committed && is_there(row));
        let row = row.ok_or_else(|| {
            let text = format!("the snapshot below, {key}, does not exist");
            Fault::Refused(Kind::NotFound, text)
        })?;
        if chain.len() == MAX_DEPTH {
            let text = format!("more than {MAX_DEPTH} snapshots are below");
            return Err(Fault::Refused(Kind::ResourceExhausted, text));
        }
        chain.push(row.id);
        next = row.parent;
    }
    Ok(chain)
}

/// Makes an active snapshot a committed one.
pub(crate) fn commit(
    transaction: &Transaction<'_>,
    id: i64,
    name: &SnapshotKey,
    labels: &Labels,
    usage: Usage,
) -> Result<(), Fault> {
    transaction.execute(
        "UPDATE snapshots SET key = ?2, kind = ?3, labels = ?4, created = ?5, bytes = ?6, inodes = ?7
         WHERE id = ?1",
        (
            id,
            name.as_str(),
            kind_text(SnapshotKind::Committed),
            labels_text(labels),
            nanoseconds(SystemTime::now()),
            usage.bytes.cast_signed(),
            usage.inodes.cast_signed(),
        ),
    )?;
    Ok(())
}

/// Replaces the labels of a snapshot.
pub(crate) fn set_labels(
    transaction: &Transaction<'_>,
    id: i64,
    labels: &Labels,
) -> Result<(), Fault> {
    transaction.execute(
        "UPDATE snapshots SET labels = ?2 WHERE id = ?1",
        (id, labels_text(labels)),
    )?;
    Ok(())
}

pub(crate) fn delete(transaction: &Transaction<'_>, id: i64) -> Result<(), Fault> {
    transaction.execute("DELETE FROM snapshots WHERE id = ?1", [id])?;
    Ok(())
}

/// Returns whether a snapshot has this number.
pub(crate) fn exists(transaction: &Transaction<'_>, id: i64) -> Result<bool, Fault> {
    let found = transaction
        .query_row("SELECT 1 FROM snapshots WHERE id = ?1", [id], |_| Ok(()))
        .optional()?;
    Ok(found.is_some())
}
