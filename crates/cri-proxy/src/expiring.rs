// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Maps whose entries expire.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The most entries of a map. A node runs a few hundred pods.
const MAX_ENTRIES: usize = 4096;

/// A map whose entries expire after a fixed time. Of more than [`MAX_ENTRIES`], the oldest go first.
#[derive(Debug)]
pub(crate) struct ExpiringMap<K, V> {
    lifetime: Duration,
    entries: Mutex<HashMap<K, (V, Instant)>>,
}

impl<K: Eq + Hash + Clone, V: Clone> ExpiringMap<K, V> {
    pub(crate) fn new(lifetime: Duration) -> Self {
        Self {
            lifetime,
            entries: Mutex::default(),
        }
    }

    /// Inserts an entry, in place of the earlier one for the same key.
    pub(crate) fn insert(&self, key: K, value: V) {
        let now = Instant::now();
        let mut entries = self.entries();
        if entries.len() >= MAX_ENTRIES && !entries.contains_key(&key) {
            entries.retain(|_, (_, since)| now.duration_since(*since) < self.lifetime);
            let oldest = entries.iter().min_by_key(|(_, (_, since))| *since);
            if entries.len() >= MAX_ENTRIES
                && let Some(oldest) = oldest.map(|(key, _)| key.clone())
            {
                entries.remove(&oldest);
            }
        }
        entries.insert(key, (value, now));
    }

    /// Returns the value for a key; `None` if there is none, or it has expired.
    pub(crate) fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let entries = self.entries();
        let (value, since) = entries.get(key)?;
        (since.elapsed() < self.lifetime).then(|| value.clone())
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<K, (V, Instant)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn entries_expire() {
        let map = ExpiringMap::new(Duration::from_secs(30));
        map.insert("a", 1);
        tokio::time::advance(Duration::from_secs(20)).await;
        map.insert("b", 2);
        assert_eq!((map.get(&"a"), map.get(&"b")), (Some(1), Some(2)));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!((map.get(&"a"), map.get(&"b")), (None, Some(2)));
        map.insert("a", 3);
        assert_eq!(map.get(&"a"), Some(3));
    }

    #[tokio::test(start_paused = true)]
    async fn of_too_many_the_oldest_goes() {
        let map = ExpiringMap::new(Duration::from_secs(30));
        for key in 0..=MAX_ENTRIES {
            map.insert(key, ());
            tokio::time::advance(Duration::from_nanos(1)).await;
        }
        assert_eq!(map.entries().len(), MAX_ENTRIES);
        assert_eq!((map.get(&0), map.get(&1)), (None, Some(())));
        // An entry in place of another one removes none.
        map.insert(2, ());
        assert_eq!(map.get(&1), Some(()));
    }
}
