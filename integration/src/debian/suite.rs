// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The releases of Debian.

/// A release of Debian that packages are taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suite {
    /// Debian 12.
    Bookworm,
    /// Debian 13.
    Trixie,
    /// The future Debian 14. It changes, so versions are read, never assumed.
    Forky,
}

impl Suite {
    pub(super) const ALL: [Self; 3] = [Self::Bookworm, Self::Trixie, Self::Forky];

    /// Returns the name in a sources file and of the folder below `debs/`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Forky => "forky",
        }
    }
}
