// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Where a layer goes, by the mounts of its active snapshot.
//!
//! The forms are those of containerd 1.6 to 2.4 (`plugins/snapshots/{overlay,native,erofs}`); what is
//! not exactly one of them is left to containerd.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use resnap_core::Mount;
use resnap_core::media_type::Format;
use rustix::fs::{CWD, FileType, Gid, Mode, Uid, XattrFlags, fchmod, fchown, fsetxattr, mknodat};
use rustix::process::geteuid;

use crate::erofs;
use crate::error::Error;
use crate::extract::{OPAQUE_VALUE, Style, opaque_name};

/// How far the clock of files may be behind.
const SLACK: Duration = Duration::from_secs(1);

/// Where a layer goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// The upper directory of an overlay.
    Upper {
        /// `snapshots/N/fs`, empty.
        directory: PathBuf,
        /// Those of the parents, the topmost first.
        lower: Vec<PathBuf>,
    },
    /// An EROFS image.
    Image {
        /// `snapshots/N`.
        directory: PathBuf,
        /// The images of the parents, the topmost first.
        parents: Vec<PathBuf>,
    },
    /// A full copy of the parent: `snapshots/N`.
    Copy {
        /// The copy.
        directory: PathBuf,
    },
}

/// What a layer is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Files.
    Tree(Style),
    /// An EROFS image, of a tar archive.
    Image {
        /// No layer is below it.
        is_lowest: bool,
    },
    /// An EROFS image, as it came.
    Blob,
}

impl Target {
    /// The snapshot's own directory.
    pub(crate) fn snapshot(&self) -> &Path {
        match self {
            Self::Upper { directory, .. } => directory.parent().unwrap_or(directory),
            Self::Image { directory, .. } | Self::Copy { directory } => directory,
        }
    }

    /// What appears in the snapshot.
    pub(crate) fn path(&self) -> PathBuf {
        match self {
            Self::Upper { directory, .. } | Self::Copy { directory } => directory.clone(),
            Self::Image { directory, .. } => directory.join(erofs::NAME),
        }
    }

    /// Whether this process can do all there that writing a layer takes.
    pub(crate) fn probe(&self, user: bool) -> io::Result<()> {
        // Beside the snapshot: what is in it, and its root's times, are the image's.
        let path = self.snapshot().with_extension("resnap-trial");
        let file = File::create_new(&path)?;
        let probed = self.try_all(&file, &path, user);
        match std::fs::remove_file(&path) {
            // containerd removes what it does not know.
            Err(error) if error.kind() != io::ErrorKind::NotFound => probed.and(Err(error)),
            _ => probed,
        }
    }

    fn try_all(&self, file: &File, path: &Path, user: bool) -> io::Result<()> {
        if let Self::Image { .. } = self {
            return Ok(());
        }
        if !user {
            fchown(file, Some(Uid::from_raw(1)), Some(Gid::from_raw(1)))?;
        }
        fchmod(file, Mode::from_raw_mode(0o4755))?;
        if let Self::Upper { .. } = self {
            let none = XattrFlags::empty();
            fsetxattr(file, opaque_name(user), OPAQUE_VALUE, none)?;
            if !user {
                let device = path.with_extension("resnap-device");
                mknodat(CWD, &device, FileType::CharacterDevice, Mode::empty(), 0)?;
                std::fs::remove_file(device)?;
            }
        }
        Ok(())
    }

    /// What a layer of this format is written as.
    pub(crate) fn shape(&self, format: Format) -> Result<Shape, Error> {
        Ok(match (self, format) {
            (Self::Image { parents, .. }, Format::Tar) => Shape::Image {
                is_lowest: parents.is_empty(),
            },
            (Self::Image { .. }, Format::Erofs) => Shape::Blob,
            (_, Format::Erofs) => return unfit("an EROFS image is no layer of files"),
            // The lowest layer has nothing to copy.
            (Self::Copy { directory }, Format::Tar) => Shape::Tree(match is_empty(directory) {
                true => Style::Base,
                false => Style::Copy,
            }),
            (Self::Upper { lower, .. }, Format::Tar) => Shape::Tree(match lower.is_empty() {
                true => Style::Base,
                false => Style::Upper,
            }),
        })
    }
}

/// What is known of the snapshots that are written to, besides their mounts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms<'a> {
    /// The snapshotter's.
    pub(crate) root: &'a Path,
    /// Whether this is a user namespace.
    pub(crate) user: bool,
    /// None is older.
    pub(crate) since: SystemTime,
}

fn unfit<T>(reason: impl Into<String>) -> Result<T, Error> {
    Err(Error::Unfit(reason.into()))
}

/// Finds where a layer goes. All must be below the snapshotter's root, and there.
pub(crate) fn find(mounts: &[Mount], terms: Terms<'_>) -> Result<Target, Error> {
    let root = terms.root;
    let root = match root.canonicalize() {
        Ok(root) => root.join("snapshots"),
        Err(error) => return unfit(format!("{root:?}: {error}")),
    };
    let Some((last, below)) = mounts.split_last() else {
        return unfit("no mounts");
    };
    let target = match (last.kind.as_str(), below) {
        ("bind", []) => bind(last, &root),
        ("overlay" | "format/mkdir/overlay" | "format/overlay", below) => {
            overlay(last, below, &root, terms.user)
        }
        (kind, _) => unfit(format!(
            "{} mounts, the last of type {kind:?}",
            mounts.len()
        )),
    }?;
    match is_new(&target, &root, terms.since) {
        Ok(true) => Ok(target),
        Ok(false) => unfit(format!("{:?} is of another containerd", target.snapshot())),
        Err(error) => unfit(format!("{:?}: {error}", target.snapshot())),
    }
}

/// Whether the snapshot was made just now, by a containerd of our user, and nothing written to it. A
/// containerd in a container names paths of its own, and the same may be another's here.
fn is_new(target: &Target, root: &Path, since: SystemTime) -> io::Result<bool> {
    let metadata = target.snapshot().metadata()?;
    let seconds = Duration::from_secs(u64::try_from(metadata.ctime()).unwrap_or_default());
    let nanoseconds =
        Duration::from_nanos(u64::try_from(metadata.ctime_nsec()).unwrap_or_default());
    let changed = UNIX_EPOCH + seconds + nanoseconds;
    let is_empty = match target {
        Target::Image { .. } => !target.path().try_exists()?,
        // The copy has what its parent has. An upper directory has been looked at.
        Target::Copy { .. } | Target::Upper { .. } => true,
    };
    Ok(is_empty && changed + SLACK >= since && root.metadata()?.uid() == geteuid().as_raw())
}

fn bind(mount: &Mount, root: &Path) -> Result<Target, Error> {
    only(&mount.options, |option| matches!(option, "rw" | "rbind"))?;
    let (directory, is_fs) = inside(Path::new(&mount.source), root)?;
    if !is_fs {
        return Ok(Target::Copy { directory });
    }
    let (fs, snapshot) = (directory.join("fs"), directory);
    if snapshot.join(".erofslayer").exists() {
        return Ok(Target::Image {
            directory: snapshot,
            parents: Vec::new(),
        });
    }
    upper(fs, &snapshot, Vec::new())
}

fn overlay(mount: &Mount, below: &[Mount], root: &Path, user: bool) -> Result<Target, Error> {
    let option = |name: &str| {
        let mut found = mount
            .options
            .iter()
            .filter_map(|option| option.strip_prefix(name));
        found.next().map(str::to_owned)
    };
    let (lower, dir) = (option("lowerdir="), option("upperdir="));
    only(&mount.options, |option| {
        let known = [
            "lowerdir=",
            "upperdir=",
            "workdir=",
            "X-containerd.mkdir.path=",
        ];
        known.iter().any(|name| option.starts_with(name))
            || matches!(option, "index=off" | "volatile" | "userxattr")
    })?;
    if user != mount.options.iter().any(|option| option == "userxattr") {
        return unfit("attributes of overlayfs are not those of this user namespace");
    }
    let (Some(lower), Some(dir)) = (lower, dir) else {
        return unfit("an overlay without upper or lower directory");
    };
    let (snapshot, is_fs) = inside(Path::new(&dir), root)?;
    if !is_fs {
        return unfit(format!("the upper directory is {dir:?}"));
    }
    let is_image = snapshot.join(".erofslayer").exists();
    if !below.is_empty() {
        if !is_image || !lower.starts_with("{{") {
            return unfit("mounts below an overlay");
        }
        let parents = below.iter().map(|mount| image(mount, root));
        return Ok(Target::Image {
            directory: snapshot,
            parents: parents.collect::<Result<_, _>>()?,
        });
    }
    if lower.contains(['\\', '{']) {
        return unfit(format!("lower directories {lower:?}"));
    }
    let lower = lower.split(':').map(|path| {
        let (snapshot, is_fs) = inside(Path::new(path), root)?;
        match is_fs {
            true => Ok(snapshot),
            false => unfit(format!("the lower directory {path:?}")),
        }
    });
    let lower: Vec<PathBuf> = lower.collect::<Result<_, _>>()?;
    if !is_image {
        let lower = lower.iter().map(|snapshot| snapshot.join("fs")).collect();
        return upper(snapshot.join("fs"), &snapshot, lower);
    }
    Ok(Target::Image {
        directory: snapshot,
        parents: lower
            .iter()
            .map(|snapshot| snapshot.join(erofs::NAME))
            .collect(),
    })
}

/// A parent that the mount manager would mount.
fn image(mount: &Mount, root: &Path) -> Result<PathBuf, Error> {
    if mount.kind != "erofs" {
        return unfit(format!("a mount of type {:?} below an overlay", mount.kind));
    }
    // Others need another device, or verity.
    only(&mount.options, |option| matches!(option, "ro" | "loop"))?;
    let path = Path::new(&mount.source);
    match (path.file_name(), path.parent()) {
        (Some(name), Some(parent)) if name == erofs::NAME => {
            let (snapshot, _) = inside(parent, root)?;
            Ok(snapshot.join(erofs::NAME))
        }
        _ => unfit(format!("a parent is {path:?}")),
    }
}

fn upper(directory: PathBuf, snapshot: &Path, lower: Vec<PathBuf>) -> Result<Target, Error> {
    if !snapshot.join("work").is_dir() {
        return unfit(format!("no overlay's work directory in {snapshot:?}"));
    }
    match directory
        .read_dir()
        .map(|mut entries| entries.next().is_none())
    {
        Ok(true) => Ok(Target::Upper { directory, lower }),
        Ok(false) => unfit(format!("{directory:?} is not empty")),
        Err(error) => unfit(format!("{directory:?}: {error}")),
    }
}

fn is_empty(directory: &Path) -> bool {
    let entries = directory.read_dir();
    entries.is_ok_and(|mut entries| entries.next().is_none())
}

fn only(options: &[String], known: impl Fn(&str) -> bool) -> Result<(), Error> {
    match options.iter().find(|option| !known(option)) {
        Some(option) => unfit(format!("the mount option {option:?}")),
        None => Ok(()),
    }
}

/// The directory of the snapshot that `path` is, or is the `fs` of, and whether it is that.
fn inside(path: &Path, root: &Path) -> Result<(PathBuf, bool), Error> {
    let real = match path.canonicalize() {
        Ok(real) => real,
        Err(error) => return unfit(format!("{path:?}: {error}")),
    };
    let rest = real.strip_prefix(root).unwrap_or(Path::new(""));
    let names: Vec<Component<'_>> = rest.components().collect();
    match names[..] {
        [snapshot] => Ok((root.join(snapshot), false)),
        [snapshot, Component::Normal(name)] if name == "fs" => Ok((root.join(snapshot), true)),
        _ => unfit(format!("{path:?} is no snapshot in {root:?}")),
    }
}
