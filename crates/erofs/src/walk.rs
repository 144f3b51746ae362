// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A depth-first walk through the directories of a tree.

use crate::tree::{Child, Pending, REPLACED, ROOT, Tree};

/// A walk that visits each directory after its parent.
#[derive(Debug)]
pub(crate) struct Walk {
    /// Parents with their children, in order.
    children: Vec<Child>,
    todo: Vec<Pending>,
    path: Vec<u8>,
}

impl Walk {
    /// Starts a walk. The replaced directories of the tree must be marked.
    pub(crate) fn new(tree: &Tree) -> Self {
        let directories = tree.inodes.iter().zip(ROOT..).skip(1);
        let directories =
            directories.filter(|(inode, _)| inode.is_directory() && !inode.has(REPLACED));
        let mut children: Vec<_> = directories
            .map(|(inode, number)| (inode.place, number))
            .collect();
        children.sort_unstable();
        Self {
            children,
            todo: vec![(ROOT, 0)],
            path: Vec::new(),
        }
    }

    /// Returns the next directory.
    pub(crate) fn next(&mut self, tree: &Tree) -> Option<u32> {
        let (number, length) = self.todo.pop()?;
        self.path.truncate(length);
        let name = tree.directory_name(number);
        if length > 0 {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        let first = self
            .children
            .partition_point(|(parent, _)| *parent < number);
        let children = self.children.get(first..).unwrap_or_default();
        let children = children.iter().take_while(|(parent, _)| *parent == number);
        self.todo
            .extend(children.map(|(_, child)| (*child, self.path.len())));
        Some(number)
    }

    /// Returns the path of the last directory.
    pub(crate) fn path(&self) -> &[u8] {
        &self.path
    }
}
