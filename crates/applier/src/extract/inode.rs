// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Single inodes and what is set of them.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use resnap_erofs::Metadata;
use resnap_layer::{Entry, EntryKind, Time, Xattr};
use rustix::fs::{
    self, AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::metadata;
use crate::error::{Doing as _, Fault};

/// What overlayfs takes for an opaque directory (Linux `Documentation/filesystems/overlayfs.rst`).
pub(crate) const OPAQUE_VALUE: &[u8] = b"y";

pub(crate) fn opaque_name(user: bool) -> &'static str {
    match user {
        true => "user.overlay.opaque",
        false => "trusted.overlay.opaque",
    }
}

/// Makes what is neither file nor directory.
pub(super) fn make(parent: &OwnedFd, name: &[u8], kind: &EntryKind) -> rustix::io::Result<()> {
    let (file_type, device) = match kind {
        EntryKind::Symlink(target) => return fs::symlinkat(&target[..], parent, name),
        EntryKind::Character { major, minor } => {
            (FileType::CharacterDevice, fs::makedev(*major, *minor))
        }
        EntryKind::Block { major, minor } => (FileType::BlockDevice, fs::makedev(*major, *minor)),
        _ => (FileType::Fifo, 0),
    };
    // Linux would cut it.
    if fs::major(device) > 0xfff || fs::minor(device) > 0xf_ffff {
        return Err(Errno::INVAL);
    }
    fs::mknodat(parent, name, file_type, Mode::RUSR | Mode::WUSR, device)
}

/// Makes a whiteout.
pub(super) fn whiteout(parent: &OwnedFd, name: &[u8], user: bool) -> Result<(), Fault> {
    let made = fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0);
    made.doing("make its whiteout")?;
    mark(parent, user)
}

/// Marks a directory with whiteouts in it: where nothing lies below it, overlayfs lists them without
/// this attribute (`ovl_get_inode` in Linux' `fs/overlayfs/inode.c`).
pub(super) fn mark(parent: &OwnedFd, user: bool) -> Result<(), Fault> {
    let origin = match user {
        true => "user.overlay.origin",
        false => "trusted.overlay.origin",
    };
    set(parent, origin, b"")
}

pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// What is at a name; `None` for a whiteout.
pub(super) fn kind(parent: &OwnedFd, name: &[u8]) -> Result<Option<FileType>, Fault> {
    let stat = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).doing("look at it")?;
    Ok((!is_whiteout(&stat)).then(|| FileType::from_raw_mode(stat.st_mode)))
}

/// Sets all of a file or directory: the owner first, as that takes set-ID bits and capabilities away;
/// the mode after access lists, which follow it.
pub(super) fn dress(fd: &impl AsFd, metadata: &Metadata, user: bool) -> Result<(), Fault> {
    fs::fchown(fd, owner(metadata.uid), group(metadata.gid)).doing("set its owner")?;
    if let Ok(size) = fs::flistxattr_query(fd)
        && size > 0
    {
        undress(fd, metadata, user)?;
    }
    for xattr in &metadata.xattrs {
        if is_taken(xattr, user) {
            taken(fs::fsetxattr(
                fd,
                &xattr.name[..],
                &xattr.value,
                XattrFlags::empty(),
            ))?;
        }
    }
    let mode = Mode::from_raw_mode(metadata.mode & 0o7777);
    fs::fchmod(fd, mode).doing("set its mode")?;
    touch(fd, metadata.mtime)
}

/// Takes away what an earlier entry or layer set of a directory, or its parent's default. All else is
/// the host's, such as labels, or the file system's own.
fn undress(fd: &impl AsFd, metadata: &Metadata, user: bool) -> Result<(), Fault> {
    for name in list(fd).doing("list its extended attributes")? {
        let is_stated = metadata.xattrs.iter().any(|xattr| xattr.name == name);
        let is_layers = match &name[..] {
            b"system.posix_acl_access" | b"system.posix_acl_default" | b"security.capability" => {
                true
            }
            name => name.starts_with(b"user.") && !is_overlay(name, user),
        };
        if is_layers && !is_stated {
            taken(fs::fremovexattr(fd, &name[..]))?;
        }
    }
    Ok(())
}

/// The names of the extended attributes.
pub(crate) fn list(fd: &impl AsFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let size = match fs::flistxattr_query(fd) {
        Err(Errno::OPNOTSUPP) => 0,
        size => size?,
    };
    if size == 0 {
        return Ok(Vec::new());
    }
    let mut list = vec![0; size];
    let size = fs::flistxattr(fd, &mut list[..])?;
    list.truncate(size);
    let names = list.split(|byte| *byte == 0);
    Ok(names
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect())
}

/// The attribute whose access control list is inherited by what is made in a directory.
pub(super) const DEFAULT_LIST: &[u8] = b"system.posix_acl_default";

/// Whether a layer sets such a list.
pub(super) fn has_default(xattrs: &[Xattr]) -> bool {
    xattrs.iter().any(|xattr| xattr.name == DEFAULT_LIST)
}

/// Whether overlayfs keeps its own books in it.
pub(crate) fn is_overlay(name: &[u8], user: bool) -> bool {
    name.starts_with(match user {
        true => b"user.overlay.",
        false => b"trusted.overlay.",
    })
}

/// Whether an attribute is set: as containerd has it, not those by which a layer would talk to
/// overlayfs and other drivers.
pub(super) fn is_taken(xattr: &Xattr, user: bool) -> bool {
    !xattr.name.starts_with(b"trusted.") && !is_overlay(&xattr.name, user)
}

/// What a file system does not take is left out, as containerd has it.
fn taken(set: rustix::io::Result<()>) -> Result<(), Fault> {
    match set {
        Err(Errno::OPNOTSUPP | Errno::NODATA) => Ok(()),
        set => set.doing("set an extended attribute"),
    }
}

/// Sets one attribute.
pub(super) fn set(fd: &impl AsFd, name: &str, value: &[u8]) -> Result<(), Fault> {
    fs::fsetxattr(fd, name, value, XattrFlags::empty()).doing("set an extended attribute")
}

/// Sets the modification time, and the access time as well.
pub(super) fn touch(fd: &impl AsFd, time: Time) -> Result<(), Fault> {
    fs::futimens(fd, &timestamps(time)).doing("set its time")
}

/// The modification time.
pub(super) fn time(fd: &impl AsFd) -> Result<Time, Fault> {
    let stat = fs::fstat(fd).doing("look at it")?;
    Ok(mtime(&stat))
}

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

/// Sets all of what is at a name, and takes no attribute away. It is not opened: devices do things
/// then.
pub(super) fn dress_at(
    parent: &OwnedFd,
    name: &[u8],
    entry: &Entry,
    user: bool,
) -> Result<(), Fault> {
    let kind = kind(parent, name)?;
    let Metadata {
        mode,
        uid,
        gid,
        mtime,
        xattrs,
    } = metadata(entry);
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    fs::chownat(parent, name, owner(uid), group(gid), flags).doing("set its owner")?;
    // There are no calls for this by descriptor and name.
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd()));
    path.push(std::ffi::OsStr::from_bytes(name));
    for xattr in &xattrs {
        // Only files and directories have these.
        let fits = kind == Some(FileType::RegularFile) || !xattr.name.starts_with(b"user.");
        if is_taken(xattr, user) && fits {
            taken(fs::lsetxattr(
                &path,
                &xattr.name[..],
                &xattr.value,
                XattrFlags::empty(),
            ))?;
        }
    }
    if kind != Some(FileType::Symlink) {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(parent, name, flags, Mode::empty()).doing("open it")?;
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let mode = Mode::from_raw_mode(mode & 0o7777);
        fs::chmodat(CWD, path, mode, AtFlags::empty()).doing("set its mode")?;
    }
    fs::utimensat(parent, name, &timestamps(mtime), flags).doing("set its time")
}

/// `None` for the one that Linux takes for "as it is".
fn owner(uid: u32) -> Option<Uid> {
    (uid != u32::MAX).then(|| Uid::from_raw(uid))
}

fn group(gid: u32) -> Option<Gid> {
    (gid != u32::MAX).then(|| Gid::from_raw(gid))
}

/// Reads one attribute; `None` if it is not there.
pub(crate) fn get(fd: &impl AsFd, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    loop {
        let size = match fs::fgetxattr_query(fd, name) {
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            size => size?,
        };
        let mut value = vec![0; size];
        match fs::fgetxattr(fd, name, &mut value[..]) {
            // It grew between.
            Err(Errno::RANGE) => {}
            Err(Errno::NODATA) => return Ok(None),
            size => {
                value.truncate(size?);
                return Ok(Some(value));
            }
        }
    }
}
