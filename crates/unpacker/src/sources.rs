// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The sources of layers whose blobs are missing, as an engine is configured with them.

use std::fmt;
use std::sync::Arc;

use resnap_core::{BlobSource, Error};

/// A source of layers whose blobs are missing.
#[derive(Clone)]
#[non_exhaustive]
pub enum Source {
    /// A source of blobs.
    Blobs(Arc<dyn BlobSource>),
    /// The snapshots of the same layers on another snapshotter, which are copied.
    Sibling {
        /// Whether layers are also copied if their blobs exist.
        always: bool,
    },
}

impl Source {
    /// Returns the name of the source as the configuration has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Blobs(source) => source.name(),
            Self::Sibling { .. } => "sibling",
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A source that did not serve, and why.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Tried {
    /// The name of the source as the configuration has it.
    pub source: &'static str,
    /// The reason.
    pub error: Error,
}

impl Tried {
    /// Returns that a source failed with this error.
    pub fn new(source: &'static str, error: Error) -> Self {
        Self { source, error }
    }
}
