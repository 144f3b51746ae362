// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What the proxy tells of its work, to be counted.

/// Something the proxy saw or did.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum ProxyEvent {
    /// A caller was answered before its deadline, while the work went on.
    AnsweredEarly,
    /// A call was forwarded though an image was not made ready.
    Forwarded(ForwardReason),
    /// A call was sent to containerd once more, after it had failed at unpacking.
    Retried,
    /// containerd was made to pull the image of sandboxes.
    Pulled,
    /// A call ended, whoever answered it.
    Answered {
        /// The method's name in the CRI, or `other`.
        method: &'static str,
        /// The number of gRPC's code, also for a caller that went away or a connection that broke.
        code: u16,
    },
}

/// Why an image was not made ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardReason {
    /// Which image it is could not be found out.
    Unresolved,
    /// Somebody unpacked it without labels.
    Unlabelled,
    /// It failed.
    Failed,
}

/// Who is told.
pub trait ProxyObserver: Send + Sync {
    /// Is told at once, and must not block.
    fn on_event(&self, seen: &ProxyEvent);
}
