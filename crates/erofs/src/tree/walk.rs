// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The directories of a tree, depth first.

use super::{DEAD, ROOT, Tree};

/// Bytes that each directory takes.
pub(super) const DIRECTORY: u64 = (size_of::<(u32, u32)>() + size_of::<(u32, usize)>()) as u64;

/// Goes to each live directory, after the one that it is in.
#[derive(Debug)]
pub(crate) struct Walk {
    /// Parents with their children, in order.
    children: Vec<(u32, u32)>,
    /// Directories to go to, with the length of their parents' paths.
    todo: Vec<(u32, usize)>,
    path: Vec<u8>,
}

impl Walk {
    /// Through a tree whose dead directories are marked.
    pub(crate) fn new(tree: &Tree) -> Self {
        let directories = tree.inodes.iter().zip(ROOT..).skip(1);
        let directories = directories.filter(|(inode, _)| inode.is_directory() && !inode.has(DEAD));
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

    /// The next directory of the tree.
    pub(crate) fn next(&mut self, tree: &Tree) -> Option<u32> {
        let (number, length) = self.todo.pop()?;
        self.path.truncate(length);
        if number != ROOT
            && let Some(inode) = tree.inode(number)
            && let Some(name) = tree
                .names
                .get(usize::try_from(inode.size).unwrap_or(usize::MAX))
        {
            if length > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(tree.name(name));
        }
        let first = self
            .children
            .partition_point(|(parent, _)| *parent < number);
        let children = self.children.get(first..).unwrap_or_default();
        let children = children.iter().take_while(|(parent, _)| *parent == number);
        self.todo
            .extend(children.map(|(_, child)| (*child, self.path.len())));
        Some(number)
    }

    /// Its path.
    pub(crate) fn path(&self) -> &[u8] {
        &self.path
    }
}
