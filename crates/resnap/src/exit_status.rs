// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Exit codes.

/// The exit code of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum ExitStatus {
    /// The work is done, or the image is ready.
    Done = 0,
    /// `check --snapshotter` found an image that is not ready, `verify` a layer that is wrong, or `doctor` or `install`
    /// something to do.
    Negative = 1,
    /// An error occurred and was reported.
    Failed = 2,
    /// A signal stopped the command.
    Cancelled = 130,
}
