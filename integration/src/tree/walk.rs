// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The walk that fills a [`Tree`].

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Statx, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::node::{Kind, Node, Tree};

/// Overlayfs' own attributes, shown when one of its lower directories is read directly.
const OVERLAY: &[u8] = b"trusted.overlay.";

/// An attribute is at most this long, and so is the list of their names.
const XATTR_MAX: usize = 64 << 10;

/// The paths of each inode that has more than one name.
type Inodes = BTreeMap<(u32, u32, u64), Vec<Vec<u8>>>;

/// Reads the tree below `root`, of which only root may read all.
pub fn read(root: &Path) -> Result<Tree> {
    let user = rustix::process::geteuid();
    ensure!(
        user.is_root(),
        "cannot read {} as user {}: owners' files and trusted attributes need root, run as root",
        root.display(),
        user.as_raw(),
    );
    let mut tree = Tree::default();
    let mut inodes = Inodes::new();
    fill(root, &mut tree, &mut inodes)
        .with_context(|| format!("cannot read the tree {}", root.display()))?;
    for paths in inodes.values_mut() {
        paths.sort_unstable();
        for path in &*paths {
            if let Some(node) = tree.nodes.get_mut(path) {
                node.links = paths
                    .iter()
                    .filter(|other| *other != path)
                    .cloned()
                    .collect();
            }
        }
    }
    Ok(tree)
}

fn fill(root: &Path, tree: &mut Tree, inodes: &mut Inodes) -> Result<()> {
    let dir = directory(CWD, root)?;
    let status = rustix::fs::statx(&dir, c"", AtFlags::EMPTY_PATH, StatxFlags::ALL)?;
    let node = node(dir.as_fd(), c".", &status)?;
    tree.nodes.insert(b".".to_vec(), node);
    walk(dir.as_fd(), b"", tree, inodes)
}

/// Reads all entries of `dir`, whose path is `prefix`, with its slash behind it.
fn walk(dir: BorrowedFd<'_>, prefix: &[u8], tree: &mut Tree, inodes: &mut Inodes) -> Result<()> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        let path = [prefix, name.to_bytes()].concat();
        visit(dir, name, &path, tree, inodes)
            .with_context(|| format!("cannot read {}", path.escape_ascii()))?;
    }
    Ok(())
}

fn visit(
    dir: BorrowedFd<'_>,
    name: &CStr,
    path: &[u8],
    tree: &mut Tree,
    inodes: &mut Inodes,
) -> Result<()> {
    let status = match rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::ALL) {
        Err(Errno::NOENT) => {
            tree.ghosts.insert(path.to_vec());
            return Ok(());
        }
        status => status?,
    };
    if status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        bail!("another file system is mounted here: unmount it, or read it on its own");
    }
    let node = node(dir, name, &status)?;
    let kind = node.kind;
    tree.nodes.insert(path.to_vec(), node);
    if kind == Kind::Directory {
        let child = directory(dir, name)?;
        walk(child.as_fd(), &[path, b"/"].concat(), tree, inodes)?;
    } else if status.stx_nlink > 1 {
        let inode = (status.stx_dev_major, status.stx_dev_minor, status.stx_ino);
        inodes.entry(inode).or_default().push(path.to_vec());
    }
    Ok(())
}

fn node(dir: BorrowedFd<'_>, name: &CStr, status: &Statx) -> Result<Node> {
    let mode = u32::from(status.stx_mode);
    let kind = match FileType::from_raw_mode(mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::CharacterDevice => Kind::CharDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::Unknown => bail!("mode {mode:o} is of no known type"),
    };
    let is_file = kind == Kind::File;
    let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
    let target = match kind {
        Kind::Symlink => Some(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes()),
        _ => None,
    };
    Ok(Node {
        kind,
        mode: mode & 0o7777,
        uid: status.stx_uid,
        gid: status.stx_gid,
        size: is_file.then_some(status.stx_size),
        content: if is_file {
            Some(content(dir, name)?)
        } else {
            None
        },
        target,
        device: is_device.then_some((status.stx_rdev_major, status.stx_rdev_minor)),
        mtime: (status.stx_mtime.tv_sec, status.stx_mtime.tv_nsec),
        xattrs: xattrs(dir, name)?,
        links: Vec::new(),
    })
}

fn directory(at: BorrowedFd<'_>, path: impl rustix::path::Arg) -> Result<rustix::fd::OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, path, flags, Mode::empty())?)
}

fn content(dir: BorrowedFd<'_>, name: &CStr) -> Result<String> {
    let flags = OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            length => hash.update(&buffer[..length]),
        }
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

fn xattrs(dir: BorrowedFd<'_>, name: &CStr) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    // The calls on a descriptor take no symbolic link, device or pipe; those on a path take one
    // through the descriptor of its directory.
    let base = format!("/proc/self/fd/{}/", dir.as_raw_fd());
    let path = [base.as_bytes(), name.to_bytes()].concat();
    let mut names = vec![0; XATTR_MAX];
    let length = match rustix::fs::llistxattr(path.as_slice(), &mut names) {
        Err(Errno::NOTSUP) => 0,
        length => length?,
    };
    let mut xattrs = BTreeMap::new();
    let mut value = vec![0; XATTR_MAX];
    for name in names[..length].split(|byte| *byte == 0) {
        if name.is_empty() || name.starts_with(OVERLAY) {
            continue;
        }
        match rustix::fs::lgetxattr(path.as_slice(), name, &mut value) {
            // EROFS lists a `user.` attribute of a device, but Linux reads none.
            Err(Errno::NODATA) => {}
            length => _ = xattrs.insert(name.to_vec(), value[..length?].to_vec()),
        }
    }
    Ok(xattrs)
}
