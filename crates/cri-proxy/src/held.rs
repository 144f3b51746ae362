// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The bytes of requests that wait for their image, or for containerd.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The requests that wait. Past a limit on all their bytes, the largest is evicted: its caller gets an
/// error, and the others wait on.
#[derive(Debug)]
pub(crate) struct HeldRequests {
    max: usize,
    requests: Mutex<Requests>,
}

#[derive(Debug, Default)]
struct Requests {
    /// The largest is the last. Dropping an entry wakes whatever waits for its eviction.
    by_length: BTreeMap<Key, (Bytes, DropGuard)>,
    bytes: usize,
    next: u64,
}

/// The length of a request, and a number that makes it unique.
type Key = (usize, u64);

impl HeldRequests {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            requests: Mutex::default(),
        }
    }

    /// Holds a request until the value is dropped, or the request is evicted.
    pub(crate) fn hold(&self, request: Bytes) -> HeldRequest<'_> {
        let evicted = CancellationToken::new();
        let mut requests = self.lock();
        let key = (request.len(), requests.next);
        requests.next += 1;
        requests.bytes += request.len();
        requests
            .by_length
            .insert(key, (request, evicted.clone().drop_guard()));
        while requests.bytes > self.max
            && let Some(((length, _), _)) = requests.by_length.pop_last()
        {
            requests.bytes -= length;
        }
        HeldRequest {
            requests: self,
            key,
            evicted,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request in [`HeldRequests`].
#[derive(Debug)]
pub(crate) struct HeldRequest<'a> {
    requests: &'a HeldRequests,
    key: Key,
    evicted: CancellationToken,
}

impl HeldRequest<'_> {
    /// Returns the bytes; `None` if the request was evicted.
    pub(crate) fn bytes(&self) -> Option<Bytes> {
        let requests = self.requests.lock();
        let (bytes, _) = requests.by_length.get(&self.key)?;
        Some(bytes.clone())
    }

    /// Waits until the request is evicted.
    pub(crate) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for HeldRequest<'_> {
    fn drop(&mut self) {
        let mut requests = self.requests.lock();
        if requests.by_length.remove(&self.key).is_some() {
            requests.bytes -= self.key.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn past_the_limit_the_largest_is_evicted() {
        let requests = HeldRequests::new(100);
        let hold = |length: usize| requests.hold(Bytes::from(vec![0; length]));
        let (small, large, middle) = (hold(10), hold(50), hold(40));
        assert!(large.bytes().is_some());
        let last = hold(30);
        for (held, length) in [(&small, 10), (&middle, 40), (&last, 30)] {
            assert_eq!(held.bytes().map(|bytes| bytes.len()), Some(length));
            assert!(held.evicted().now_or_never().is_none());
        }
        assert_eq!(large.bytes(), None);
        large.evicted().now_or_never().unwrap();
        // Both give their bytes back once, whether or not they were evicted.
        drop((large, middle));
        assert!(hold(60).bytes().is_some());
        assert!(hold(61).bytes().is_none());
        assert!(small.bytes().is_some());
    }

    #[test]
    fn dropped_requests_do_not_count() {
        let requests = HeldRequests::new(100);
        for _ in 0..10 {
            assert!(requests.hold(Bytes::from(vec![0; 100])).bytes().is_some());
        }
        assert_eq!(requests.lock().bytes, 0);
    }
}
