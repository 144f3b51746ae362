// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The error of parsing.

use thiserror::Error;

/// Why a platform specifier was refused; each variant holds the specifier.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ParseError {
    /// It contains `*`, which the grammar keeps for later.
    #[error("platform {0:?}: wildcards are not supported")]
    Wildcard(String),
    /// Its first component is not `os[(version[+feature]...)]`.
    #[error("platform {0:?}: operating system is not of the form os[(version[+feature]...)]")]
    OperatingSystem(String),
    /// Version or a feature does not percent-decode to UTF-8.
    #[error("platform {0:?}: version or feature is not valid percent-encoded text")]
    Encoding(String),
    /// Architecture or variant is empty or has a character other than letters,
    /// digits, `_`, `.` and `-`.
    #[error("platform {0:?}: architecture and variant take letters, digits, '_', '.' and '-' only")]
    Component(String),
    /// It has a component after the variant.
    #[error("platform {0:?}: more components than os/architecture/variant")]
    TooManyComponents(String),
    /// It is one word, and that is neither a known operating system nor a
    /// known architecture.
    #[error("platform {0:?}: unknown operating system or architecture")]
    Unknown(String),
}
