// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Back-off for images that exceed a limit: programs that repeat their requests are refused for a
//! while before the image is tried again.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use resnap_core::{Digest, Error, Kind};
use tokio::time::Instant;

use crate::{Plan, UnpackError};

/// The pause before the second attempt.
const FIRST: Duration = Duration::from_secs(10);

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(300);

/// The limit on remembered images, counted per snapshotter.
const MAX_REMEMBERED: usize = 256;

/// The images that failed by a limit, and when they may be tried again.
#[derive(Debug, Default)]
pub(crate) struct BackOff(HashMap<Key, Failed>);

/// The manifest and the snapshotter.
type Key = (Digest, String);

#[derive(Debug)]
struct Failed {
    error: UnpackError,
    pause: Duration,
    until: Instant,
}

impl BackOff {
    /// Checks that the image may be tried now.
    ///
    /// # Errors
    /// [`UnpackError::BackedOff`].
    pub(crate) fn require_elapsed(
        &self,
        plan: &Plan,
        snapshotter: &str,
    ) -> Result<(), UnpackError> {
        let failed = self.0.get(&key(plan, snapshotter));
        let left = failed.map(|failed| failed.until.saturating_duration_since(Instant::now()));
        match failed.zip(left) {
            Some((failed, left)) if !left.is_zero() => Err(UnpackError::BackedOff {
                cause: Box::new(failed.error.clone()),
                seconds: left.as_secs() + u64::from(left.subsec_nanos() > 0),
            }),
            _ => Ok(()),
        }
    }

    /// Records that the image failed by a limit, and returns the pause until the next attempt.
    pub(crate) fn record_failure(
        &mut self,
        plan: &Plan,
        snapshotter: &str,
        error: &UnpackError,
    ) -> Duration {
        let (key, now) = (key(plan, snapshotter), Instant::now());
        let before = self.0.get(&key).map(|failed| failed.pause * 2);
        let pause = before.unwrap_or(FIRST).min(LONGEST);
        if self.0.len() >= MAX_REMEMBERED && !self.0.contains_key(&key) {
            let oldest = self.0.iter().min_by_key(|(_, failed)| failed.until);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.0.remove(&oldest);
            }
        }
        let failed = Failed {
            error: error.clone(),
            pause,
            until: now + pause,
        };
        self.0.insert(key, failed);
        pause
    }

    /// Forgets the failures of the image.
    pub(crate) fn forget(&mut self, plan: &Plan, snapshotter: &str) {
        self.0.remove(&key(plan, snapshotter));
    }
}

fn key(plan: &Plan, snapshotter: &str) -> Key {
    (plan.manifest.digest.clone(), snapshotter.to_owned())
}

/// Returns whether a layer failed by a limit of the applier on memory, time or cost. Errors of the
/// system, such as a full disk or a lack of descriptors, do not count: they may be over any moment.
pub(crate) fn is_limit(error: &Error) -> bool {
    let is_limits_kind = matches!(
        error.kind(),
        Kind::ResourceExhausted | Kind::DeadlineExceeded
    );
    let mut next = error.source();
    while let Some(cause) = next {
        let system = cause.downcast_ref::<io::Error>();
        if system.is_some_and(|error| error.raw_os_error().is_some()) {
            return false;
        }
        next = cause.source();
    }
    is_limits_kind
}

#[cfg(test)]
mod tests {
    use resnap_core::testing::{
        Behaviour, Effect, Fault, Operation, Simulated, SimulatedImage, SimulatedLayer,
    };

    use super::*;
    use crate::{Engine, EngineSettings, Report, Request};

    const SECOND: Duration = Duration::from_secs(1);

    /// Returns an engine whose applier fails the first `times` calls.
    fn engine(times: usize, kind: Kind) -> (Simulated, Engine) {
        let backend = Simulated::new();
        for snapshotter in ["erofs", "overlayfs"] {
            backend.add_snapshotter(snapshotter, Behaviour::Ordinary);
        }
        for name in ["web", "other"] {
            let image = SimulatedImage::new([SimulatedLayer::new(name)]);
            backend.add_image("k8s.io", name, &image);
        }
        backend.set_faults((1..=times).map(|call| Fault {
            operation: Operation::Apply,
            call,
            effect: Effect::Fail(kind),
        }));
        let engine = Engine::new(backend.ports(), "k8s.io", EngineSettings::default()).unwrap();
        (backend, engine)
    }

    async fn ask(engine: &Engine, image: &str, by_itself: bool) -> Result<Report, UnpackError> {
        let request = Request {
            by_itself,
            ..Request::new(image).on("erofs")
        };
        engine.unpack(request).report().await
    }

    fn seconds(result: Result<Report, UnpackError>) -> u64 {
        match result {
            Err(UnpackError::BackedOff { cause, seconds }) => {
                assert!(matches!(*cause, UnpackError::Layer { .. }), "{cause:?}");
                seconds
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_by_limits_are_retried_with_exponential_backoff() {
        let (backend, engine) = engine(9, Kind::ResourceExhausted);
        for pause in [10, 20, 40, 80, 160, 300, 300] {
            let tries = backend.calls(Operation::Apply);
            let error = ask(&engine, "web", true).await.unwrap_err();
            assert!(matches!(error, UnpackError::Layer { .. }), "{error:?}");
            for _ in 0..3 {
                assert_eq!(seconds(ask(&engine, "web", true).await), pause);
                tokio::time::sleep(SECOND / 100).await;
            }
            assert_eq!(backend.calls(Operation::Apply), tries + 1);
            tokio::time::sleep(Duration::from_secs(pause)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_of_users_and_success_reset_the_backoff() {
        let (_backend, engine) = engine(2, Kind::DeadlineExceeded);
        let error = ask(&engine, "web", true).await.unwrap_err();
        assert_eq!(error.kind(), Kind::DeadlineExceeded, "{error:?}");
        tokio::time::sleep(2 * SECOND).await;
        assert_eq!(seconds(ask(&engine, "web", true).await), 8);
        let error = UnpackError::BackedOff {
            cause: Box::new(ask(&engine, "web", false).await.unwrap_err()),
            seconds: 7,
        };
        assert_eq!(error.kind(), Kind::DeadlineExceeded);
        assert!(error.to_string().contains("tried again in 7 s"), "{error}");
        ask(&engine, "other", true).await.unwrap();
        assert_eq!(seconds(ask(&engine, "web", true).await), 10);
        ask(&engine, "web", false).await.unwrap();
        ask(&engine, "web", true).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn other_failures_are_retried_at_once() {
        let (backend, engine) = engine(2, Kind::Unavailable);
        for _ in 0..2 {
            let error = ask(&engine, "web", true).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
        }
        ask(&engine, "web", true).await.unwrap();
        backend.set_faults([]);
    }

    #[test]
    fn a_full_disk_is_no_limit() {
        let error = |kind| Error::new(kind, "apply layer", "a");
        assert!(is_limit(
            &error(Kind::ResourceExhausted).with_source("a budget")
        ));
        let disk = io::Error::from_raw_os_error(28);
        assert!(!is_limit(&error(Kind::ResourceExhausted).with_source(disk)));
        let ours = io::Error::other("more than 3 bytes");
        assert!(is_limit(&error(Kind::ResourceExhausted).with_source(ours)));
        assert!(!is_limit(&error(Kind::DataLoss)));
    }
}
