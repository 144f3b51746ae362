// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Events of the proxy, for metrics.

use resnap_core::Kind;

/// An event of the proxy.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum ProxyEvent {
    /// A caller got an error just before its deadline, while the work continues.
    AnsweredEarly,
    /// A call was forwarded although an image was not made ready.
    Forwarded(ForwardReason),
    /// A call was sent to containerd again, after containerd failed to unpack its image.
    Retried,
    /// containerd pulled the sandbox image for the proxy.
    Pulled,
    /// A call ended, with a response of containerd or of the proxy.
    Answered {
        /// The name of the method in the CRI, or `other`.
        method: &'static str,
        /// How it ended. A caller that left counts as cancelled.
        outcome: Result<(), Kind>,
    },
}

/// The reason why a call was forwarded although an image was not made ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardReason {
    /// The image could not be determined.
    Unresolved,
    /// The image was unpacked without labels.
    Unlabelled,
    /// The unpack failed.
    Failed,
}

/// A receiver of [`ProxyEvent`]s.
pub trait ProxyObserver: Send + Sync {
    /// Receives an event. Called synchronously in the thread that serves clients: must not block.
    fn on_event(&self, event: &ProxyEvent);
}
