// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Mounts as a snapshotter answers them.

use serde::Serialize;

/// One mount of a snapshot (containerd `api/types/mount.proto`). resnap passes mounts on to the
/// differ and never mounts them: some need containerd's mount manager.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Mount {
    /// The file system type, or a mount manager's (`format/…`, `mkfs/…`).
    pub kind: String,
    /// The source: a device, file or directory.
    pub source: String,
    /// The target below the mount point; usually empty.
    pub target: String,
    /// Options as mount(8) takes them, `X-containerd.*` among them.
    pub options: Vec<String>,
}

impl Mount {
    /// Whether the mount is read-only. If the last mount of a Prepare is, the layer is *staged*:
    /// its content is there and only Commit is left (containerd 2.4 `core/unpack/unpacker.go`,
    /// `isStaged`).
    pub fn is_read_only(&self) -> bool {
        self.options.iter().any(|option| option == "ro")
    }
}
