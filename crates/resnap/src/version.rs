// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Versions of containerd in arguments.

use std::fmt;
use std::str::FromStr;

/// A major and a minor version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MajorMinor(pub(crate) u32, pub(crate) u32);

impl fmt::Display for MajorMinor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl FromStr for MajorMinor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.trim_start_matches('v').split_once('.');
        let parsed = parts.and_then(|(major, minor)| {
            // A patch version does not matter.
            let minor = minor.split('.').next()?;
            Some(Self(major.parse().ok()?, minor.parse().ok()?))
        });
        parsed.ok_or_else(|| format!("{text:?} is no version: want MAJOR.MINOR, such as 2.3"))
    }
}
