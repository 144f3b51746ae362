// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The directories of the suite.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Returns the directory of all files of the suite: `integration/` in cargo's target
/// directory.
pub fn target_dir() -> PathBuf {
    let workspace = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let dir = workspace.join(target).join("integration");
    // Removes the `..`, so that the paths in logs and mount tables compare.
    normal(&dir)
}

fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                out.pop();
            }
            std::path::Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

/// Held until dropped; keeps two processes from filling one folder at once.
pub(crate) fn lock(dir: &Path) -> Result<File> {
    fs::create_dir_all(dir).with_context(|| format!("create {dir:?}"))?;
    let path = dir.join(".lock");
    let file = File::create(&path).with_context(|| format!("create {path:?}"))?;
    file.lock().with_context(|| format!("lock {path:?}"))?;
    Ok(file)
}
