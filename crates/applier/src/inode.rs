// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Single inodes: how they are created, and how their metadata is set.

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use resnap_layer::{EntryKind, Metadata, Time};
use rustix::fs::{
    self, AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::error::{Fault, IoContext as _};
use crate::xattr::{self, XattrNamespace};

/// Creates an inode that is neither a file nor a directory.
pub(crate) fn create(parent: &OwnedFd, name: &[u8], kind: &EntryKind) -> rustix::io::Result<()> {
    let (file_type, device) = match kind {
        EntryKind::Symlink(target) => return fs::symlinkat(&target[..], parent, name),
        EntryKind::Character { major, minor } => {
            (FileType::CharacterDevice, fs::makedev(*major, *minor))
        }
        EntryKind::Block { major, minor } => (FileType::BlockDevice, fs::makedev(*major, *minor)),
        _ => (FileType::Fifo, 0),
    };
    // Linux would truncate the numbers.
    if fs::major(device) > 0xfff || fs::minor(device) > 0xf_ffff {
        return Err(Errno::INVAL);
    }
    fs::mknodat(parent, name, file_type, Mode::RUSR | Mode::WUSR, device)
}

/// Creates a whiteout.
pub(crate) fn create_whiteout(
    parent: &OwnedFd,
    name: &[u8],
    namespace: XattrNamespace,
) -> Result<(), Fault> {
    let made = fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0);
    made.entry_context("make its whiteout")?;
    mark_origin(parent, namespace)
}

/// Marks a directory that contains whiteouts. Where the directory has no lower one, overlayfs lists
/// whiteouts without this attribute (`ovl_get_inode` in Linux' `fs/overlayfs/inode.c`).
pub(crate) fn mark_origin(parent: &OwnedFd, namespace: XattrNamespace) -> Result<(), Fault> {
    let set = xattr::set(parent, namespace.origin_name(), b"");
    set.entry_context("set an extended attribute")
}

/// Returns whether overlayfs treats an inode as a whiteout.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Returns the type of the inode at a name, or `None` for a whiteout.
pub(crate) fn kind(parent: &OwnedFd, name: &[u8]) -> Result<Option<FileType>, Fault> {
    let stat = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).entry_context("look at it")?;
    Ok((!is_whiteout(&stat)).then(|| FileType::from_raw_mode(stat.st_mode)))
}

/// Sets the metadata of a file or directory. The owner comes first, because it clears set-ID bits and
/// capabilities; the mode comes after access control lists, which follow it.
pub(crate) fn set_metadata(
    fd: &impl AsFd,
    metadata: &Metadata,
    namespace: XattrNamespace,
) -> Result<(), Fault> {
    let chown = fs::fchown(fd, owner(metadata.uid), group(metadata.gid));
    chown.entry_context("set its owner")?;
    if let Ok(size) = fs::flistxattr_query(fd)
        && size > 0
    {
        clear_stale_xattrs(fd, metadata, namespace)?;
    }
    for xattr in &metadata.xattrs {
        if namespace.is_applicable(xattr) {
            ignore_unsupported(fs::fsetxattr(
                fd,
                &xattr.name[..],
                &xattr.value,
                XattrFlags::empty(),
            ))?;
        }
    }
    let mode = Mode::from_raw_mode(metadata.mode & 0o7777);
    fs::fchmod(fd, mode).entry_context("set its mode")?;
    set_mtime(fd, metadata.mtime)
}

/// Removes attributes that an earlier entry or layer set, or that a parent's default list added. All
/// others belong to the host, such as labels, or to the file system.
fn clear_stale_xattrs(
    fd: &impl AsFd,
    metadata: &Metadata,
    namespace: XattrNamespace,
) -> Result<(), Fault> {
    for name in xattr::list(fd).entry_context("list its extended attributes")? {
        let is_stated = metadata.xattrs.iter().any(|xattr| xattr.name == name);
        let is_from_layer = match &name[..] {
            b"system.posix_acl_access" | b"system.posix_acl_default" | b"security.capability" => {
                true
            }
            name => name.starts_with(b"user.") && !namespace.is_overlay(name),
        };
        if is_from_layer && !is_stated {
            ignore_unsupported(fs::fremovexattr(fd, &name[..]))?;
        }
    }
    Ok(())
}

/// Ignores that a file system does not support an attribute, as containerd does.
fn ignore_unsupported(set: rustix::io::Result<()>) -> Result<(), Fault> {
    match set {
        Err(Errno::OPNOTSUPP | Errno::NODATA) => Ok(()),
        set => set.entry_context("set an extended attribute"),
    }
}

/// Sets the modification time, and the access time to the same.
pub(crate) fn set_mtime(fd: &impl AsFd, time: Time) -> Result<(), Fault> {
    fs::futimens(fd, &timestamps(time)).entry_context("set its time")
}

/// Returns the modification time in a `stat`.
pub(crate) fn mtime(stat: &Stat) -> Time {
    Time {
        seconds: stat.st_mtime,
        nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    }
}

fn timestamps(time: Time) -> Timestamps {
    let time = Timespec {
        tv_sec: time.seconds,
        tv_nsec: time.nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Sets the metadata of the inode at a name, and removes no attribute. The inode is not opened: opening
/// a device has effects.
pub(crate) fn set_metadata_at(
    parent: &OwnedFd,
    name: &[u8],
    metadata: &Metadata,
    namespace: XattrNamespace,
) -> Result<(), Fault> {
    let kind = kind(parent, name)?;
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let chown = fs::chownat(
        parent,
        name,
        owner(metadata.uid),
        group(metadata.gid),
        flags,
    );
    chown.entry_context("set its owner")?;
    // There is no system call that sets attributes by descriptor and name.
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd()));
    path.push(std::ffi::OsStr::from_bytes(name));
    for xattr in &metadata.xattrs {
        // Only files and directories have `user.*`.
        let is_allowed = kind == Some(FileType::RegularFile) || !xattr.name.starts_with(b"user.");
        if namespace.is_applicable(xattr) && is_allowed {
            ignore_unsupported(fs::lsetxattr(
                &path,
                &xattr.name[..],
                &xattr.value,
                XattrFlags::empty(),
            ))?;
        }
    }
    if kind != Some(FileType::Symlink) {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(parent, name, flags, Mode::empty()).entry_context("open it")?;
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let mode = Mode::from_raw_mode(metadata.mode & 0o7777);
        fs::chmodat(CWD, path, mode, AtFlags::empty()).entry_context("set its mode")?;
    }
    let set = fs::utimensat(parent, name, &timestamps(metadata.mtime), flags);
    set.entry_context("set its time")
}

/// Returns an owner, or `None` for the one that Linux takes to mean "unchanged".
fn owner(uid: u32) -> Option<Uid> {
    (uid != u32::MAX).then(|| Uid::from_raw(uid))
}

/// Returns a group, or `None` for the one that Linux takes to mean "unchanged".
fn group(gid: u32) -> Option<Gid> {
    (gid != u32::MAX).then(|| Gid::from_raw(gid))
}
