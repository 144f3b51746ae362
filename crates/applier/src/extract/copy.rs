// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers in place, in a full copy of those below.

use std::os::fd::OwnedFd;

use resnap_layer::way::join;
use rustix::fs::Dir;

use super::Extraction;
use crate::error::{Doing as _, Fault};

impl Extraction {
    /// Removes all in a copy's directory that this layer did not write. Nothing of it comes again, so
    /// each directory is looked through once.
    pub(super) fn keep_ours(&mut self, path: &[u8]) -> Result<(), Fault> {
        let mut todo = vec![path.to_vec()];
        while let Some(path) = todo.pop() {
            let fd = self.open(&path).doing("open it")?;
            self.clear_foreign(&fd, &path, &mut todo)?;
            if let Some(directory) = self.records.get_mut(&path) {
                directory.opaque = true;
            }
        }
        Ok(())
    }

    /// Does so for one directory; `todo` gets those in it that have something of this layer.
    fn clear_foreign(
        &mut self,
        fd: &OwnedFd,
        path: &[u8],
        todo: &mut Vec<Vec<u8>>,
    ) -> Result<(), Fault> {
        for entry in Dir::read_from(fd).doing("list it")? {
            let entry = entry.doing("list it")?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let path = join(path, name);
            if !self.is_ours(&path) {
                self.clear(fd, name, &path)?;
                continue;
            }
            if self.records.is_written_to(&path) {
                self.note(&path)?;
            }
            if self.records.get(&path).is_some() && !self.records.is_opaque(&path) {
                todo.push(path);
            }
        }
        Ok(())
    }

    /// Whether this layer wrote it, or something in it.
    pub(super) fn is_ours(&self, path: &[u8]) -> bool {
        self.records.is_written(path) || self.records.is_written_to(path)
    }
}
