// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The target of a layer, by the mounts of its active snapshot.
//!
//! The forms of mounts are those of containerd 1.6 to 2.4 (`plugins/snapshots/{overlay,native,erofs}`).
//! Mounts of any other form are left to containerd.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use resnap_core::media_type::Format;
use resnap_core::{ErofsMode, Mount};
use rustix::fs::{CWD, FileType, Gid, Mode, Uid, fchmod, fchown, mknodat};
use rustix::process::geteuid;

use crate::erofs;
use crate::error::Error;
use crate::preparation::Preparation;
use crate::whiteout::WhiteoutMode;
use crate::xattr::{self, OPAQUE_VALUE, XattrNamespace};

/// The target of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// The upper directory of an overlay.
    Upper {
        /// `snapshots/N/fs`, empty.
        directory: PathBuf,
        /// The directories of the parents as far as they are known, the topmost first.
        lower: Vec<PathBuf>,
        /// Whether there is no layer below.
        is_lowest: bool,
    },
    /// An EROFS image.
    Image {
        /// `snapshots/N`.
        directory: PathBuf,
        /// The images of the parents as far as they are known, the topmost first.
        parents: Vec<PathBuf>,
        /// Whether there is no layer below.
        is_lowest: bool,
    },
    /// A full copy of the parent.
    Copy {
        /// `snapshots/N`.
        directory: PathBuf,
    },
}

/// The form in which a layer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LayerForm {
    /// Files.
    Tree(WhiteoutMode),
    /// An EROFS image made of a tar archive.
    Image {
        /// Whether there is no layer below.
        is_lowest: bool,
        /// Whether it gets a dm-verity tree.
        has_tree: bool,
        mode: ErofsMode,
    },
    /// A signed index and the layer's tar.
    Indexed,
    /// An EROFS image that is as its blob.
    Blob {
        /// Whether a dm-verity tree is written behind it.
        has_tree: bool,
    },
}

impl Target {
    /// Returns the directory of the snapshot.
    pub(crate) fn snapshot(&self) -> &Path {
        match self {
            Self::Upper { directory, .. } => directory.parent().unwrap_or(directory),
            Self::Image { directory, .. } | Self::Copy { directory } => directory,
        }
    }

    /// Returns the path that the layer gets in the snapshot.
    pub(crate) fn path(&self) -> PathBuf {
        match self {
            Self::Upper { directory, .. } | Self::Copy { directory } => directory.clone(),
            Self::Image { directory, .. } => directory.join(erofs::NAME),
        }
    }

    /// Returns whether a layer that was not completed may have left files: an image is removed.
    pub(crate) fn may_have_files(&self) -> bool {
        match self {
            Self::Upper { directory, .. } | Self::Copy { directory } => {
                !is_empty(directory).unwrap_or_default()
            }
            Self::Image { .. } => false,
        }
    }

    /// Checks that this process can do everything there that writing a layer takes.
    pub(crate) fn probe(&self, namespace: XattrNamespace) -> io::Result<()> {
        // Not in the snapshot: its files, and the times of its root, belong to the image.
        let path = self.snapshot().with_extension("resnap-trial");
        let file = File::create_new(&path)?;
        let probed = self.try_operations(&file, &path, namespace);
        match std::fs::remove_file(&path) {
            // containerd may have removed the unknown file.
            Err(error) if error.kind() != io::ErrorKind::NotFound => probed.and(Err(error)),
            _ => probed,
        }
    }

    fn try_operations(
        &self,
        file: &File,
        path: &Path,
        namespace: XattrNamespace,
    ) -> io::Result<()> {
        if let Self::Image { .. } = self {
            return Ok(());
        }
        let is_trusted = namespace == XattrNamespace::Trusted;
        if is_trusted {
            fchown(file, Some(Uid::from_raw(1)), Some(Gid::from_raw(1)))?;
        }
        fchmod(file, Mode::from_raw_mode(0o4755))?;
        if let Self::Upper { .. } = self {
            xattr::set(file, namespace.opaque_name(), OPAQUE_VALUE)?;
            if is_trusted {
                let device = path.with_extension("resnap-device");
                mknodat(CWD, &device, FileType::CharacterDevice, Mode::empty(), 0)?;
                std::fs::remove_file(device)?;
            }
        }
        Ok(())
    }

    /// Returns the form in which a layer of this format is written. `has_tree` is whether images get
    /// dm-verity trees, and `mode` the form of those that are made of tar archives.
    pub(crate) fn form(
        &self,
        format: Format,
        has_tree: bool,
        mode: ErofsMode,
    ) -> Result<LayerForm, Error> {
        Ok(match (self, format) {
            (Self::Image { is_lowest, .. }, Format::Tar) => LayerForm::Image {
                is_lowest: *is_lowest,
                has_tree,
                mode,
            },
            (Self::Image { .. }, Format::Erofs) => LayerForm::Blob { has_tree },
            (_, Format::Erofs) => return unsupported("an EROFS image cannot be written as files"),
            // The lowest layer has no parent to copy.
            (Self::Copy { directory }, Format::Tar) => {
                LayerForm::Tree(match is_empty(directory)? {
                    true => WhiteoutMode::Base,
                    false => WhiteoutMode::Copy,
                })
            }
            (Self::Upper { is_lowest, .. }, Format::Tar) => LayerForm::Tree(match is_lowest {
                true => WhiteoutMode::Base,
                false => WhiteoutMode::Upper,
            }),
        })
    }
}

/// The facts about snapshots that their mounts do not tell.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SnapshotFacts<'a> {
    /// The root of the snapshotter.
    pub(crate) root: &'a Path,
    pub(crate) namespace: XattrNamespace,
    pub(crate) preparation: Preparation,
}

fn unsupported<T>(reason: impl Into<String>) -> Result<T, Error> {
    Err(Error::Unsupported(reason.into()))
}

/// Returns the target of a layer. All its directories must exist below the snapshotter's root.
pub(crate) fn find(mounts: &[Mount], facts: SnapshotFacts<'_>) -> Result<Target, Error> {
    let root = facts.root;
    let root = match root.canonicalize() {
        Ok(root) => root.join("snapshots"),
        Err(error) => return unsupported(format!("{root:?}: {error}")),
    };
    let Some((last, below)) = mounts.split_last() else {
        return unsupported("no mounts");
    };
    let target = match (last.kind.as_str(), below) {
        ("bind", []) => bind(last, &root, facts.preparation),
        ("overlay" | "format/mkdir/overlay" | "format/overlay", below) => {
            overlay(last, below, &root, facts)
        }
        (kind, _) => unsupported(format!(
            "{} mounts, the last of type {kind:?}",
            mounts.len()
        )),
    }?;
    match is_new(&target, &root, facts.preparation) {
        Ok(true) => Ok(target),
        Ok(false) => unsupported(format!(
            "{:?} belongs to another containerd",
            target.snapshot()
        )),
        Err(error) => unsupported(format!("{:?}: {error}", target.snapshot())),
    }
}

/// Returns whether the mounts are those of a snapshot below the root of a snapshotter, in any form.
pub(crate) fn has_mounts(root: &Path, mounts: &[Mount]) -> bool {
    let Some(last) = mounts.last() else {
        return false;
    };
    let mut options = last.options.iter();
    let upper = options.find_map(|option| option.strip_prefix("upperdir="));
    let path = Path::new(upper.unwrap_or(&last.source)).canonicalize();
    let root = root.canonicalize();
    path.is_ok_and(|path| root.is_ok_and(|root| path.starts_with(root)))
}

/// Returns whether the snapshot is empty, was created by a containerd of the same user, and is the one that was
/// prepared.
fn is_new(target: &Target, root: &Path, preparation: Preparation) -> io::Result<bool> {
    let is_empty = match target {
        Target::Image { .. } => !target.path().try_exists()?,
        // A copy has the files of its parent. An upper directory was checked before.
        Target::Copy { .. } | Target::Upper { .. } => true,
    };
    let is_own = preparation.is_of(target.snapshot())?;
    Ok(is_empty && is_own && root.metadata()?.uid() == geteuid().as_raw())
}

/// Returns the target of a bind mount, which a snapshot without a parent has. containerd 2.2 and later
/// prepares the layers of images in parallel for snapshotters for EROFS images, too, all of them without
/// their parents (`core/unpack/unpacker.go`, `parallel`): such a layer may not be the lowest.
fn bind(mount: &Mount, root: &Path, preparation: Preparation) -> Result<Target, Error> {
    allow_options(&mount.options, |option| matches!(option, "rw" | "rbind"))?;
    let (directory, is_fs) = snapshot_of(Path::new(&mount.source), root)?;
    if !is_fs {
        return Ok(Target::Copy { directory });
    }
    let (fs, snapshot) = (directory.join("fs"), directory);
    if is_of_erofs(&snapshot)? {
        return Ok(Target::Image {
            directory: snapshot,
            parents: Vec::new(),
            is_lowest: matches!(preparation, Preparation::Since(_)),
        });
    }
    upper(fs, &snapshot, Vec::new(), true)
}

/// Returns the target of an overlay, with the mounts `below` it.
fn overlay(
    mount: &Mount,
    below: &[Mount],
    root: &Path,
    facts: SnapshotFacts<'_>,
) -> Result<Target, Error> {
    let options = OverlayOptions::parse(&mount.options)?;
    let (lower, upperdir) = match (options.lower, options.upper) {
        (Some(lower), Some(upperdir)) => (lower, upperdir),
        (None, Some(upperdir)) if below.is_empty() && !options.has_work => {
            return parallel(upperdir, root);
        }
        _ => return unsupported("an overlay without upper or lower directory"),
    };
    if options.namespace != facts.namespace {
        return unsupported("attributes of overlayfs are not those of this user namespace");
    }
    let (snapshot, is_fs) = snapshot_of(Path::new(upperdir), root)?;
    if !is_fs {
        return unsupported(format!("the upper directory is {upperdir:?}"));
    }
    let is_image = is_of_erofs(&snapshot)?;
    if !below.is_empty() {
        if !is_image || !lower.starts_with("{{") {
            return unsupported("mounts below an overlay");
        }
        let parents = below.iter().map(|mount| parent_image(mount, root));
        return Ok(Target::Image {
            directory: snapshot,
            parents: parents.collect::<Result<_, _>>()?,
            is_lowest: false,
        });
    }
    let lower = lower_snapshots(lower, root)?;
    let inside = |name| lower.iter().map(|snapshot| snapshot.join(name)).collect();
    match is_image {
        true => Ok(Target::Image {
            parents: inside(erofs::NAME),
            directory: snapshot,
            is_lowest: false,
        }),
        false => upper(snapshot.join("fs"), &snapshot, inside("fs"), false),
    }
}

/// Returns whether a snapshot is one of the erofs snapshotter, by its marker (containerd's
/// `docs/snapshotters/erofs.md`).
fn is_of_erofs(snapshot: &Path) -> Result<bool, Error> {
    let marker = snapshot.join(".erofslayer");
    // A layer of another form would break the snapshot.
    let found = marker.try_exists();
    found.or_else(|error| unsupported(format!("{marker:?}: {error}")))
}

/// Returns the target of a layer that containerd 2.2 and later unpacks in parallel with those below it, which
/// are not known: a bind mount that was made an overlay (`core/unpack/unpacker.go`, `bindToOverlay`).
fn parallel(upperdir: &str, root: &Path) -> Result<Target, Error> {
    let (snapshot, is_fs) = snapshot_of(Path::new(upperdir), root)?;
    if !is_fs || is_of_erofs(&snapshot)? {
        return unsupported(format!("the upper directory is {upperdir:?}"));
    }
    upper(snapshot.join("fs"), &snapshot, Vec::new(), false)
}

/// The options of an overlay.
struct OverlayOptions<'a> {
    lower: Option<&'a str>,
    upper: Option<&'a str>,
    has_work: bool,
    namespace: XattrNamespace,
}

impl<'a> OverlayOptions<'a> {
    fn parse(options: &'a [String]) -> Result<Self, Error> {
        allow_options(options, |option| {
            let known = [
                "lowerdir=",
                "upperdir=",
                "workdir=",
                "X-containerd.mkdir.path=",
            ];
            known.iter().any(|name| option.starts_with(name))
                || matches!(option, "index=off" | "volatile" | "userxattr" | "rw")
        })?;
        let value = |name: &str| {
            let mut options = options.iter();
            options.find_map(|option| option.strip_prefix(name))
        };
        Ok(Self {
            lower: value("lowerdir="),
            upper: value("upperdir="),
            has_work: value("workdir=").is_some(),
            namespace: match options.iter().any(|option| option == "userxattr") {
                true => XattrNamespace::User,
                false => XattrNamespace::Trusted,
            },
        })
    }
}

/// Returns the directories of the snapshots in the option `lowerdir`.
fn lower_snapshots(lower: &str, root: &Path) -> Result<Vec<PathBuf>, Error> {
    if lower.contains(['\\', '{']) {
        return unsupported(format!("lower directories {lower:?}"));
    }
    let lower = lower.split(':').map(|path| {
        let (snapshot, is_fs) = snapshot_of(Path::new(path), root)?;
        match is_fs {
            true => Ok(snapshot),
            false => unsupported(format!("the lower directory {path:?}")),
        }
    });
    lower.collect()
}

/// Returns the image of a parent that containerd's mount manager would mount.
fn parent_image(mount: &Mount, root: &Path) -> Result<PathBuf, Error> {
    if mount.kind != "erofs" {
        return unsupported(format!("a mount of type {:?} below an overlay", mount.kind));
    }
    // Other options need another device.
    allow_options(&mount.options, |option| {
        matches!(option, "ro" | "loop") || Mount::is_verity_option(option)
    })?;
    let path = Path::new(&mount.source);
    match (path.file_name(), path.parent()) {
        (Some(name), Some(parent)) if name == erofs::NAME => {
            let (snapshot, _) = snapshot_of(parent, root)?;
            Ok(snapshot.join(erofs::NAME))
        }
        _ => unsupported(format!("the parent {path:?}")),
    }
}

/// Returns an upper directory as a target, if it is empty.
fn upper(
    directory: PathBuf,
    snapshot: &Path,
    lower: Vec<PathBuf>,
    is_lowest: bool,
) -> Result<Target, Error> {
    if !snapshot.join("work").is_dir() {
        return unsupported(format!("no overlay's work directory in {snapshot:?}"));
    }
    match is_empty(&directory)? {
        true => Ok(Target::Upper {
            directory,
            lower,
            is_lowest,
        }),
        false => unsupported(format!("{directory:?} is not empty")),
    }
}

fn is_empty(directory: &Path) -> Result<bool, Error> {
    match directory.read_dir() {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) => unsupported(format!("{directory:?}: {error}")),
    }
}

/// Refuses options that are not known.
fn allow_options(options: &[String], known: impl Fn(&str) -> bool) -> Result<(), Error> {
    match options.iter().find(|option| !known(option)) {
        Some(option) => unsupported(format!("the mount option {option:?}")),
        None => Ok(()),
    }
}

/// Returns the directory of the snapshot that `path` belongs to, and whether `path` is its `fs`.
fn snapshot_of(path: &Path, root: &Path) -> Result<(PathBuf, bool), Error> {
    let real = match path.canonicalize() {
        Ok(real) => real,
        Err(error) => return unsupported(format!("{path:?}: {error}")),
    };
    let rest = real.strip_prefix(root).unwrap_or(Path::new(""));
    let names: Vec<Component<'_>> = rest.components().collect();
    match names[..] {
        [snapshot] => Ok((root.join(snapshot), false)),
        [snapshot, Component::Normal(name)] if name == "fs" => Ok((root.join(snapshot), true)),
        _ => unsupported(format!("{path:?} is not a snapshot in {root:?}")),
    }
}

#[cfg(test)]
mod tests;
