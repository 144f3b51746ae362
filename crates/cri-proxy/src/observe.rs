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
    /// A caller got an error because an image was not made ready.
    Refused,
    /// A call was sent to containerd again, after containerd failed to unpack its image.
    Retried,
    /// containerd pulled the sandbox image for the proxy.
    Pulled,
    /// A pull that named the handler of its pod has succeeded.
    Steered {
        /// Whether containerd has unpacked the image for that handler.
        followed: bool,
    },
    /// An image was reported as absent, for kubelet to pull it with its credentials.
    ReportedAbsent,
    /// A call ended, with a response of containerd or of the proxy.
    Answered {
        /// The name of the method in the CRI, or `other`.
        method: &'static str,
        /// The end of the call. If the caller has left, it counts as cancelled.
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
