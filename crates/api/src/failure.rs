// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Errors in the form in which they are shown and sent.

use resnap_core::{Kind, error_chain};
use resnap_unpacker::UnpackError;
use serde::{Serialize, Serializer};

use crate::next_step::next_step;

/// An error in the form in which it is shown to people, printed for programs and sent to other
/// processes. It displays as its message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The kind of the error.
    #[serde(serialize_with = "kind_name")]
    pub kind: Kind,
    /// A name of the error for programs, such as `MISSING_BLOB`; empty if it is none of an engine.
    pub reason: String,
    /// The subject and the error, with all causes.
    pub message: String,
    /// The next step for the user, if one is known.
    pub next_step: Option<String>,
}

impl Failure {
    /// The [`Failure::reason`] of a job that was cancelled, cleanly or not.
    pub const CANCELLED: &str = UnpackError::CANCELLED;

    /// Returns the failure for `error`, which concerns something of `namespace`.
    pub fn new(error: &UnpackError, namespace: &str) -> Self {
        Self {
            kind: error.kind(),
            reason: error.reason().to_owned(),
            message: error_chain(error),
            next_step: next_step(error, namespace),
        }
    }

    /// Returns whether a job was cancelled, cleanly or not.
    pub fn is_cancelled(&self) -> bool {
        self.reason == Self::CANCELLED
    }
}

fn kind_name<S: Serializer>(kind: &Kind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{kind:?}"))
}
