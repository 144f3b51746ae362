// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images without artifacts, which are not asked for at every attempt.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use resnap_core::Digest;
use tokio::time::Instant;

/// The time for which an image without artifacts is not asked for again.
const TIME: Duration = Duration::from_secs(60);

/// The limit on the images that are remembered.
const MAX_IMAGES: usize = 4096;

/// The images that had no artifacts recently, by their manifests.
#[derive(Debug, Default)]
pub(crate) struct Absent(Mutex<HashMap<Digest, Instant>>);

impl Absent {
    pub(crate) fn contains(&self, manifest: &Digest) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .get(manifest)
            .is_some_and(|since| since.elapsed() < TIME)
    }

    pub(crate) fn insert(&self, manifest: &Digest) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, since| since.elapsed() < TIME);
        if known.len() < MAX_IMAGES {
            known.insert(manifest.clone(), Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn absence_is_remembered_for_a_while() {
        let (absent, manifest) = (Absent::default(), Digest::sha256(b"manifest"));
        assert!(!absent.contains(&manifest));
        absent.insert(&manifest);
        assert!(absent.contains(&manifest));
        tokio::time::advance(TIME).await;
        assert!(!absent.contains(&manifest));
    }
}
