// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The files that are written to nodes.

use std::path::{Path, PathBuf};

/// The place of the program, which the unit starts.
pub(super) const PROGRAM: &str = "/usr/local/bin/resnap";

/// The directory of units.
pub(super) const UNITS: &str = "/etc/systemd/system";

/// Returns a path below `/run` by that name: `/var/run` is a link to it.
pub(super) fn in_run(path: &str) -> String {
    match path.strip_prefix("/var/run/") {
        Some(rest) => format!("/run/{rest}"),
        None => path.to_owned(),
    }
}

/// A file of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeFile {
    pub(super) path: PathBuf,
    pub(super) bytes: Vec<u8>,
    pub(super) mode: u32,
    /// Whether its text was made for this node, and is shown.
    pub(super) is_own_text: bool,
}

impl NodeFile {
    /// Returns a file of this repository.
    pub(super) fn embedded(path: &str, text: &str) -> Self {
        Self {
            path: PathBuf::from(path),
            bytes: text.into(),
            mode: 0o644,
            is_own_text: false,
        }
    }

    /// Returns a file with a text for this node.
    pub(super) fn generated(path: &Path, text: String) -> Self {
        Self {
            path: path.to_owned(),
            bytes: text.into(),
            mode: 0o644,
            is_own_text: true,
        }
    }

    /// Returns the text. A program has none.
    pub(super) fn text(&self) -> Option<&str> {
        let text = str::from_utf8(&self.bytes).ok();
        text.filter(|_| self.path != Path::new(PROGRAM))
    }

    /// Returns the program itself.
    pub(super) fn program(bytes: Vec<u8>) -> Self {
        Self {
            path: PathBuf::from(PROGRAM),
            bytes,
            mode: 0o755,
            is_own_text: false,
        }
    }
}
