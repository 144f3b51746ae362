// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Times in which containerd is away: the log has them, not each call that fails in them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How often it is told that it goes on.
const AGAIN: Duration = Duration::from_secs(60);

/// Whether containerd is away.
#[derive(Debug, Default)]
pub(crate) struct Outage(Mutex<Option<Away>>);

#[derive(Debug)]
struct Away {
    since: Instant,
    told: Instant,
}

impl Outage {
    /// containerd does not answer. Gives for how long that has been so, if it is to be told.
    pub(crate) fn goes_on(&self) -> Option<Duration> {
        let now = Instant::now();
        let mut away = self.lock();
        let Some(away) = &mut *away else {
            *away = Some(Away {
                since: now,
                told: now,
            });
            return Some(Duration::ZERO);
        };
        if now.duration_since(away.told) < AGAIN {
            return None;
        }
        away.told = now;
        Some(now.duration_since(away.since))
    }

    /// containerd answers. Gives how long it was away, if it was.
    pub(crate) fn ends(&self) -> Option<Duration> {
        let away = self.lock().take()?;
        Some(away.since.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Away>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_told_at_its_beginning_each_minute_and_at_its_end() {
        let outage = Outage::default();
        assert_eq!(outage.ends(), None);
        let mut told = Vec::new();
        for _ in 0..150 {
            told.extend(outage.goes_on().map(|since| since.as_secs()));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(told, [0, 60, 120]);
        assert_eq!(outage.ends(), Some(Duration::from_secs(150)));
        assert_eq!(outage.ends(), None);
        assert_eq!(outage.goes_on(), Some(Duration::ZERO));
    }
}
