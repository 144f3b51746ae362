// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! An error as it is told.

use resnap_core::{Kind, error_chain};
use serde::{Serialize, Serializer};

use crate::UnpackError;

/// An [`UnpackError`] as it is told to people, to programs and to other processes. It displays as
/// the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What to decide by.
    #[serde(serialize_with = "name")]
    pub kind: Kind,
    /// Which error it is, as in `MISSING_BLOB`; empty if it is none of an engine's.
    pub reason: String,
    /// The thing and the reason, with all causes.
    pub message: String,
    /// What to do about it, where there is something to say.
    pub next_step: Option<String>,
}

impl Failure {
    /// The [`Failure::reason`] of a job that was cancelled, cleanly or not.
    pub const CANCELLED: &str = "CANCELLED";

    /// `error`, about something of `namespace`.
    pub fn new(error: &UnpackError, namespace: &str) -> Self {
        Self {
            kind: error.kind(),
            reason: error.reason().to_owned(),
            message: error_chain(error),
            next_step: error.next_step(namespace),
        }
    }

    /// Whether a job was cancelled, cleanly or not.
    pub fn is_cancelled(&self) -> bool {
        self.reason == Self::CANCELLED
    }
}

fn name<S: Serializer>(kind: &Kind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{kind:?}"))
}
