// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The steps in which the proxy stops.

use resnap_core::Kind;
use tokio::sync::watch;

use crate::grpc::Status;
use crate::limits::LAST_RESERVE;

/// How far the shutdown has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ShutdownPhase {
    Serving,
    /// Clients are asked to start no more calls on their connections.
    Draining,
    /// Responses that have begun are ended: they may be endless streams.
    EndingStreams,
    /// All other calls are answered with an error.
    Ending,
}

/// The current shutdown phase, as connections and calls see it.
#[derive(Debug, Clone)]
pub(crate) struct Shutdown(watch::Receiver<ShutdownPhase>);

impl Shutdown {
    /// Returns the sender of the phase, and its observer.
    pub(crate) fn channel() -> (watch::Sender<ShutdownPhase>, Self) {
        let (sender, receiver) = watch::channel(ShutdownPhase::Serving);
        (sender, Self(receiver))
    }

    /// Waits until the shutdown has reached `target`.
    pub(crate) async fn reached(&self, target: ShutdownPhase) {
        let mut receiver = self.0.clone();
        if receiver.wait_for(|phase| *phase >= target).await.is_err() {
            // The sender was dropped without a shutdown: connections are cut, not drained.
            std::future::pending().await
        }
    }

    /// Waits until a response that has begun is to be ended. One that begins late gets the same
    /// time to end by itself.
    pub(crate) async fn ends_streams(&self) {
        self.reached(ShutdownPhase::EndingStreams).await;
        tokio::time::sleep(LAST_RESERVE).await;
    }
}

/// Returns the error for calls that the shutdown ends.
pub(crate) fn stopping() -> Status {
    Status::new(Kind::Unavailable, "resnap is being stopped")
}
