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
#[repr(u8)]
pub enum Kind {
    /// The operation was cancelled.
    Cancelled = 1,
    /// The backend did not say.
    Unknown = 2,
    /// The request makes no sense.
    InvalidArgument = 3,
    /// Time ran out.
    DeadlineExceeded = 4,
    /// The thing is not there.
    NotFound = 5,
    /// The thing is there already.
    AlreadyExists = 6,
    /// We may not.
    PermissionDenied = 7,
    /// Something has no room left.
    ResourceExhausted = 8,
    /// The state of something else forbids it.
    FailedPrecondition = 9,
    /// A conflict with somebody else's change.
    Aborted = 10,
    /// Past the end.
    OutOfRange = 11,
    /// The backend cannot do this.
    Unimplemented = 12,
    /// A broken promise inside the backend or resnap.
    Internal = 13,
    /// The backend is not reachable now.
    Unavailable = 14,
    /// Content is not what its digest says.
    DataLoss = 15,
    /// Credentials are missing.
    Unauthenticated = 16,
}

impl Kind {
    const ALL: [Self; 16] = [
        Self::Cancelled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
    ];

    /// The number of gRPC's code of this name (grpc `doc/statuscodes.md`).
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The kind of gRPC's code of this number; `None` for 0, which is no error, and for those that
    /// gRPC does not have.
    pub fn of_code(code: i32) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| i32::from(kind.code()) == code)
    }
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
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
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

/// Most bytes of one error that [`error_chain`] tells.
const MAX_TEXT: usize = 2048;

/// An error with its causes, as one text. Of each no more than its beginning, as there may be
/// something of a hostile image in it.
pub fn error_chain(error: &dyn StdError) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let one = error.to_string();
        let end = one.floor_char_boundary(MAX_TEXT);
        text.push_str(&one[..end]);
        if end < one.len() {
            text.push('…');
        }
        next = error.source();
        if next.is_some() {
            text.push_str(": ");
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_cause_hides_no_other() {
        let inner =
            Error::new(Kind::DataLoss, "read", "é".repeat(5000)).with_source("it is broken");
        let text = error_chain(&Error::new(Kind::DataLoss, "look", "here").with_source(inner));
        assert!(text.len() < 2 * MAX_TEXT, "{}", text.len());
        assert!(text.starts_with("look here: read é"), "{text}");
        assert!(text.ends_with("…: it is broken"), "{text}");
    }

    #[test]
    fn kinds_have_the_codes_of_grpc() {
        assert_eq!(Kind::of_code(0), None);
        assert_eq!(Kind::of_code(17), None);
        for (code, kind) in (1..).zip(Kind::ALL) {
            assert_eq!(
                (kind.code(), Kind::of_code(code.into())),
                (code, Some(kind))
            );
        }
        assert_eq!(Kind::NotFound.code(), 5);
        assert_eq!(Kind::Unauthenticated.code(), 16);
    }
}
