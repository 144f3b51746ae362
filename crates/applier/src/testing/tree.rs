// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Trees of layers, on disk and in images.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use resnap_erofs::{ErofsReader, Node, ReadAt};
use resnap_layer::path;

/// The attribute of directories with whiteouts. A directory keeps it when its last whiteout is replaced.
const ORIGIN: &str = "trusted.overlay.origin";

/// A file, directory or other inode at a path. Two whiteouts are always equal.
#[derive(Debug, PartialEq)]
pub(crate) enum Thing {
    Whiteout,
    Inode {
        mode: u32,
        owner: (u32, u32),
        mtime: (i64, u32),
        /// The number of names, and the first of them; `None` for a directory.
        links: Option<(u64, String)>,
        /// The data of a file, or the target of a link.
        content: Vec<u8>,
        device: u64,
        xattrs: Xattrs,
    },
}

type Xattrs = BTreeMap<String, Vec<u8>>;

pub(crate) type Tree = BTreeMap<String, Thing>;

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn join(parent: &str, name: &str) -> String {
    text(&path::join(parent.as_bytes(), name.as_bytes()))
}

/// Returns the first name of an inode. Must be called in the order of paths.
fn first(names: &mut BTreeMap<u64, String>, inode: u64, path: &str) -> String {
    names.entry(inode).or_insert(path.to_owned()).clone()
}

/// Removes the attribute for whiteouts from directories that have none.
fn unmark(tree: &mut Tree) {
    let whiteouts = tree.iter().filter(|(_, thing)| **thing == Thing::Whiteout);
    let marked: Vec<_> = whiteouts
        .map(|(path, _)| text(path::split(path.as_bytes()).0))
        .collect();
    for (path, thing) in tree {
        if let Thing::Inode { xattrs, .. } = thing
            && !marked.contains(path)
        {
            xattrs.remove(ORIGIN);
        }
    }
}

/// Returns the differences between two trees, by path.
pub(crate) fn differences<'a>(
    one: &'a Tree,
    other: &'a Tree,
) -> BTreeMap<&'a str, (Option<&'a Thing>, Option<&'a Thing>)> {
    let paths = one.keys().chain(other.keys());
    let both = paths.map(|path| (&path[..], (one.get(path), other.get(path))));
    both.filter(|(_, (one, other))| one != other).collect()
}

/// Returns the tree below a directory.
pub(crate) fn on_disk(root: &Path) -> Tree {
    let mut paths = vec![String::new()];
    let mut at = 0;
    while let Some(path) = paths.get(at).cloned() {
        at += 1;
        if root.join(&path).symlink_metadata().unwrap().is_dir() {
            let entries = fs::read_dir(root.join(&path)).unwrap();
            let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
            paths.extend(entries.map(|entry| join(&path, &name(entry.unwrap()))));
        }
    }
    paths.sort();
    let mut names = BTreeMap::new();
    let mut tree = Tree::new();
    for path in paths {
        let full = root.join(&path);
        let stat = full.symlink_metadata().unwrap();
        let links = (!stat.is_dir()).then(|| (stat.nlink(), first(&mut names, stat.ino(), &path)));
        let thing = match stat.file_type().is_char_device() && stat.rdev() == 0 {
            true => Thing::Whiteout,
            false => Thing::Inode {
                mode: stat.mode(),
                owner: (stat.uid(), stat.gid()),
                mtime: (stat.mtime(), stat.mtime_nsec() as u32),
                links,
                content: match (stat.is_file(), stat.is_symlink()) {
                    (true, _) => fs::read(&full).unwrap(),
                    (_, true) => fs::read_link(&full)
                        .unwrap()
                        .into_os_string()
                        .into_encoded_bytes(),
                    _ => Vec::new(),
                },
                device: stat.rdev(),
                xattrs: xattrs(&full).unwrap(),
            },
        };
        tree.insert(path, thing);
    }
    unmark(&mut tree);
    tree
}

/// Returns the extended attributes at a path.
fn xattrs(path: &Path) -> io::Result<Xattrs> {
    let mut buffer = [0; 4096];
    let size = rustix::fs::llistxattr(path, &mut buffer)?;
    let names = buffer[..size].split(|byte| *byte == 0);
    // The others belong to the host.
    let is_relevant = |name: &&[u8]| {
        !name.is_empty() && (!name.starts_with(b"security.") || *name == b"security.capability")
    };
    names
        .filter(is_relevant)
        .map(|name| {
            let mut value = [0; 4096];
            let size = rustix::fs::lgetxattr(path, name, &mut value)?;
            Ok((text(name), value[..size].to_vec()))
        })
        .collect()
}

/// Returns the tree of an image.
pub(crate) fn in_image<R: ReadAt>(image: &ErofsReader<R>) -> Tree {
    let mut nodes: BTreeMap<String, Node> = BTreeMap::new();
    let mut todo = vec![(String::new(), image.root().unwrap())];
    while let Some((path, node)) = todo.pop() {
        if node.is_directory() {
            for entry in image.entries(&node) {
                let entry = entry.unwrap();
                let name = String::from_utf8(entry.name).unwrap();
                todo.push((join(&path, &name), image.node(entry.id).unwrap()));
            }
        }
        nodes.insert(path, node);
    }
    let mut names = BTreeMap::new();
    let thing = |(path, node): (String, Node)| {
        let links = !node.is_directory();
        let links = links.then(|| (node.links.into(), first(&mut names, node.id, &path)));
        let has_content = matches!(node.mode & 0o170000, 0o100000 | 0o120000);
        let mut content = vec![0; if has_content { node.size as usize } else { 0 }];
        image.read(&node, 0, &mut content).unwrap();
        let xattrs = image.xattrs(&node).unwrap().into_iter();
        let thing = match node.is_whiteout() {
            true => Thing::Whiteout,
            false => Thing::Inode {
                mode: node.mode,
                owner: (node.uid, node.gid),
                mtime: (node.mtime.seconds, node.mtime.nanoseconds),
                links,
                content,
                device: node.device().unwrap_or(0).into(),
                xattrs: xattrs
                    .map(|xattr| (text(&xattr.name), xattr.value))
                    .collect(),
            },
        };
        (path, thing)
    };
    let mut tree = nodes.into_iter().map(thing).collect();
    unmark(&mut tree);
    tree
}
