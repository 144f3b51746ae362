// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The directories of a chain of overlayfs, by the mounts of a view.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};
use std::sync::Arc;

use resnap_core::{ChainView, Mount, SnapshotKind};
use resnap_layer::Time;
use rustix::fs::{self, AtFlags, Mode, StatxFlags};
use rustix::process::geteuid;

use crate::beneath::{DIRECTORY, open_beneath};
use crate::copy_fault::CopyFault;
use crate::inode::mtime;

/// The only snapshotter whose layers are copied.
pub(crate) const SNAPSHOTTER: &str = "overlayfs";

/// Options with which a layer's directory does not have all that the mount shows, or has it otherwise.
const REFUSED: [&str; 9] = [
    "userxattr",
    "redirect_dir=on",
    "metacopy=on",
    "uidmap=",
    "gidmap=",
    "upperdir=",
    "workdir=",
    "lowerdir+=",
    "datadir+=",
];

/// A layer of a chain.
#[derive(Debug, Clone)]
pub(super) struct ChainLayer {
    /// The directory `fs` of its snapshot.
    pub(super) root: Arc<OwnedFd>,
    /// The time when the snapshot was prepared, or earlier. The time that containerd reports is that of
    /// the commit.
    pub(super) since: Time,
    /// The name of the snapshot.
    pub(super) name: String,
}

fn refuse<T>(reason: impl Into<String>) -> Result<T, CopyFault> {
    Err(CopyFault::Chain(reason.into()))
}

/// Checks that layers of a snapshotter can be copied.
pub(super) fn check_snapshotter(name: &str) -> Result<(), CopyFault> {
    match name {
        SNAPSHOTTER => Ok(()),
        other => Err(CopyFault::Snapshotter(other.to_owned())),
    }
}

/// Opens the directories of all layers, the base first. `root` is the directory of the snapshotter.
pub(super) fn open(chain: &ChainView, root: &Path) -> Result<Vec<ChainLayer>, CopyFault> {
    check_snapshotter(&chain.snapshotter)?;
    let mut paths = directories(&chain.mounts)?;
    paths.reverse();
    let (count, expected) = (paths.len(), chain.snapshots.len());
    if count != expected {
        return refuse(format!(
            "the view has {count} directories, and the chain {expected} snapshots"
        ));
    }
    let mut parent = None;
    for snapshot in &chain.snapshots {
        let key = &snapshot.key;
        if snapshot.kind != SnapshotKind::Committed {
            return refuse(format!("the snapshot {key} is not committed"));
        }
        if snapshot.parent.as_ref() != parent {
            return refuse(format!("the snapshot {key} has another parent"));
        }
        parent = Some(key);
    }
    let roots = Roots::open(root)?;
    let mut layers: Vec<ChainLayer> = Vec::with_capacity(count);
    for (path, snapshot) in paths.iter().zip(&chain.snapshots) {
        let layer = roots.layer(Path::new(path), snapshot.key.as_str())?;
        layers.push(layer);
    }
    paths.sort_unstable();
    if paths.array_windows().any(|[one, other]| one == other) {
        return refuse("the view has a directory twice");
    }
    Ok(layers)
}

/// Returns the directories of the mounts of a view, the topmost first.
fn directories(mounts: &[Mount]) -> Result<Vec<&str>, CopyFault> {
    let [mount] = mounts else {
        return refuse(format!("the view has {} mounts", mounts.len()));
    };
    let options = mount.options.iter().flat_map(|options| options.split(','));
    let options: Vec<&str> = options.collect();
    let is_refused = |option: &&&str| {
        let matches = |refused: &&str| match refused.ends_with('=') {
            true => option.starts_with(*refused),
            false => **option == *refused,
        };
        REFUSED.iter().any(matches)
    };
    if let Some(option) = options.iter().find(is_refused) {
        return refuse(format!("the view has the mount option {option:?}"));
    }
    match mount.kind.as_str() {
        "bind" => Ok(vec![&mount.source]),
        "overlay" => {
            let mut lower = options
                .iter()
                .filter_map(|option| option.strip_prefix("lowerdir="));
            match (lower.next(), lower.next()) {
                (Some(lower), None) if !lower.contains('\\') => Ok(lower.split(':').collect()),
                _ => refuse("the view has no list of lower directories that can be read"),
            }
        }
        kind => refuse(format!("the view has a mount of type {kind:?}")),
    }
}

/// The root of the snapshotter.
struct Roots<'a> {
    /// As it is reported, which may contain symbolic links.
    reported: &'a Path,
    real: std::path::PathBuf,
    fd: OwnedFd,
}

impl<'a> Roots<'a> {
    fn open(reported: &'a Path) -> Result<Self, CopyFault> {
        let opened = reported.canonicalize().and_then(|real| {
            let fd = fs::open(&real, DIRECTORY, Mode::empty())?;
            Ok(Self { reported, real, fd })
        });
        opened.or_else(|error| refuse(format!("{reported:?}: {error}")))
    }

    /// Opens a directory `snapshots/N/fs`.
    fn layer(&self, path: &Path, name: &str) -> Result<ChainLayer, CopyFault> {
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
        if snapshots != "snapshots" || last != "fs" || !is_number {
            return refuse(format!("{path:?} is not a snapshot in {:?}", self.reported));
        }
        match self.directory(number) {
            Ok(Some((root, since))) => Ok(ChainLayer {
                root: Arc::new(root),
                since,
                name: name.to_owned(),
            }),
            Ok(None) => refuse(format!("{path:?} belongs to another user")),
            Err(error) => refuse(format!("{path:?}: {error}")),
        }
    }

    /// Returns the directory of a snapshot and the time of its creation, or `None` if it is another
    /// user's.
    fn directory(&self, number: &str) -> io::Result<Option<(OwnedFd, Time)>> {
        let all = open_beneath(&self.fd, b"snapshots")?;
        let snapshot = open_beneath(&all, number.as_bytes())?;
        let own = fs::fstat(&snapshot)?;
        let user = geteuid().as_raw();
        if fs::fstat(&all)?.st_uid != user || own.st_uid != user {
            return Ok(None);
        }
        let root = open_beneath(&snapshot, b"fs")?;
        let born = born(&root)?;
        // A node's image that was copied file by file has new times of birth.
        let since = [Some(mtime(&own)), born].into_iter().flatten();
        let since = since.min_by_key(|time| (time.seconds, time.nanoseconds));
        Ok(Some((root, since.unwrap_or_default())))
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
