// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The error type of ports and backends.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// The result of a port's method.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kind of an error, by which callers decide. The kinds are the codes of gRPC, so that none is lost
/// between a backend and a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The operation was cancelled.
    Cancelled = 1,
    /// The backend gave no reason.
    Unknown = 2,
    /// The request is invalid.
    InvalidArgument = 3,
    /// The deadline passed.
    DeadlineExceeded = 4,
    /// The subject does not exist.
    NotFound = 5,
    /// The subject already exists.
    AlreadyExists = 6,
    /// The caller lacks the permission.
    PermissionDenied = 7,
    /// A resource is used up, or a limit is exceeded.
    ResourceExhausted = 8,
    /// The operation is not allowed in the current state.
    FailedPrecondition = 9,
    /// The operation conflicts with a concurrent one.
    Aborted = 10,
    /// The request is past the end.
    OutOfRange = 11,
    /// The backend does not support the operation.
    Unimplemented = 12,
    /// An invariant of the backend or of resnap is violated.
    Internal = 13,
    /// The backend cannot be reached at the moment.
    Unavailable = 14,
    /// Content does not match its digest.
    DataLoss = 15,
    /// Credentials are missing or invalid.
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

    /// Returns the kind of an error of the file system; [`Kind::Unknown`] if there is no other for it.
    pub fn of_io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::ResourceExhausted,
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Self::PermissionDenied,
            _ => Self::Unknown,
        }
    }

    /// Returns the number of the gRPC code of this name (grpc `doc/statuscodes.md`).
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Returns the kind of the gRPC code of this number; `None` for 0, which is not an error, and for
    /// numbers that gRPC does not define.
    pub fn of_code(code: i32) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| i32::from(kind.code()) == code)
    }
}

/// A failed operation: the operation, its subject, the kind of failure and the reason.
///
/// It displays as `OPERATION SUBJECT`. The reason is its [`source`](StdError::source), so that a printed
/// chain repeats nothing.
#[derive(Debug, Clone)]
pub struct Error {
    kind: Kind,
    operation: &'static str,
    subject: String,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// Creates an error of `operation` (a verb, as in "read content") on `subject` (a name or digest).
    pub fn new(kind: Kind, operation: &'static str, subject: impl Into<String>) -> Self {
        Self {
            kind,
            operation,
            subject: subject.into(),
            source: None,
        }
    }

    /// Returns this error with its reason: another error, or a text.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// Returns the kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns whether the subject does not exist.
    pub fn is_not_found(&self) -> bool {
        self.kind == Kind::NotFound
    }

    /// Returns whether the subject already exists.
    pub fn is_already_exists(&self) -> bool {
        self.kind == Kind::AlreadyExists
    }
}

/// The maximum number of bytes of one error's message in [`error_chain`].
const MAX_TEXT: usize = 2048;

/// Formats an error and its source chain on one line. Each message is truncated, since it may quote a
/// hostile image.
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
