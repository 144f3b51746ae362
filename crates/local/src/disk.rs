// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The disk space of a snapshot.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use resnap_core::Usage;

/// The size of the blocks that a file's size on disk is counted in.
const BLOCK: u64 = 512;

/// Returns the disk space of all files below a directory. Links are not followed.
pub(crate) fn usage(directory: &Path) -> io::Result<Usage> {
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    let mut next = vec![directory.to_owned()];
    while let Some(path) = next.pop() {
        let metadata = match fs::symlink_metadata(&path) {
            // A layer may have longer paths than there are below the root.
            Err(error) if error.kind() == io::ErrorKind::InvalidFilename => continue,
            metadata => metadata?,
        };
        if metadata.nlink() > 1 && !metadata.is_dir() && !linked.insert(metadata.ino()) {
            continue;
        }
        usage.bytes += metadata.blocks() * BLOCK;
        usage.inodes += 1;
        if metadata.is_dir() {
            for entry in fs::read_dir(&path)? {
                next.push(entry?.path());
            }
        }
    }
    Ok(usage)
}
