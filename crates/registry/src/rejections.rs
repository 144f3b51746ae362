// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The hosts whose bytes of a blob were wrong or came too slowly. They are asked last.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use resnap_core::Digest;
use tokio::time::Instant;

/// The time for which a host is asked last.
const TIME: Duration = Duration::from_secs(600);

/// The limit on the number of blobs, and of hosts of blobs, that are remembered.
const MAX_ENTRIES: usize = 256;

/// The hosts that served blobs, and those that were rejected for it.
#[derive(Default)]
pub(crate) struct Rejections(Mutex<State>);

#[derive(Default)]
struct State {
    /// The host that served a blob last.
    served: VecDeque<(Digest, String)>,
    rejected: VecDeque<(Digest, String, Instant)>,
}

impl Rejections {
    /// Records that a host serves a blob.
    pub(crate) fn serve(&self, blob: &Digest, host: &str) {
        let mut state = self.state();
        state.served.retain(|(served, _)| served != blob);
        state.served.push_back((blob.clone(), host.to_owned()));
        if state.served.len() > MAX_ENTRIES {
            state.served.pop_front();
        }
    }

    /// Rejects the host that served a blob last. Returns false if it was rejected before.
    pub(crate) fn reject(&self, blob: &Digest) -> bool {
        let mut state = self.state();
        let served = state.served.iter().find(|(served, _)| served == blob);
        let Some((blob, host)) = served.cloned() else {
            return false;
        };
        if state.is_rejected(&blob, &host) {
            return false;
        }
        state.rejected.push_back((blob, host, Instant::now()));
        if state.rejected.len() > MAX_ENTRIES {
            state.rejected.pop_front();
        }
        true
    }

    /// Returns whether a host was rejected for a blob lately.
    pub(crate) fn is_rejected(&self, blob: &Digest, host: &str) -> bool {
        self.state().is_rejected(blob, host)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_rejected(&mut self, blob: &Digest, host: &str) -> bool {
        self.rejected.retain(|(.., since)| since.elapsed() < TIME);
        let mut rejected = self.rejected.iter();
        rejected.any(|(rejected, by, _)| rejected == blob && by == host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_host_is_rejected_once_for_a_while() {
        let rejections = Rejections::default();
        let (blob, other) = (Digest::sha256(b"a"), Digest::sha256(b"b"));
        assert!(!rejections.reject(&blob));
        rejections.serve(&blob, "mirror");
        assert!(rejections.reject(&blob));
        assert!(!rejections.reject(&blob));
        assert!(rejections.is_rejected(&blob, "mirror"));
        assert!(!rejections.is_rejected(&other, "mirror"));
        rejections.serve(&blob, "registry");
        assert!(rejections.reject(&blob));
        tokio::time::sleep(TIME).await;
        assert!(!rejections.is_rejected(&blob, "mirror"));
    }

    #[tokio::test]
    async fn so_many_are_remembered() {
        let rejections = Rejections::default();
        let blob = |number: usize| Digest::sha256(number.to_string().as_bytes());
        for number in 0..2 * MAX_ENTRIES {
            rejections.serve(&blob(number), "mirror");
            assert!(rejections.reject(&blob(number)));
        }
        assert!(!rejections.is_rejected(&blob(0), "mirror"));
        assert!(rejections.is_rejected(&blob(2 * MAX_ENTRIES - 1), "mirror"));
        assert_eq!(rejections.state().served.len(), MAX_ENTRIES);
    }
}
