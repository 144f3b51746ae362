// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The way to a path, inside the root.

use resnap_layer::way::{Step as Next, Way, split};

use super::{Inode, ROOT, Tree};
use crate::error::Fault;
use crate::format::mode;

/// A name on the way, and its directory where there is one.
type Step = (Vec<u8>, Option<u32>);

impl Tree {
    /// The directory at `path`, which is made if it is not there, with all its parents. Symbolic
    /// links of the layer are followed inside the root.
    pub(crate) fn directory(&mut self, path: &[u8]) -> Result<u32, Fault> {
        if path.is_empty() {
            return Ok(ROOT);
        }
        if let Some((recent, inode)) = &self.recent
            && recent == path
        {
            return Ok(*inode);
        }
        let found = match self.walk(path) {
            Some(inode) => inode,
            None => {
                let mut directory = ROOT;
                for (name, inode) in self.resolve(path, None)? {
                    directory = match inode {
                        Some(inode) => inode,
                        None => self.make_directory(directory, &name)?,
                    };
                }
                directory
            }
        };
        self.recent = Some((path.to_vec(), found));
        Ok(found)
    }

    /// The directory at `path`, if all of the way are directories.
    fn walk(&self, path: &[u8]) -> Option<u32> {
        let mut names = path.split(|byte| *byte == b'/');
        names.try_fold(ROOT, |directory, name| {
            let found = self.lookup(directory, name)?;
            self.inode(found)
                .filter(|inode| inode.is_directory())
                .map(|_| found)
        })
    }

    /// The inode at `path`, whose last name is not followed, and the way to which does not go by the
    /// name `without`.
    pub(crate) fn entry(&self, path: &[u8], without: Option<usize>) -> Result<Option<u32>, Fault> {
        let (parents, name) = split(path);
        let directory = match self.resolve(parents, without)?.last() {
            None => Some(ROOT),
            Some((_, inode)) => *inode,
        };
        Ok(directory.and_then(|directory| self.lookup(directory, name)))
    }

    /// A new directory that the layer does not state, in the place of nothing or of a whiteout.
    pub(crate) fn make_directory(&mut self, parent: u32, name: &[u8]) -> Result<u32, Fault> {
        let inode = self.add_inode(Inode::implicit(parent))?;
        self.bind(parent, name, inode)?;
        Ok(inode)
    }

    /// The names and directories on the way to `path` once all symbolic links are followed; without
    /// a directory where there is none yet, or only by the name `without`.
    fn resolve(&self, path: &[u8], without: Option<usize>) -> Result<Vec<Step>, Fault> {
        let mut done: Vec<Step> = Vec::new();
        let mut way = Way::to(path);
        while let Some(next) = way.step().map_err(|_| Fault::Links)? {
            let Next::Name(name) = next else {
                done.pop();
                continue;
            };
            let directory = done.last().map_or(Some(ROOT), |(_, inode)| *inode);
            let found = directory.and_then(|directory| self.find(directory, &name));
            let found = found.filter(|index| Some(*index) != without);
            let found = found.and_then(|index| self.named(index));
            match found.and_then(|number| Some((number, self.inode(number)?))) {
                None => done.push((name, None)),
                Some((number, inode)) if inode.is_directory() => done.push((name, Some(number))),
                Some((_, inode)) if inode.is_whiteout() => done.push((name, None)),
                Some((_, inode)) if inode.file_type() == mode::SYMLINK => {
                    if way.follow(self.target(inode)).map_err(|_| Fault::Links)? {
                        done.clear();
                    }
                }
                Some(_) => return Err(Fault::NotADirectory(path.to_vec())),
            }
        }
        // Linux takes no longer ones (`PATH_MAX`, with the NUL at the end).
        let length: usize = done.iter().map(|(name, _)| name.len() + 1).sum();
        if length > 4096 {
            return Err(Fault::limit(
                "bytes of a path once links are followed",
                4095,
            ));
        }
        Ok(done)
    }
}
