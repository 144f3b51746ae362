// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Documents of images that were read before. The bytes behind a digest cannot change.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use resnap_core::Digest;

/// The limit on the bytes of a document that is kept. Usual ones have a few thousand.
const MAX_BYTES: u64 = 64 << 10;

/// The limit on the bytes of all documents that are kept.
const MAX_TOTAL_BYTES: usize = 32 << 20;

/// Documents of images that were read before: indexes, manifests and configs. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct KnownDocuments(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    documents: HashMap<Digest, Bytes>,
    /// Those that were asked for, the first one first.
    used: Vec<Digest>,
    seen: HashSet<Digest>,
    /// Those that were here, the first one first.
    old: Vec<Digest>,
    is_changed: bool,
}

impl KnownDocuments {
    /// The limit on the bytes of [`KnownDocuments::changed`].
    pub const MAX_TOTAL_BYTES: usize = MAX_TOTAL_BYTES;

    /// Returns known documents. They are compared with their digests when they are used.
    pub fn new(documents: impl IntoIterator<Item = (Digest, Bytes)>) -> Self {
        let mut inner = Inner::default();
        for (digest, bytes) in documents {
            inner.old.push(digest.clone());
            inner.documents.insert(digest, bytes);
        }
        Self(Arc::new(Mutex::new(inner)))
    }

    /// Returns the documents that are worth keeping, if they are others than at first: those that were used,
    /// and then the rest, as many as may be kept.
    pub fn changed(&self) -> Option<Vec<(Digest, Bytes)>> {
        let inner = self.lock();
        if !inner.is_changed {
            return None;
        }
        let old = inner.old.iter();
        let old = old.filter(|digest| !inner.seen.contains(*digest));
        let kept = inner.used.iter().chain(old);
        let kept = kept.filter_map(|digest| inner.documents.get_key_value(digest));
        let kept = kept.scan(0, |total, (digest, bytes)| {
            *total += bytes.len();
            (*total <= MAX_TOTAL_BYTES).then(|| (digest.clone(), bytes.clone()))
        });
        Some(kept.collect())
    }

    /// Returns whether a document of this size is kept.
    pub(crate) fn takes(bytes: u64) -> bool {
        bytes <= MAX_BYTES
    }

    /// Returns a document. One that is not that of its digest is forgotten.
    pub(crate) fn get(&self, digest: &Digest) -> Option<Bytes> {
        let (bytes, is_checked) = {
            let inner = self.lock();
            (
                inner.documents.get(digest).cloned()?,
                inner.seen.contains(digest),
            )
        };
        if !is_checked && digest.same_algorithm(&bytes) != *digest {
            let mut inner = self.lock();
            inner.documents.remove(digest);
            inner.is_changed = true;
            return None;
        }
        self.lock().use_once(digest);
        Some(bytes)
    }

    /// Adds a document, if it is that of its digest.
    pub(crate) fn insert(&self, digest: &Digest, bytes: Bytes) {
        if digest.same_algorithm(&bytes) == *digest {
            let mut inner = self.lock();
            inner.documents.insert(digest.clone(), bytes);
            inner.is_changed = true;
            inner.use_once(digest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn use_once(&mut self, digest: &Digest) {
        if self.seen.insert(digest.clone()) {
            self.used.push(digest.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &[u8]) -> (Digest, Bytes) {
        (Digest::sha256(text), Bytes::copy_from_slice(text))
    }

    #[test]
    fn what_was_used_is_kept_first() {
        let size = usize::try_from(MAX_BYTES).unwrap();
        let texts: Vec<Vec<u8>> = (0..=MAX_TOTAL_BYTES / size)
            .map(|number| {
                let mut text = number.to_string().into_bytes();
                text.resize(size, b' ');
                text
            })
            .collect();
        let known = KnownDocuments::new(texts.iter().map(|text| document(text)));
        assert_eq!(known.changed(), None);
        let (last, bytes) = document(&texts[texts.len() - 1]);
        assert_eq!(known.get(&last), Some(bytes));
        // To use one is no reason to write all.
        assert_eq!(known.changed(), None);
        let (new, bytes) = document(b"new");
        known.insert(&new, bytes);
        let kept = known.changed().unwrap();
        assert_eq!([&kept[0].0, &kept[1].0], [&last, &new]);
        assert_eq!(kept[2], document(&texts[0]));
        let total: usize = kept.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(total <= MAX_TOTAL_BYTES && kept.len() == texts.len() - 1);
    }

    #[test]
    fn what_is_not_of_its_digest_is_forgotten() {
        let (digest, right) = document(b"right");
        let wrong = Bytes::from_static(b"wrong");
        let known = KnownDocuments::new([(digest.clone(), wrong.clone())]);
        assert_eq!(known.get(&digest), None);
        known.insert(&digest, wrong);
        assert_eq!(known.get(&digest), None);
        assert_eq!(known.changed(), Some(Vec::new()));
        known.insert(&digest, right.clone());
        assert_eq!(known.changed(), Some(vec![(digest, right)]));
    }
}
