// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The database: what a layout has no place for.
//!
//! SQLite, since several processes use it at once without a daemon, and each transaction survives a kill and a
//! loss of power whole or not at all. Transactions are short: nothing of a layer's size is read or written in
//! one, but files are created, renamed and unlinked in a writing one, which is the lock for that.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use resnap_core::{Kind, Labels, labels};
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use crate::fault::Fault;

/// The longest wait for the transactions of others.
const WAIT: Duration = Duration::from_secs(60);

/// The version of the tables.
const VERSION: i64 = 1;

/// Numbers of snapshots are not used again: a directory may outlive its row.
const TABLES: &str = "
    CREATE TABLE store (identity TEXT NOT NULL) STRICT;
    INSERT INTO store VALUES (lower(hex(randomblob(16))));
    CREATE TABLE blobs (digest TEXT PRIMARY KEY, labels TEXT NOT NULL) STRICT;
    CREATE TABLE leases (
        id TEXT PRIMARY KEY, created INTEGER NOT NULL, labels TEXT NOT NULL
    ) STRICT;
    CREATE TABLE resources (
        lease TEXT NOT NULL REFERENCES leases (id) ON DELETE CASCADE,
        kind TEXT NOT NULL, name TEXT NOT NULL,
        PRIMARY KEY (lease, kind, name)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE snapshots (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        snapshotter TEXT NOT NULL, key TEXT NOT NULL, kind TEXT NOT NULL, parent TEXT,
        labels TEXT NOT NULL, created INTEGER NOT NULL,
        bytes INTEGER NOT NULL DEFAULT 0, inodes INTEGER NOT NULL DEFAULT 0,
        UNIQUE (snapshotter, key)
    ) STRICT;
    CREATE INDEX children ON snapshots (snapshotter, parent);
";

/// The database of a store.
#[derive(Debug)]
pub(crate) struct Store(Mutex<Connection>);

impl Store {
    /// Opens the database, and creates it if there is none. Nobody else may be opening it.
    pub(crate) fn open(path: &Path) -> Result<Self, Fault> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(WAIT)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // Files are removed after their rows: a row that came back would have none.
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        let this = Self(Mutex::new(connection));
        this.write(|transaction| {
            let version = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
            match version {
                VERSION => Ok(()),
                0 => {
                    transaction.execute_batch(TABLES)?;
                    transaction.pragma_update(None, "user_version", VERSION)?;
                    Ok(())
                }
                other => Err(Fault::Refused(
                    Kind::FailedPrecondition,
                    format!(
                        "its tables are of version {other}, and this program knows {VERSION}: \
                         use the program that made it"
                    ),
                )),
            }
        })?;
        Ok(this)
    }

    /// Reads in one transaction.
    pub(crate) fn read<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.transact(TransactionBehavior::Deferred, work)
    }

    /// Reads and writes in one transaction, alone. After an error nothing is written.
    pub(crate) fn write<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.transact(TransactionBehavior::Immediate, work)
    }

    fn transact<T>(
        &self,
        behavior: TransactionBehavior,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let mut connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = connection.transaction_with_behavior(behavior)?;
        let result = work(&transaction)?;
        transaction.commit()?;
        Ok(result)
    }
}

/// Returns the text of labels in a table.
pub(crate) fn labels_text(labels: &Labels) -> String {
    serde_json::json!(labels).to_string()
}

/// Parses the text of labels in a table.
pub(crate) fn parse_labels(text: &str) -> Result<Labels, Fault> {
    let damaged = |error| Fault::Refused(Kind::DataLoss, format!("its labels: {error}"));
    serde_json::from_str(text).map_err(damaged)
}

/// Checks that labels have the length that containerd accepts.
pub(crate) fn check_labels<'a>(
    labels: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Result<(), Fault> {
    let mut labels = labels.into_iter();
    match labels.find(|(key, value)| !labels::fits(key, value)) {
        None => Ok(()),
        Some((key, _)) => {
            let key = &key[..key.floor_char_boundary(128)];
            let limit = labels::MAX_BYTES;
            let text = format!("the label {key:?} has more than {limit} bytes");
            Err(Fault::Refused(Kind::InvalidArgument, text))
        }
    }
}

/// Returns a time in nanoseconds since 1970.
pub(crate) fn nanoseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Returns the time that is this number of nanoseconds after 1970.
pub(crate) fn time(nanoseconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or_default())
}
