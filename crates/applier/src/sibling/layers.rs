// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The files of the layers of a chain, below the root of their snapshotter.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use resnap_layer::Time;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, StatxFlags};
use rustix::process::geteuid;

use crate::beneath::{DIRECTORY, open_beneath};
use crate::copy_fault::{CopyFault, refuse};
use crate::erofs::NAME;
use crate::inode::mtime;

/// A layer of a chain of overlayfs.
#[derive(Debug, Clone)]
pub(super) struct LayerDirectory {
    /// The directory `fs` of its snapshot.
    pub(super) root: Arc<OwnedFd>,
    /// The time when the snapshot was prepared, or earlier. The time that containerd reports is that of
    /// the commit.
    pub(super) since: Time,
    /// The name of the snapshot.
    pub(super) name: String,
}

/// A layer of a chain of erofs.
#[derive(Debug, Clone)]
pub(super) struct LayerImage {
    /// The image in its snapshot.
    pub(super) file: Arc<File>,
    /// The name of the snapshot.
    pub(super) name: String,
}

/// The root of the snapshotter.
pub(super) struct Roots<'a> {
    /// As it is reported, which may contain symbolic links.
    reported: &'a Path,
    real: PathBuf,
    fd: OwnedFd,
}

impl<'a> Roots<'a> {
    pub(super) fn open(reported: &'a Path) -> Result<Self, CopyFault> {
        let opened = reported.canonicalize().and_then(|real| {
            let fd = fs::open(&real, DIRECTORY, Mode::empty())?;
            Ok(Self { reported, real, fd })
        });
        opened.or_else(|error| refuse(format!("{reported:?}: {error}")))
    }

    /// Opens a directory `snapshots/N/fs`.
    pub(super) fn directory(&self, path: &Path, name: &str) -> Result<LayerDirectory, CopyFault> {
        self.layer(path, "fs", |snapshot| {
            let own = fs::fstat(snapshot)?;
            let root = open_beneath(snapshot, b"fs")?;
            let born = born(&root)?;
            // A node's image that was copied file by file has new times of birth.
            let since = [Some(mtime(&own)), born].into_iter().flatten();
            let since = since.min_by_key(|time| (time.seconds, time.nanoseconds));
            Ok(LayerDirectory {
                root: Arc::new(root),
                since: since.unwrap_or_default(),
                name: name.to_owned(),
            })
        })
    }

    /// Opens a file `snapshots/N/layer.erofs`.
    pub(super) fn image(&self, path: &Path, name: &str) -> Result<LayerImage, CopyFault> {
        self.layer(path, NAME, |snapshot| {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = fs::openat(snapshot, NAME, flags, Mode::empty())?;
            let kind = FileType::from_raw_mode(fs::fstat(&file)?.st_mode);
            if kind != FileType::RegularFile {
                return Err(io::Error::other("it is not a regular file"));
            }
            Ok(LayerImage {
                file: Arc::new(file.into()),
                name: name.to_owned(),
            })
        })
    }

    /// Opens the directory `snapshots/N` of an image.
    pub(super) fn snapshot_of(&self, image: &Path) -> Result<OwnedFd, CopyFault> {
        self.layer(image, NAME, |snapshot| {
            Ok(fs::openat(snapshot, ".", DIRECTORY, Mode::empty())?)
        })
    }

    /// Opens the file of this name in the directory of a snapshot.
    fn layer<T>(
        &self,
        path: &Path,
        name: &str,
        open: impl FnOnce(&OwnedFd) -> io::Result<T>,
    ) -> Result<T, CopyFault> {
        let rest = path
            .strip_prefix(self.reported)
            .or_else(|_| path.strip_prefix(&self.real));
        let names: Vec<_> = match &rest {
            Ok(rest) => rest.components().collect(),
            Err(_) => Vec::new(),
        };
        let [
            Component::Normal(snapshots),
            Component::Normal(number),
            Component::Normal(last),
        ] = names[..]
        else {
            return refuse(format!("{path:?} is not a snapshot in {:?}", self.reported));
        };
        let number = number.to_str().unwrap_or_default();
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        if snapshots != "snapshots" || last != name || !is_number {
            return refuse(format!("{path:?} is not a snapshot in {:?}", self.reported));
        }
        let opened = self.snapshot(number).and_then(|snapshot| match snapshot {
            Some(snapshot) => open(&snapshot).map(Some),
            None => Ok(None),
        });
        match opened {
            Ok(Some(opened)) => Ok(opened),
            Ok(None) => refuse(format!("{path:?} belongs to another user")),
            Err(error) => refuse(format!("{path:?}: {error}")),
        }
    }

    /// Opens the directory of a snapshot, or returns `None` if it is another user's.
    fn snapshot(&self, number: &str) -> io::Result<Option<OwnedFd>> {
        let all = open_beneath(&self.fd, b"snapshots")?;
        let snapshot = open_beneath(&all, number.as_bytes())?;
        let user = geteuid().as_raw();
        let is_own = fs::fstat(&all)?.st_uid == user && fs::fstat(&snapshot)?.st_uid == user;
        Ok(is_own.then_some(snapshot))
    }
}

/// Returns the time of birth, if the file system has it.
fn born(fd: &OwnedFd) -> io::Result<Option<Time>> {
    let stat = fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME)?;
    let has_time = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
    Ok(has_time.then_some(Time {
        seconds: stat.stx_btime.tv_sec,
        nanoseconds: stat.stx_btime.tv_nsec,
    }))
}
