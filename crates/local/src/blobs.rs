// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Blobs: files of the layout, with labels in the database. A blob exists if its file does.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use resnap_core::{ContentInfo, Digest, Labels};
use rusqlite::{OptionalExtension as _, Transaction};

use crate::fault::Fault;
use crate::layout::Layout;
use crate::store::{labels_text, parse_labels};

/// Returns the digests of all blobs.
pub(crate) fn list(layout: &Layout) -> Result<Vec<Digest>, Fault> {
    let mut digests = Vec::new();
    for algorithm in fs::read_dir(layout.blobs())? {
        let algorithm = algorithm?;
        if !algorithm.file_type()?.is_dir() {
            continue;
        }
        for blob in fs::read_dir(algorithm.path())? {
            let names = [algorithm.file_name(), blob?.file_name()];
            let [algorithm, encoded] = names.map(|name| name.to_string_lossy().into_owned());
            digests.extend(format!("{algorithm}:{encoded}").parse::<Digest>());
        }
    }
    Ok(digests)
}

/// Returns the file of a blob, which is followed through no link.
fn metadata(layout: &Layout, digest: &Digest) -> Result<Metadata, Fault> {
    match fs::symlink_metadata(layout.blob(digest)) {
        Ok(metadata) if metadata.is_file() => Ok(metadata),
        Ok(_) => Err(Fault::missing()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Fault::missing()),
        Err(error) => Err(error.into()),
    }
}

/// Checks that a blob exists, and returns its size.
pub(crate) fn size(layout: &Layout, digest: &Digest) -> Result<u64, Fault> {
    metadata(layout, digest).map(|metadata| metadata.len())
}

pub(crate) fn open(layout: &Layout, digest: &Digest) -> Result<File, Fault> {
    metadata(layout, digest)?;
    match File::open(layout.blob(digest)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Fault::missing()),
        opened => Ok(opened?),
    }
}

pub(crate) fn info(
    transaction: &Transaction<'_>,
    layout: &Layout,
    digest: &Digest,
) -> Result<ContentInfo, Fault> {
    Ok(ContentInfo {
        size: size(layout, digest)?,
        labels: labels(transaction, digest)?,
    })
}

/// Returns the labels of a blob.
pub(crate) fn labels(transaction: &Transaction<'_>, digest: &Digest) -> Result<Labels, Fault> {
    let query = "SELECT labels FROM blobs WHERE digest = ?1";
    let text = transaction
        .query_row(query, [digest.as_str()], |row| row.get::<_, String>(0))
        .optional()?;
    text.as_deref().map_or(Ok(Labels::new()), parse_labels)
}

/// Replaces the labels of a blob.
pub(crate) fn set_labels(
    transaction: &Transaction<'_>,
    digest: &Digest,
    labels: &Labels,
) -> Result<(), Fault> {
    transaction.execute(
        "INSERT OR REPLACE INTO blobs VALUES (?1, ?2)",
        (digest.as_str(), labels_text(labels)),
    )?;
    Ok(())
}

/// Returns the labels of all blobs that have some.
pub(crate) fn labelled(transaction: &Transaction<'_>) -> Result<BTreeMap<Digest, Labels>, Fault> {
    let mut statement = transaction.prepare("SELECT digest, labels FROM blobs")?;
    let mut rows = statement.query([])?;
    let mut all = BTreeMap::new();
    while let Some(row) = rows.next()? {
        if let Ok(digest) = row.get::<_, String>(0)?.parse() {
            all.insert(digest, parse_labels(&row.get::<_, String>(1)?)?);
        }
    }
    Ok(all)
}

/// Removes a blob and its labels.
pub(crate) fn delete(
    transaction: &Transaction<'_>,
    layout: &Layout,
    digest: &Digest,
) -> Result<(), Fault> {
    transaction.execute("DELETE FROM blobs WHERE digest = ?1", [digest.as_str()])?;
    unlink(&layout.blob(digest))
}

/// Removes a blob whose bytes are not those of its digest, as they were read from `file`, so that it is fetched again.
/// The labels stay: what they keep is not wrong. Nobody else may be writing.
pub(crate) fn remove_damaged(layout: &Layout, digest: &Digest, file: &File) -> Result<(), Fault> {
    let path = layout.blob(digest);
    match require_same(file, &path) {
        Ok(()) => unlink(&path),
        // Another process did it, and may have fetched the blob.
        Err(fault) if fault.is_missing() => Ok(()),
        Err(fault) => Err(fault),
    }
}

/// Checks that a path leads to an open file.
pub(crate) fn require_same(file: &File, path: &Path) -> Result<(), Fault> {
    let inode = file.metadata()?.ino();
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.ino() == inode => Ok(()),
        Ok(_) => Err(Fault::missing()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Fault::missing()),
        Err(error) => Err(error.into()),
    }
}

/// Removes a file, if it exists.
pub(crate) fn unlink(path: &Path) -> Result<(), Fault> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => Ok(removed?),
    }
}
