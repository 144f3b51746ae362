// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The way to a path, inside the root.

use resnap_layer::way::{self, End, Found, split};

use super::{Inode, ROOT, Tree};
use crate::error::Fault;
use crate::format::mode;

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
        self.ways.take(way::names(path))?;
        let found = match self.walk(path) {
            Some(inode) => inode,
            None => {
                let end = self.go(path, None)?;
                let mut names: Vec<_> = end.path.rsplit(|byte| *byte == b'/').collect();
                names.truncate(end.missing);
                let names = names.into_iter().rev();
                names
                    .into_iter()
                    .try_fold(end.directory, |directory, name| {
                        self.make_directory(directory, name)
                    })?
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

    /// The index of the name at `path`, which is not followed, and the way to which does not go by the
    /// name `without`.
    pub(crate) fn entry(
        &mut self,
        path: &[u8],
        without: Option<usize>,
    ) -> Result<Option<usize>, Fault> {
        let (parents, name) = split(path);
        let end = self.go(parents, without)?;
        Ok(match end.missing {
            0 => self.find(end.directory, name),
            _ => None,
        })
    }

    /// A new directory that the layer does not state, in the place of nothing or of a whiteout.
    pub(crate) fn make_directory(&mut self, parent: u32, name: &[u8]) -> Result<u32, Fault> {
        self.inherit(parent)?;
        let inode = self.add_inode(Inode::implicit(parent))?;
        self.bind(parent, name, inode)?;
        Ok(inode)
    }

    /// Goes to `path` by all symbolic links, and not by the name `without`.
    fn go(&mut self, path: &[u8], without: Option<usize>) -> Result<End<u32>, Fault> {
        let mut ways = self.ways;
        let end = way::go(
            &mut Looked {
                tree: self,
                without,
            },
            path,
            &mut ways,
        );
        self.ways = ways;
        end
    }
}

/// A tree without one of its names.
struct Looked<'a> {
    tree: &'a Tree,
    without: Option<usize>,
}

impl way::Tree for Looked<'_> {
    type Directory = u32;
    type Error = Fault;

    fn root(&mut self) -> Result<u32, Fault> {
        Ok(ROOT)
    }

    fn look(&mut self, directory: &u32, path: &[u8], name: &[u8]) -> Result<Found<u32>, Fault> {
        let tree = self.tree;
        let found = tree.find(*directory, name);
        let found = found.filter(|index| Some(*index) != self.without);
        let found = found.and_then(|index| tree.named(index));
        Ok(
            match found.and_then(|number| Some((number, tree.inode(number)?))) {
                None => Found::Nothing,
                Some((number, inode)) if inode.is_directory() => Found::Directory(number),
                Some((_, inode)) if tree.is_nothing(inode) => Found::Nothing,
                Some((_, inode)) if inode.file_type() == mode::SYMLINK => {
                    Found::Link(tree.target(inode).to_vec())
                }
                Some(_) => return Err(Fault::NotADirectory(path.to_vec())),
            },
        )
    }

    fn parent(&mut self, directory: &u32) -> Result<u32, Fault> {
        Ok(self
            .tree
            .inode(*directory)
            .map_or(ROOT, |inode| inode.place))
    }
}
