// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The forms that deletions take on disk.

/// The form that the deletions of a layer take on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WhiteoutMode {
    /// The upper directory of an overlay: devices 0:0, and attributes of directories.
    Upper,
    /// The lowest layer: nothing, because there is nothing to hide.
    Base,
    /// A full copy of the layers below: the deleted files are removed.
    Copy,
}
