// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Times in which containerd is unavailable. They are logged, instead of each call that fails.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How often a continuing outage is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The current outage, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Outage(Mutex<Option<Unavailable>>);

#[derive(Debug)]
struct Unavailable {
    since: Instant,
    logged: Instant,
}

impl Outage {
    /// Records that containerd does not answer. Returns the length of the outage if it is to be logged.
    pub(crate) fn record_failure(&self) -> Option<Duration> {
        let now = Instant::now();
        let mut outage = self.lock();
        let Some(outage) = &mut *outage else {
            *outage = Some(Unavailable {
                since: now,
                logged: now,
            });
            return Some(Duration::ZERO);
        };
        if now.duration_since(outage.logged) < LOG_INTERVAL {
            return None;
        }
        outage.logged = now;
        Some(now.duration_since(outage.since))
    }

    /// Records that containerd answers. Returns the length of the outage, if there was one.
    pub(crate) fn record_success(&self) -> Option<Duration> {
        let outage = self.lock().take()?;
        Some(outage.since.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Unavailable>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_logged_at_its_start_each_minute_and_at_its_end() {
        let outage = Outage::default();
        assert_eq!(outage.record_success(), None);
        let mut logged = Vec::new();
        for _ in 0..150 {
            logged.extend(outage.record_failure().map(|since| since.as_secs()));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(logged, [0, 60, 120]);
        assert_eq!(outage.record_success(), Some(Duration::from_secs(150)));
        assert_eq!(outage.record_success(), None);
        assert_eq!(outage.record_failure(), Some(Duration::ZERO));
    }
}
