// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers as snapshotters store them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use resnap_integration::debian::output;
use resnap_integration::tree::{self, Kind, Tree, compare};

/// A layer as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stored {
    /// A directory.
    Files(Tree),
    /// An EROFS image, as the kernel mounts it.
    Image(Tree),
}

impl Stored {
    fn tree(&self) -> &Tree {
        match self {
            Self::Files(tree) | Self::Image(tree) => tree,
        }
    }
}

/// The stored layers of an image on a snapshotter, by their places from the lowest on.
pub(crate) type Layers = BTreeMap<usize, Vec<Stored>>;

/// Returns how the parts of a layer differ, in whatever order they are.
pub(super) fn differences(want: &[Stored], have: &[Stored]) -> String {
    if want.len() != have.len() {
        return format!("it has {} parts, not {}", have.len(), want.len());
    }
    let unmet = want.iter().filter(|want| {
        let same = |have: &&Stored| compare(want.tree(), have.tree()).is_empty();
        !have.iter().any(|have| same(&have))
    });
    let texts = unmet.map(|want| {
        let all = have.iter().map(|have| compare(want.tree(), have.tree()));
        let closest = all.min_by_key(Vec::len).unwrap_or_default();
        let closest = closest.iter().map(|difference| format!("{difference}; "));
        closest.collect::<String>()
    });
    texts.collect()
}

/// Returns what is stored at a path. Whiteouts, and directories that a layer does not state, have the time of their
/// unpack.
pub(super) fn stored(path: &Path) -> Result<Stored> {
    if !path.is_file() {
        return Ok(Stored::Files(files(path)?));
    }
    let dir = tempfile::tempdir()?;
    let [image, at] = [path, dir.path()].map(|path| path.as_os_str());
    let mount = ["mount", "-t", "erofs", "-o", "loop,ro"];
    output(Command::new(mount[0]).args(&mount[1..]).args([image, at]))?;
    let tree = files(dir.path());
    // A process of another test may have been started meanwhile, and have it in its namespace.
    output(Command::new("umount").arg("--lazy").arg(at))?;
    Ok(Stored::Image(tree?))
}

fn files(path: &Path) -> Result<Tree> {
    let mut tree = tree::read(path)?;
    for node in tree.nodes.values_mut() {
        if node.kind == Kind::Directory || node.device == Some((0, 0)) {
            node.mtime = (0, 0);
        }
    }
    Ok(tree)
}
