// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The record of an installation. It is written before the first file, so that an installation that was interrupted
//! can be completed or removed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::content::Content;
use super::files::NodeFile;
use super::host::Host;

/// The path of the record.
pub(super) const PATH: &str = "/var/lib/resnap/install.json";

/// The files and directories of an installation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    files: BTreeSet<PathBuf>,
    /// Those that were not there before.
    directories: BTreeSet<PathBuf>,
    /// The units that were not enabled before.
    units: BTreeSet<String>,
}

impl Record {
    /// Loads the record of the node. Returns `None` if nothing is installed.
    pub(super) fn load(host: &Host) -> Result<Option<Self>> {
        let bytes = host.read(PATH.as_ref())?;
        let record = bytes.map(|bytes| serde_json::from_slice(&bytes));
        record
            .transpose()
            .with_context(|| format!("the record of the installation, {PATH:?}, is damaged"))
    }

    /// Returns whether the file belongs to the installation.
    pub(super) fn has(&self, path: impl AsRef<Path>) -> bool {
        self.files.contains(path.as_ref())
    }

    /// Returns the files of the installation.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(PathBuf::as_path)
    }

    /// Returns whether the unit was enabled by the installation.
    pub(super) fn has_enabled(&self, unit: &str) -> bool {
        self.units.contains(unit)
    }

    /// Returns the record with these units, which are to be enabled.
    pub(super) fn with_units(mut self, units: &[&str]) -> Self {
        self.units.extend(units.iter().map(|&unit| unit.to_owned()));
        self
    }

    /// Returns the record with these files, and with the directories that they need. A file that is there with the
    /// same content is the operator's, and keeps its mode.
    ///
    /// # Errors
    /// A file is there with another content, and does not belong to the installation.
    pub(super) fn with<'a>(
        mut self,
        host: &Host,
        files: impl Iterator<Item = &'a mut NodeFile>,
    ) -> Result<Self> {
        self.add_directories(host, PATH.as_ref());
        for file in files {
            let path = &file.path;
            let there = match self.has(path) {
                true => None,
                false => Content::read(&host.at(path))?,
            };
            let Some(there) = there else {
                if !self.has(path) && host.at(path).is_symlink() {
                    bail!("{path:?} is a link to a file that is not there: move it away first");
                }
                self.add_directories(host, path);
                self.files.insert(path.clone());
                continue;
            };
            if there.bytes != file.bytes {
                bail!(
                    "{path:?} is there already, and not from `resnap install`: move it away first"
                );
            }
            if file.mode & !there.mode & 0o100 != 0 {
                bail!(
                    "{path:?} is there already and is not executable: `chmod 755` it, or move it away first"
                );
            }
            file.mode = there.mode;
        }
        Ok(self)
    }

    fn add_directories(&mut self, host: &Host, file: &Path) {
        let missing = file
            .ancestors()
            .skip(1)
            .filter(|dir| !host.at(dir).exists());
        self.directories.extend(missing.map(Path::to_owned));
    }

    /// Returns the file of the record.
    pub(super) fn file(&self) -> Result<NodeFile> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        Ok(NodeFile::embedded(PATH, &text))
    }

    /// Removes the directories that were made for the files and are empty.
    pub(super) fn remove_directories(&self, host: &Host) {
        // Those below others come first.
        for directory in self.directories.iter().rev() {
            // Somebody else uses it now.
            let _ = fs::remove_dir(host.at(directory));
        }
    }
}
