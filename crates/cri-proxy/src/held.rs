// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Requests that wait: for their image, for containerd to read them, for its answer.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

/// The bytes of all requests that wait, which have a bound together: past it the largest is given
/// up, and its caller is not served by them.
#[derive(Debug)]
pub(crate) struct HeldRequests {
    max: usize,
    requests: Mutex<Requests>,
}

#[derive(Debug, Default)]
struct Requests {
    /// The largest is the last.
    kept: BTreeMap<Key, (Bytes, watch::Sender<()>)>,
    bytes: usize,
    next: u64,
}

/// The length of a request, and which of those of that length it is.
type Key = (usize, u64);

impl HeldRequests {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            requests: Mutex::default(),
        }
    }

    /// Keeps a request for as long as the value lives, or until there is no room for it.
    pub(crate) fn keep(&self, request: Bytes) -> HeldRequest<'_> {
        let (sender, given_up) = watch::channel(());
        let mut requests = self.requests();
        let key = (request.len(), requests.next);
        requests.next += 1;
        requests.bytes += request.len();
        requests.kept.insert(key, (request, sender));
        while requests.bytes > self.max
            && let Some(((length, _), _)) = requests.kept.pop_last()
        {
            requests.bytes -= length;
        }
        HeldRequest {
            waiting: self,
            key,
            given_up,
        }
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that waits.
#[derive(Debug)]
pub(crate) struct HeldRequest<'a> {
    waiting: &'a HeldRequests,
    key: Key,
    given_up: watch::Receiver<()>,
}

impl HeldRequest<'_> {
    /// The request; `None` if it was given up.
    pub(crate) fn bytes(&self) -> Option<Bytes> {
        let requests = self.waiting.requests();
        let (bytes, _) = requests.kept.get(&self.key)?;
        Some(bytes.clone())
    }

    /// Waits until the request is given up.
    pub(crate) async fn given_up(&self) {
        // Nothing is ever sent: it ends when the sender goes, with the request.
        let _ = self.given_up.clone().changed().await;
    }
}

impl Drop for HeldRequest<'_> {
    fn drop(&mut self) {
        let mut requests = self.waiting.requests();
        if requests.kept.remove(&self.key).is_some() {
            requests.bytes -= self.key.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn past_the_bound_the_largest_is_given_up() {
        let waiting = HeldRequests::new(100);
        let keep = |length: usize| waiting.keep(Bytes::from(vec![0; length]));
        let (small, large, middle) = (keep(10), keep(50), keep(40));
        assert!(large.bytes().is_some());
        let last = keep(30);
        for (kept, length) in [(&small, 10), (&middle, 40), (&last, 30)] {
            assert_eq!(kept.bytes().map(|bytes| bytes.len()), Some(length));
            assert!(kept.given_up().now_or_never().is_none());
        }
        assert_eq!(large.bytes(), None);
        large.given_up().now_or_never().unwrap();
        // What goes gives its room back, once.
        drop((large, middle));
        assert!(keep(60).bytes().is_some());
        assert!(keep(61).bytes().is_none());
        assert!(small.bytes().is_some());
    }

    #[test]
    fn who_goes_is_not_counted() {
        let waiting = HeldRequests::new(100);
        for _ in 0..10 {
            assert!(waiting.keep(Bytes::from(vec![0; 100])).bytes().is_some());
        }
        assert_eq!(waiting.requests().bytes, 0);
    }
}
