// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Adds the entries of a layer to a tree.

use resnap_layer::path::split;
use resnap_layer::{Entry, EntryKind};

use crate::error::Fault;
use crate::format::{device, mode};
use crate::lookup;
use crate::tree::{
    ABSENT, DEFAULT_ACL, DataPlace, IN_TAR, Inode, OPAQUE, ROOT, STATED, Tree, permissions,
};
use crate::xattr::has_default_acl;

/// Adds an entry of the layer, whose data, if it has some, is at `data`.
pub(crate) fn add(tree: &mut Tree, entry: &Entry, data: DataPlace) -> Result<(), Fault> {
    if let EntryKind::Opaque = entry.kind {
        let directory = lookup::directory(tree, &entry.path)?;
        let is_lowest = tree.is_lowest;
        if let Some(inode) = tree.inode_mut(directory)
            && !is_lowest
        {
            inode.flags |= OPAQUE;
        }
        return Ok(());
    }
    if entry.path.is_empty() {
        return restate(tree, ROOT, entry);
    }
    let (parents, name) = split(&entry.path);
    let directory = lookup::directory(tree, parents)?;
    let index = tree.find(directory, name);
    let old = index.and_then(|index| tree.inode_of(index));
    match (&entry.kind, index, old) {
        (EntryKind::Directory, _, Some(old))
            if tree.inode(old).is_some_and(Inode::is_directory) =>
        {
            return restate(tree, old, entry);
        }
        (EntryKind::Whiteout, None, _) if tree.is_lowest => return Ok(()),
        (EntryKind::Whiteout, Some(_), _) if tree.is_lowest => {}
        // A whiteout hides lower layers, not entries of its own layer.
        (EntryKind::Whiteout, Some(index), _) => {
            tree.delete_lower(index);
            return Ok(());
        }
        (EntryKind::Hardlink(target), ..) => {
            return link(tree, (directory, name), target, index, entry);
        }
        _ => {}
    }
    if !matches!(entry.kind, EntryKind::Symlink(_) | EntryKind::Whiteout) {
        tree.check_default_acl(directory)?;
    }
    let inode = inode(tree, entry, data)?;
    let is_directory = inode.is_directory();
    let inode = tree.add_inode(inode)?;
    tree.bind(directory, name, inode)?;
    match entry.kind {
        EntryKind::Whiteout => {}
        _ if is_directory => tree.mark_content(inode),
        _ => tree.mark_content(directory),
    }
    Ok(())
}

/// Returns a new inode for an entry.
fn inode(tree: &mut Tree, entry: &Entry, data: DataPlace) -> Result<Inode, Fault> {
    let metadata = &entry.metadata;
    let (DataPlace::Image(block) | DataPlace::Tar(block)) = data;
    let at = |major, minor| device(major, minor).ok_or(Fault::Device { major, minor });
    let (file_type, size, place) = match &entry.kind {
        EntryKind::File(file) => (mode::FILE, file.size, block),
        EntryKind::Symlink(target) => (mode::SYMLINK, target.len() as u64, tree.store(target)?),
        EntryKind::Character { major, minor } => (mode::CHARACTER, 0, at(*major, *minor)?),
        EntryKind::Block { major, minor } => (mode::BLOCK, 0, at(*major, *minor)?),
        EntryKind::Fifo => (mode::FIFO, 0, 0),
        EntryKind::Whiteout => (mode::CHARACTER, 0, 0),
        EntryKind::Directory | EntryKind::Opaque | EntryKind::Hardlink(_) => {
            (mode::DIRECTORY, 0, 0)
        }
    };
    let mode = file_type
        | match &entry.kind {
            EntryKind::Whiteout => 0,
            // Linux knows no other mode for symbolic links.
            EntryKind::Symlink(_) => 0o777,
            _ => permissions(metadata.mode),
        };
    let xattrs = match &entry.kind {
        EntryKind::Whiteout => 0,
        _ => tree
            .xattrs
            .encode(&metadata.xattrs, mode, &mut tree.budget)?,
    };
    Ok(Inode {
        size,
        mtime: metadata.mtime,
        uid: metadata.uid,
        gid: metadata.gid,
        place,
        xattrs,
        links: 0,
        node: 0,
        mode,
        flags: match entry.kind {
            EntryKind::Whiteout if tree.is_lowest => ABSENT,
            EntryKind::Directory if has_default_acl(&metadata.xattrs) => STATED | DEFAULT_ACL,
            EntryKind::File(_) if matches!(data, DataPlace::Tar(_)) => STATED | IN_TAR,
            _ => STATED,
        },
    })
}

/// Gives a directory the metadata of a later entry.
fn restate(tree: &mut Tree, number: u32, entry: &Entry) -> Result<(), Fault> {
    let metadata = &entry.metadata;
    let mode = mode::DIRECTORY | permissions(metadata.mode);
    let xattrs = tree
        .xattrs
        .encode(&metadata.xattrs, mode, &mut tree.budget)?;
    if let Some(inode) = tree.inode_mut(number) {
        inode.mode = mode;
        (inode.uid, inode.gid) = (metadata.uid, metadata.gid);
        inode.mtime = metadata.mtime;
        inode.xattrs = xattrs;
        inode.flags |= STATED;
        if has_default_acl(&metadata.xattrs) {
            inode.flags |= DEFAULT_ACL;
        }
    }
    tree.mark_content(number);
    Ok(())
}

/// Gives an inode another name in a directory, and the metadata of this entry. The index `replaced` of
/// that name counts as absent for `target`.
fn link(
    tree: &mut Tree,
    (directory, name): (u32, &[u8]),
    target: &[u8],
    replaced: Option<usize>,
    entry: &Entry,
) -> Result<(), Fault> {
    let missing = || Fault::NoTarget(target.to_vec());
    if target.is_empty() {
        return Err(Fault::DirectoryTarget(target.to_vec()));
    }
    let index = lookup::name(tree, target, replaced)?;
    let number = index
        .and_then(|index| tree.inode_of(index))
        .ok_or_else(missing)?;
    let inode = tree.inode(number).ok_or_else(missing)?;
    if inode.is_directory() {
        return Err(Fault::DirectoryTarget(target.to_vec()));
    }
    if tree.is_whiteout(inode) {
        return Err(missing());
    }
    if index == replaced {
        // The entry is a link to itself.
        return Ok(());
    }
    let metadata = &entry.metadata;
    let mode = match inode.file_type() {
        mode::SYMLINK => inode.mode,
        kind => kind | permissions(metadata.mode),
    };
    let before = inode.xattrs;
    let xattrs = tree
        .xattrs
        .change(before, &metadata.xattrs, mode, &mut tree.budget)?;
    if let Some(inode) = tree.inode_mut(number) {
        inode.mode = mode;
        (inode.uid, inode.gid) = (metadata.uid, metadata.gid);
        inode.mtime = metadata.mtime;
        inode.xattrs = xattrs;
    }
    tree.bind(directory, name, number)?;
    tree.mark_content(directory);
    Ok(())
}
