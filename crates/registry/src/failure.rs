// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Failures of single attempts, and the error that is made of them.

use std::error::Error as StdError;
use std::time::Duration;

use resnap_core::{Error, Kind};

/// The limit on the length of one failure's text.
const MAX_TEXT: usize = 512;

/// The limit on the number of failures that an error lists.
const MAX_LISTED: usize = 12;

/// Whether an attempt is worth repeating.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    Never,
    /// After the back-off.
    Soon,
    /// After the back-off, but not before this time.
    After(Duration),
}

impl Retry {
    /// Returns the wait after an attempt, the first being 1; `None` if another one is not worth it.
    pub(crate) fn wait(self, backoff: Duration, attempt: u32) -> Option<Duration> {
        let backoff = backoff.saturating_mul(1 << (attempt - 1));
        match self {
            Self::Never => None,
            Self::Soon => Some(backoff),
            Self::After(wait) => Some(wait.max(backoff)),
        }
    }
}

/// A failed attempt.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    /// The address that was asked, and its answer.
    pub(crate) text: String,
    pub(crate) retry: Retry,
    /// The server speaks plain HTTP where TLS was tried.
    pub(crate) is_plain: bool,
}

impl Failure {
    /// Creates a failure that is not worth repeating.
    pub(crate) fn new(kind: Kind, text: impl Into<String>) -> Self {
        let mut text = text.into().replace(char::is_control, " ");
        if text.len() > MAX_TEXT {
            text.truncate(text.floor_char_boundary(MAX_TEXT));
            text.push('…');
        }
        Self {
            kind,
            text,
            retry: Retry::Never,
            is_plain: false,
        }
    }

    /// Returns this failure as one that is worth repeating.
    pub(crate) fn worth(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }
}

/// Returns the messages of an error's causes on one line, without the error's own message: reqwest's
/// quotes the address with its query.
pub(crate) fn causes(error: &dyn StdError) -> String {
    let mut texts = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if texts.last() != Some(&text) {
            texts.push(text);
        }
        next = cause.source();
    }
    texts.join(": ")
}

/// Makes one failure of several at one host, with each text. A host first asks for a credential, so
/// that one was refused counts more.
pub(crate) fn worst(failures: &[Failure]) -> Failure {
    let best = failures.iter().min_by_key(|failure| match failure.kind {
        Kind::PermissionDenied => 0,
        kind => 1 + rank(kind),
    });
    let mut texts: Vec<&str> = Vec::new();
    for failure in failures.iter().rev() {
        if !texts.contains(&failure.text.as_str()) {
            texts.push(&failure.text);
        }
    }
    let kind = best.map_or(Kind::Unauthenticated, |failure| failure.kind);
    Failure::new(kind, texts.join("; "))
}

/// Makes the error of an operation of which each attempt failed. Its kind is that of the failure by
/// which a caller can do most.
pub(crate) fn error(operation: &'static str, subject: &str, failures: &[Failure]) -> Error {
    let best = failures.iter().min_by_key(|failure| rank(failure.kind));
    let kind = best.map_or(Kind::NotFound, |failure| failure.kind);
    let mut texts: Vec<&str> = Vec::new();
    for failure in failures {
        if !texts.contains(&failure.text.as_str()) {
            texts.push(&failure.text);
        }
    }
    let more = texts.len().saturating_sub(MAX_LISTED);
    texts.truncate(MAX_LISTED);
    let mut text = texts.join("; ");
    if more > 0 {
        text.push_str(&format!("; and {more} more"));
    }
    if text.is_empty() {
        "neither a reference nor a label names a registry".clone_into(&mut text);
    }
    Error::new(kind, operation, subject).with_source(text)
}

/// Returns the place of a kind among those of several failures: credentials can be provided, a blob
/// that is nowhere cannot, and what is unavailable may have it.
fn rank(kind: Kind) -> u8 {
    match kind {
        Kind::Unauthenticated => 0,
        Kind::PermissionDenied => 1,
        Kind::DataLoss => 2,
        Kind::InvalidArgument | Kind::FailedPrecondition => 3,
        Kind::NotFound => 4,
        Kind::ResourceExhausted => 5,
        Kind::DeadlineExceeded => 6,
        _ => 7,
    }
}

#[cfg(test)]
mod tests {
    use resnap_core::error_chain;

    use super::*;

    #[test]
    fn the_error_lists_each_failure_once_and_has_the_most_useful_kind() {
        let failures = [
            Failure::new(Kind::Unavailable, "m: 503"),
            Failure::new(Kind::PermissionDenied, "r: 403"),
            Failure::new(Kind::NotFound, "x: 404"),
            Failure::new(Kind::NotFound, "x: 404"),
        ];
        let error = error("fetch", "sha256:a", &failures);
        assert_eq!(error.kind(), Kind::PermissionDenied);
        assert_eq!(
            error_chain(&error),
            "fetch sha256:a: m: 503; r: 403; x: 404"
        );
    }

    #[test]
    fn the_text_is_bounded() {
        let failures: Vec<_> = (0..99)
            .map(|number| Failure::new(Kind::NotFound, format!("{number}\n{}", "é".repeat(999))))
            .collect();
        let text = error_chain(&error("fetch", "x", &failures));
        assert!(text.len() < 8192 && !text.contains('\n'), "{}", text.len());
        assert!(error_chain(&error("fetch", "x", &[])).contains("names a registry"));
    }
}
