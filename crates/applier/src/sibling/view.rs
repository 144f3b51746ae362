// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The layers that the mounts of a view name.
//!
//! | snapshotter | mounts of a view |
//! |---|---|
//! | overlayfs | an overlay of `snapshots/N/fs`, the topmost first; a bind for one layer |
//! | erofs of containerd 2.1 | the same, with each layer's image mounted at `fs`, beside `layer.erofs` |
//! | erofs of containerd 2.2 and later | an `erofs` mount of each `snapshots/N/layer.erofs`, the topmost first, below the overlay; one that merges layers has them as `device=`, the base first |

use std::path::PathBuf;

use resnap_core::Mount;

use crate::copy_fault::{CopyFault, refuse};
use crate::erofs::NAME;

/// Options with which a layer's directory does not have all that the mount shows, or has it otherwise.
const REFUSED: [&str; 9] = [
    "userxattr",
    "redirect_dir=on",
    "metacopy=on",
    "uidmap=",
    "gidmap=",
    "upperdir=",
    "workdir=",
    "lowerdir+=",
    "datadir+=",
];

/// Returns the directories of a view of overlayfs, the base first.
pub(super) fn directories(mounts: &[Mount]) -> Result<Vec<PathBuf>, CopyFault> {
    let [mount] = mounts else {
        return refuse(format!("the view has {} mounts", mounts.len()));
    };
    let options = mount.options.iter().flat_map(|options| options.split(','));
    let options: Vec<&str> = options.collect();
    let is_refused = |option: &&&str| {
        let matches = |refused: &&str| match refused.ends_with('=') {
            true => option.starts_with(*refused),
            false => **option == *refused,
        };
        REFUSED.iter().any(matches)
    };
    if let Some(option) = options.iter().find(is_refused) {
        return refuse(format!("the view has the mount option {option:?}"));
    }
    match mount.kind.as_str() {
        "bind" => Ok(vec![PathBuf::from(&mount.source)]),
        "overlay" => {
            let mut lower = options
                .iter()
                .filter_map(|option| option.strip_prefix("lowerdir="));
            match (lower.next(), lower.next()) {
                (Some(lower), None) if !lower.contains('\\') => {
                    Ok(lower.split(':').rev().map(PathBuf::from).collect())
                }
                _ => refuse("the view has no list of lower directories that can be read"),
            }
        }
        kind => refuse(format!("the view has a mount of type {kind:?}")),
    }
}

/// Returns the images of a view of erofs, the base first.
pub(super) fn images(mounts: &[Mount]) -> Result<Vec<PathBuf>, CopyFault> {
    let is_image = |mount: &&Mount| mount.kind == "erofs";
    let count = mounts.iter().take_while(is_image).count();
    let (images, rest) = mounts.split_at(count);
    match rest {
        // The image lies beside the directory that it is mounted at.
        [_] if images.is_empty() => {
            let directories = directories(rest)?;
            let beside = |path: PathBuf| path.with_file_name(NAME);
            return Ok(directories.into_iter().map(beside).collect());
        }
        [] => {}
        [mount] if mount.kind.starts_with("format/") => {}
        [mount, ..] => return refuse(format!("the view has a mount of type {:?}", mount.kind)),
    }
    let mut paths = Vec::new();
    for mount in images.iter().rev() {
        let options = mount.options.iter().flat_map(|options| options.split(','));
        let mut devices = Vec::new();
        for option in options {
            match option.strip_prefix("device=") {
                Some(device) => devices.push(PathBuf::from(device)),
                None if matches!(option, "ro" | "loop") || Mount::is_verity_option(option) => {}
                None => return refuse(format!("the view has the mount option {option:?}")),
            }
        }
        match devices.is_empty() {
            true => paths.push(PathBuf::from(&mount.source)),
            false => paths.append(&mut devices),
        }
    }
    Ok(paths)
}
