// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Path lookups in a tree. Symbolic links of the layer are followed inside the root.

use resnap_layer::path::{depth, split};
use resnap_layer::resolve::{self, Found, Resolved};

use crate::error::Fault;
use crate::format::mode;
use crate::tree::{Inode, ROOT, Tree};

/// Returns the directory at `path`. It and its parents are created if they do not exist.
pub(crate) fn directory(tree: &mut Tree, path: &[u8]) -> Result<u32, Fault> {
    if path.is_empty() {
        return Ok(ROOT);
    }
    if let Some((recent, inode)) = &tree.recent
        && recent == path
    {
        return Ok(*inode);
    }
    tree.lookups.take(depth(path))?;
    let found = match existing_directory(tree, path) {
        Some(inode) => inode,
        None => {
            let resolved = resolve(tree, path, None)?;
            let mut names: Vec<_> = resolved.path.rsplit(|byte| *byte == b'/').collect();
            names.truncate(resolved.missing);
            let names = names.into_iter().rev();
            names
                .into_iter()
                .try_fold(resolved.directory, |directory, name| {
                    make_directory(tree, directory, name)
                })?
        }
    };
    tree.recent = Some((path.to_vec(), found));
    Ok(found)
}

/// Returns the index of the name at `path`. The last component is not followed, and the name `without`
/// counts as absent.
pub(crate) fn name(
    tree: &mut Tree,
    path: &[u8],
    without: Option<usize>,
) -> Result<Option<usize>, Fault> {
    let (parents, name) = split(path);
    let resolved = resolve(tree, parents, without)?;
    Ok(match resolved.missing {
        0 => tree.find(resolved.directory, name),
        _ => None,
    })
}

/// Returns the directory at `path` if all components are directories.
fn existing_directory(tree: &Tree, path: &[u8]) -> Option<u32> {
    let mut names = path.split(|byte| *byte == b'/');
    names.try_fold(ROOT, |directory, name| {
        let found = tree.lookup(directory, name)?;
        tree.inode(found)
            .filter(|inode| inode.is_directory())
            .map(|_| found)
    })
}

/// Creates a directory that the layer does not state, where nothing or a whiteout is.
fn make_directory(tree: &mut Tree, parent: u32, name: &[u8]) -> Result<u32, Fault> {
    tree.check_default_acl(parent)?;
    let inode = tree.add_inode(Inode::implicit(parent))?;
    tree.bind(parent, name, inode)?;
    Ok(inode)
}

/// Resolves `path`. The name `without` counts as absent.
fn resolve(tree: &mut Tree, path: &[u8], without: Option<usize>) -> Result<Resolved<u32>, Fault> {
    let mut lookups = tree.lookups;
    let resolved = resolve::resolve(&mut WithoutName { tree, without }, path, &mut lookups);
    tree.lookups = lookups;
    resolved
}

/// A tree in which one of the names counts as absent.
struct WithoutName<'a> {
    tree: &'a Tree,
    without: Option<usize>,
}

impl resolve::Tree for WithoutName<'_> {
    type Directory = u32;
    type Error = Fault;

    fn root(&mut self) -> Result<u32, Fault> {
        Ok(ROOT)
    }

    fn look_up(&mut self, directory: &u32, path: &[u8], name: &[u8]) -> Result<Found<u32>, Fault> {
        let tree = self.tree;
        let found = tree.find(*directory, name);
        let found = found.filter(|index| Some(*index) != self.without);
        let found = found.and_then(|index| tree.inode_of(index));
        Ok(
            match found.and_then(|number| Some((number, tree.inode(number)?))) {
                None => Found::Nothing,
                Some((number, inode)) if inode.is_directory() => Found::Directory(number),
                Some((_, inode)) if tree.is_whiteout(inode) => Found::Nothing,
                Some((_, inode)) if inode.file_type() == mode::SYMLINK => {
                    Found::Link(tree.target(inode).to_vec())
                }
                Some(_) => return Err(Fault::NotADirectory(path.to_vec())),
            },
        )
    }

    fn parent(&mut self, directory: &u32) -> Result<u32, Fault> {
        let inode = self.tree.inode(*directory);
        Ok(inode.map_or(ROOT, |inode| inode.place))
    }
}
