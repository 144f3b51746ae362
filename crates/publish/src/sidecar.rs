// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The files with the root hashes of images, beside them.

use std::fs;
use std::path::{Path, PathBuf};

use resnap_core::{Error, Kind, Result};
use resnap_verity::Sidecar;

use crate::fault::IoContext as _;
use crate::tree::Tree;

/// Returns the path of the sidecar of an image, as containerd 2.3 names it (`internal/dmverity`).
pub(crate) fn sidecar_of(image: &Path) -> PathBuf {
    let mut path = image.as_os_str().to_owned();
    path.push(".dmverity");
    path.into()
}

/// Writes the sidecar of an image.
pub(crate) fn write_sidecar(tree: &Tree, image: &Path) -> Result<()> {
    let path = sidecar_of(image);
    let sidecar = Sidecar::new(tree.appended.root_hash, tree.appended.hash_offset);
    let encoded = sidecar.encode().map_err(|error| {
        Error::new(Kind::Internal, "write", path.display().to_string()).with_source(error)
    })?;
    fs::write(&path, encoded).during("write", &path)
}

/// Removes a file, if there is one.
pub(crate) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.during("remove", path),
    }
}
