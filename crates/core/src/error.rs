// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The one error of ports and backends.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// A result of a port.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in the terms a caller decides by. These are gRPC's codes, so that nothing is
/// lost between a backend and whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The operation was cancelled.
    Cancelled,
    /// The backend did not say.
    Unknown,
    /// The request makes no sense.
    InvalidArgument,
    /// Time ran out.
    DeadlineExceeded,
    /// The thing is not there.
    NotFound,
    /// The thing is there already.
    AlreadyExists,
    /// We may not.
    PermissionDenied,
    /// Something has no room left.
    ResourceExhausted,
    /// The state of something else forbids it.
    FailedPrecondition,
    /// A conflict with somebody else's change.
    Aborted,
    /// Past the end.
    OutOfRange,
    /// The backend cannot do this.
    Unimplemented,
    /// A broken promise inside the backend or resnap.
    Internal,
    /// The backend is not reachable now.
    Unavailable,
    /// Content is not what its digest says.
    DataLoss,
    /// Credentials are missing.
    Unauthenticated,
}

/// What was tried on what, how it failed, and why.
///
/// It displays as `OPERATION SUBJECT`; the reason is its [`source`](StdError::source), so that a
/// printed chain says nothing twice.
#[derive(Debug, Clone)]
pub struct Error {
    kind: Kind,
    operation: &'static str,
    subject: String,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `operation` (a verb, as in "read content") on `subject` (a name or digest).
    pub fn new(kind: Kind, operation: &'static str, subject: impl Into<String>) -> Self {
        Self {
            kind,
            operation,
            subject: subject.into(),
            source: None,
        }
    }

    /// The same with its reason: another error, or a text.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// The kind to decide by.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether the thing is not there.
    pub fn is_not_found(&self) -> bool {
        self.kind == Kind::NotFound
    }

    /// Whether the thing is there already.
    pub fn is_already_exists(&self) -> bool {
        self.kind == Kind::AlreadyExists
    }
}

/// An error with its causes, as one text.
pub fn in_full(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.operation, self.subject)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}
