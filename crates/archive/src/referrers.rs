// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The manifests of a layout that refer to another one.

use std::collections::{HashSet, VecDeque};
use std::io;

use bytes::Bytes;
use resnap_core::{Digest, Referrer, ReferrerList, media_type, null_is_default};
use serde::Deserialize;

use crate::layout::{Found, Wanted};

/// The limit on the bytes of all documents that are read of one layout.
const MAX_BYTES: u64 = 64 << 20;

/// The limit on the bytes of one of them.
const MAX_DOCUMENT: u64 = ReferrerList::MAX_DOCUMENT as u64;

/// An index, as far as it is read.
#[derive(Deserialize)]
struct Index {
    #[serde(default, deserialize_with = "null_is_default")]
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default, deserialize_with = "null_is_default")]
    media_type: String,
    // Not a `Digest`: one that is malformed must not hide the other entries.
    digest: String,
}

/// A manifest, as far as it is read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    #[serde(default, deserialize_with = "null_is_default")]
    artifact_type: String,
    #[serde(default)]
    subject: Option<Subject>,
}

#[derive(Deserialize)]
struct Subject {
    digest: String,
}

/// The walk over the documents of one layout. `open` opens its files.
pub(crate) struct Walk<F> {
    open: F,
    /// The number of bytes that may still be read.
    left: u64,
    seen: HashSet<Digest>,
    indexes: VecDeque<Digest>,
}

impl<F: Fn(Wanted<'_>) -> io::Result<Option<Found>>> Walk<F> {
    pub(crate) fn new(open: F) -> Self {
        Self {
            open,
            left: MAX_BYTES,
            seen: HashSet::new(),
            indexes: VecDeque::new(),
        }
    }

    /// Adds the manifests that refer to `subject`. The index of referrers that clients keep under a tag is
    /// walked as all others: what a manifest refers to stands in it.
    pub(crate) fn add(mut self, subject: &Digest, list: &mut ReferrerList<'_>) -> io::Result<()> {
        let mut next = self.read(Wanted::Index)?;
        loop {
            // An index may name blobs that are not there.
            if let Some(bytes) = next {
                let index: Index = serde_json::from_slice(&bytes)?;
                for entry in index.manifests {
                    self.entry(entry, subject, list)?;
                }
            }
            let Some(index) = self.indexes.pop_front() else {
                return Ok(());
            };
            next = self.read(Wanted::Blob(&index))?;
        }
    }

    fn entry(
        &mut self,
        entry: Entry,
        subject: &Digest,
        list: &mut ReferrerList<'_>,
    ) -> io::Result<()> {
        let is_index = media_type::is_index(&entry.media_type);
        let Ok(digest) = entry.digest.parse::<Digest>() else {
            return Ok(());
        };
        if !is_index && entry.media_type != media_type::OCI_MANIFEST {
            return Ok(());
        }
        if self.seen.len() == ReferrerList::MAX_LISTED {
            let limit = ReferrerList::MAX_LISTED;
            return Err(io::Error::other(format!("more than {limit} manifests")));
        }
        if !self.seen.insert(digest.clone()) {
            return Ok(());
        }
        if is_index {
            self.indexes.push_back(digest);
            return Ok(());
        }
        let Some(bytes) = self.read(Wanted::Blob(&digest))? else {
            return Ok(());
        };
        // One that is malformed hides no other.
        let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) else {
            return Ok(());
        };
        let of = manifest.subject.map(|of| of.digest);
        if of.as_deref() != Some(subject.as_str()) {
            return Ok(());
        }
        let referrer = Referrer::new(manifest.artifact_type, digest, bytes.len() as u64);
        list.add(referrer).map_err(io::Error::other)
    }

    /// Reads a document; `None` if it is not there, or is too large for one.
    fn read(&mut self, wanted: Wanted<'_>) -> io::Result<Option<Bytes>> {
        let found = (self.open)(wanted)?;
        let Some(found) = found.filter(|found| found.size() <= MAX_DOCUMENT) else {
            return Ok(None);
        };
        let bytes = found.read(self.left)?;
        self.left -= bytes.len() as u64;
        Ok(Some(bytes))
    }
}
