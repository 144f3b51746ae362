// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The right to write layers.

use std::io;
use std::path::Path;

use crate::erofs;
use crate::target::Target;
use crate::user_namespace::is_user_namespace;
use crate::xattr::XattrNamespace;

/// Checks that this process may write layers below the root of a snapshotter, by trying all that it takes. Blocks.
///
/// # Errors
///
/// The first operation that it may not do.
pub fn probe(snapshotter: &str, root: &Path) -> io::Result<()> {
    let directory = root.join("snapshots").join(format!(
        "{}.{}",
        std::process::id(),
        snapshotter.replace(['.', '/'], "-")
    ));
    let target = match snapshotter {
        erofs::SNAPSHOTTER => Target::Image {
            directory,
            parents: Vec::new(),
            is_lowest: true,
        },
        "native" => Target::Copy { directory },
        _ => Target::Upper {
            directory: directory.join("fs"),
            lower: Vec::new(),
            is_lowest: true,
        },
    };
    target.probe(match is_user_namespace() {
        true => XattrNamespace::User,
        false => XattrNamespace::Trusted,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_that_does_not_exist_cannot_be_written() {
        let dir = tempfile::TempDir::new().unwrap();
        let tried = |name| probe(name, dir.path()).map_err(|error| error.kind());
        assert_eq!(tried("erofs"), Err(io::ErrorKind::NotFound));
        let snapshots = dir.path().join("snapshots");
        std::fs::create_dir(&snapshots).unwrap();
        assert_eq!(tried("erofs"), Ok(()));
        assert!(snapshots.read_dir().unwrap().next().is_none());
    }
}
