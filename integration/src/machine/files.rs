// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The files of a machine that an installation could leave.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Directories whose files are compared.
const COMPARED: [&str; 4] = ["/etc", "/usr/local", "/usr/lib/systemd", "/var/lib"];

/// Directories of daemons that change by themselves.
const SKIPPED: [&str; 2] = ["/var/lib/containerd", "/var/lib/systemd"];

/// Files by path, with their modes, owners and contents; links with their targets.
pub type Files = BTreeMap<PathBuf, (u32, [u32; 2], Vec<u8>)>;

/// Returns the files and directories of the machine whose root directory is here.
pub(super) fn read(root: &Path) -> Result<Files> {
    let mut files = Files::new();
    for directory in COMPARED {
        add(root, Path::new(directory), &mut files)?;
    }
    Ok(files)
}

fn add(root: &Path, path: &Path, files: &mut Files) -> Result<()> {
    if SKIPPED.iter().any(|skipped| path == Path::new(skipped)) {
        return Ok(());
    }
    let here = root.join(path.strip_prefix("/").unwrap_or(path));
    let read = || {
        let metadata = fs::symlink_metadata(&here)?;
        let content = if metadata.is_symlink() {
            fs::read_link(&here)?.into_os_string().into_encoded_bytes()
        } else if metadata.is_file() {
            fs::read(&here)?
        } else {
            Vec::new()
        };
        std::io::Result::Ok((metadata, content))
    };
    let (metadata, content) = read().with_context(|| format!("read {here:?}"))?;
    let is_directory = metadata.is_dir();
    let owner = [metadata.uid(), metadata.gid()];
    files.insert(path.to_owned(), (metadata.mode(), owner, content));
    if is_directory {
        for entry in fs::read_dir(&here).with_context(|| format!("list {here:?}"))? {
            add(root, &path.join(entry?.file_name()), files)?;
        }
    }
    Ok(())
}
