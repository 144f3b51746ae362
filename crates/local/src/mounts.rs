// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The mounts of snapshots, in the forms of containerd.
//!
//! | snapshotter | snapshot | mounts |
//! |---|---|---|
//! | any | active, on nothing | a bind mount of `fs` |
//! | overlayfs | active | an overlay of `fs` on those of the layers below |
//! | overlayfs | view | a bind mount, or an overlay of several, read-only |
//! | erofs | active | an `erofs` mount of each image below, the topmost first, and an overlay of `fs` on them |
//! | erofs | view | an `erofs` mount, or several and an overlay of them |
//!
//! `lowerdir={{ overlay 0 2 }}` of an overlay on images stands for the places where the mounts 0 to 2 are mounted
//! (containerd 2.2 `core/mount/manager`).

use std::path::Path;

use resnap_core::Mount;

use crate::layout::Layout;
use crate::snapshotters::EROFS;

/// The file of a layer that is an image, and the marker of such a snapshot (containerd
/// `plugins/snapshots/erofs`).
pub(crate) const IMAGE: &str = "layer.erofs";
pub(crate) const IMAGE_MARKER: &str = ".erofslayer";

/// The directories of a snapshot: of its files, and of what overlayfs needs beside them.
pub(crate) const FILES: &str = "fs";
pub(crate) const WORK: &str = "work";

/// The place of a snapshot in a chain.
pub(crate) struct Place<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) snapshotter: &'a str,
    /// The committed snapshots below, the topmost first.
    pub(crate) below: &'a [i64],
}

impl Place<'_> {
    /// Returns the mounts of the active snapshot of this number.
    pub(crate) fn active(&self, id: i64) -> Vec<Mount> {
        let directory = self.layout.snapshot(self.snapshotter, id);
        let path = |name| directory.join(name).display().to_string();
        if self.below.is_empty() {
            return vec![bind(&path(FILES), "rw")];
        }
        let upper = [
            format!("workdir={}", path(WORK)),
            format!("upperdir={}", path(FILES)),
        ];
        self.overlay(&upper)
    }

    /// Returns the mounts of a view.
    pub(crate) fn view(&self) -> Vec<Mount> {
        match self.below {
            [only] if self.snapshotter == EROFS => vec![self.image(*only)],
            [only] => vec![bind(&self.path(*only, FILES), "ro")],
            _ => self.overlay(&[]),
        }
    }

    fn path(&self, id: i64, name: &str) -> String {
        let directory = self.layout.snapshot(self.snapshotter, id);
        directory.join(Path::new(name)).display().to_string()
    }

    fn image(&self, id: i64) -> Mount {
        Mount {
            kind: "erofs".to_owned(),
            source: self.path(id, IMAGE),
            target: String::new(),
            options: vec!["ro".to_owned(), "loop".to_owned()],
        }
    }

    /// Returns an overlay of the layers below, with the options of an upper directory.
    fn overlay(&self, upper: &[String]) -> Vec<Mount> {
        let is_image = self.snapshotter == EROFS;
        let (mut mounts, lower) = match (is_image, self.below.len()) {
            (false, _) => {
                let lower = self.below.iter().map(|id| self.path(*id, FILES));
                (Vec::new(), lower.collect::<Vec<_>>().join(":"))
            }
            (true, 1) => (Vec::new(), "{{ mount 0 }}".to_owned()),
            (true, count) => (Vec::new(), format!("{{{{ overlay 0 {} }}}}", count - 1)),
        };
        if is_image {
            mounts.extend(self.below.iter().map(|id| self.image(*id)));
        }
        let mut options = upper.to_vec();
        options.push(format!("lowerdir={lower}"));
        mounts.push(Mount {
            kind: if is_image {
                "format/mkdir/overlay"
            } else {
                "overlay"
            }
            .to_owned(),
            source: "overlay".to_owned(),
            target: String::new(),
            options,
        });
        mounts
    }
}

fn bind(source: &str, access: &str) -> Mount {
    Mount {
        kind: "bind".to_owned(),
        source: source.to_owned(),
        target: String::new(),
        options: vec![access.to_owned(), "rbind".to_owned()],
    }
}
