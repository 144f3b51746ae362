// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Mounts of snapshots.

use serde::Serialize;

/// The option of a mount whose image has a dm-verity tree; the path of its sidecar follows (containerd 2.3
/// `plugins/snapshots/erofs`).
const VERITY_OPTION: &str = "X-containerd.dmverity=";

/// A mount of a snapshot (containerd `api/types/mount.proto`). resnap passes mounts on to the differ and
/// never mounts them: some need containerd's mount manager.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Mount {
    /// The file system type, or a mount manager's (`format/…`, `mkfs/…`).
    pub kind: String,
    /// The source: a device, file or directory.
    pub source: String,
    /// The target below the mount point; usually empty.
    pub target: String,
    /// Options in the form of mount(8), including `X-containerd.*`.
    pub options: Vec<String>,
}

impl Mount {
    /// Returns whether an option says that the image has a dm-verity tree, by which it is mounted
    /// (containerd 2.3 and later).
    pub fn is_verity_option(option: &str) -> bool {
        option.starts_with(VERITY_OPTION)
    }

    /// Returns whether the mount is read-only, by its options or its type (containerd 2.4
    /// `core/mount/mount.go`, `ReadOnly`). If the last mount of a Prepare is read-only, the layer is
    /// *staged*: its content exists and only Commit is left (`core/unpack/unpacker.go`, `isStaged`).
    pub fn is_read_only(&self) -> bool {
        // The part before the last slash is for the mount manager.
        let kind = self.kind.rsplit('/').next().unwrap_or_default();
        let mut options = self.options.iter().flat_map(|options| options.split(','));
        match kind {
            "erofs" => true,
            "overlay" => {
                let options: Vec<&str> = options.collect();
                options.contains(&"ro")
                    || !options.iter().any(|option| option.starts_with("upperdir="))
            }
            _ => options.any(|option| option == "ro"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_only_by_options_or_by_type() {
        for (kind, options, read_only) in [
            ("bind", &["rbind", "ro"][..], true),
            ("bind", &["rbind", "rw"], false),
            ("erofs", &["loop"], true),
            ("ext4", &["rw,ro"], true),
            ("overlay", &["lowerdir=a:b"], true),
            ("overlay", &["lowerdir=a,upperdir=b", "workdir=c"], false),
            ("overlay", &["upperdir=b", "ro"], true),
            (
                "format/mkdir/overlay",
                &["upperdir={{ mount 0 }}/upper"],
                false,
            ),
            ("format/overlay", &["lowerdir={{ overlay 0 1 }}"], true),
        ] {
            let mount = Mount {
                kind: kind.to_owned(),
                options: options.iter().map(|&option| option.to_owned()).collect(),
                ..Mount::default()
            };
            assert_eq!(mount.is_read_only(), read_only, "{mount:?}");
        }
    }
}
