// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Attributes of the files of committed layers.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{self, AtFlags, IFlags, Mode, OFlags, StatxFlags};

use crate::erofs::NAME;
use crate::error::{Error, IoContext as _};
use crate::inode_flags::flags;

/// The attribute of a file with fs-verity (Linux `include/uapi/linux/stat.h`, `STATX_ATTR_VERITY`).
const ATTR_VERITY: u64 = 0x0010_0000;

/// Opens a file of a directory, and no symbolic link.
pub(super) fn open(directory: &OwnedFd, name: &str, access: OFlags) -> io::Result<File> {
    let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(fs::openat(directory, name, flags, Mode::empty())?.into())
}

/// Opens the image in the directory of a snapshot.
pub(crate) fn open_image(snapshot: &OwnedFd) -> Result<File, Error> {
    let image = open(snapshot, NAME, OFlags::RDONLY);
    image.context("open the image of the layer (layer.erofs)")
}

/// Returns whether the file has fs-verity, so that it can never be changed.
pub(super) fn has_fs_verity(file: &File) -> io::Result<bool> {
    let stat = fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE)?;
    Ok(stat.stx_attributes.bits() & ATTR_VERITY != 0)
}

/// An immutable file that can be changed until this is dropped.
#[derive(Debug)]
pub(super) struct Thawed {
    file: File,
    flags: Option<IFlags>,
}

impl Thawed {
    /// Lifts the immutable flag of a file, if it has it.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let flags = flags(&file)?.filter(|flags| flags.contains(IFlags::IMMUTABLE));
        if let Some(flags) = flags {
            fs::ioctl_setflags(&file, flags.difference(IFlags::IMMUTABLE))?;
        }
        Ok(Self { file, flags })
    }

    /// Makes the file in the directory immutable again, which another file may have replaced.
    pub(super) fn freeze(mut self, directory: &OwnedFd, name: &str) -> io::Result<()> {
        if let Some(flags) = self.flags.take() {
            let file = open(directory, name, OFlags::RDONLY)?;
            fs::ioctl_setflags(&file, flags)?;
        }
        Ok(())
    }
}

impl Drop for Thawed {
    fn drop(&mut self) {
        if let Some(flags) = self.flags
            && let Err(error) = fs::ioctl_setflags(&self.file, flags)
        {
            tracing::warn!(%error, "a layer's image is not immutable any more");
        }
    }
}
