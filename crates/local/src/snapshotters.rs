// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The snapshotters of a store. They have the names of containerd's, whose files theirs have the form of.

/// Layers that are EROFS images.
pub(crate) const EROFS: &str = "erofs";

/// Layers that are directories.
pub(crate) const OVERLAYFS: &str = "overlayfs";

/// All snapshotters, ordered by name.
pub(crate) const ALL: [&str; 2] = [EROFS, OVERLAYFS];
