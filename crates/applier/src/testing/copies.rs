// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Chains of `overlayfs`, and copies of their layers.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use resnap_core::media_type::Compression;
use resnap_core::testing::NoopMonitor;
use resnap_core::{ChainView, LayerCopy, Mount, SnapshotInfo, SnapshotKey, SnapshotKind, labels};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::tree;
use super::writing::{extract, of_stream, write, write_index};
use crate::erofs::Parent;
use crate::error::Error;
use crate::guard::Guard;
use crate::pipeline::Work;
use crate::sibling::{self, Entries};

/// A chain of snapshots below a root of `overlayfs`.
pub(crate) struct Chain {
    root: TempDir,
    /// The directories of the layers, the base first.
    pub(crate) layers: Vec<PathBuf>,
    /// The same layers from their blobs.
    images: Vec<Parent>,
}

impl Chain {
    pub(crate) fn new(within: &Path) -> Self {
        Self {
            root: tempfile::tempdir_in(within).unwrap(),
            layers: Vec::new(),
            images: Vec::new(),
        }
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    /// Makes a snapshot with nothing in it.
    pub(crate) fn add_empty(&mut self) -> PathBuf {
        let number = self.layers.len() + 1;
        let snapshot = self.root().join(format!("snapshots/{number}"));
        let directory = snapshot.join("fs");
        fs::create_dir_all(&directory).unwrap();
        fs::create_dir(snapshot.join("work")).unwrap();
        self.layers.push(directory.clone());
        directory
    }

    /// Adds a layer from its stream. Returns whether it can be written.
    pub(crate) fn add(&mut self, stream: &[u8]) -> bool {
        let below = self.below(&self.layers);
        let images = self.images.iter().rev().cloned().collect::<Vec<_>>();
        let directory = self.add_empty();
        let image = directory.with_file_name("layer.erofs");
        // A chain has images of both forms.
        let written = match images.len() % 2 {
            0 => of_stream(stream, |layer| write(layer, &image, &images)),
            _ => write_index(stream, &image, &images),
        };
        let extracted = of_stream(stream, |layer| extract(layer, &directory, &below));
        match (extracted, written) {
            (Ok(()), Ok(image)) => {
                self.images.push(image);
                true
            }
            _ => {
                self.layers.pop();
                false
            }
        }
    }

    /// Returns directories, the topmost first.
    fn below(&self, layers: &[PathBuf]) -> Vec<PathBuf> {
        layers.iter().rev().cloned().collect()
    }

    /// Returns a view of the chain as images, as erofs of containerd 2.2 and later has it.
    pub(crate) fn view_of_images(&self) -> ChainView {
        let mut view = self.view();
        "erofs".clone_into(&mut view.snapshotter);
        for snapshot in &mut view.snapshots {
            let (key, value) = (labels::IMAGE_WRITER.to_owned(), "resnap".to_owned());
            snapshot.labels.insert(key, value);
        }
        let mount = |directory: &PathBuf| Mount {
            kind: "erofs".to_owned(),
            source: directory
                .with_file_name("layer.erofs")
                .display()
                .to_string(),
            options: vec!["ro".to_owned()],
            ..Mount::default()
        };
        view.mounts = self.layers.iter().rev().map(mount).collect();
        view.mounts.push(Mount {
            kind: "format/mkdir/overlay".to_owned(),
            source: "overlay".to_owned(),
            options: vec![format!(
                "lowerdir={{{{ overlay 0 {} }}}}",
                self.layers.len() - 1
            )],
            ..Mount::default()
        });
        view
    }

    /// Returns a view of the chain.
    pub(crate) fn view(&self) -> ChainView {
        let show = |path: &PathBuf| path.display().to_string();
        let lower: Vec<_> = self.layers.iter().rev().map(show).collect();
        let mount = match &lower[..] {
            [only] => Mount {
                kind: "bind".to_owned(),
                source: only.clone(),
                options: vec!["ro".to_owned(), "rbind".to_owned()],
                ..Mount::default()
            },
            _ => Mount {
                kind: "overlay".to_owned(),
                source: "overlay".to_owned(),
                options: vec![
                    "index=off".to_owned(),
                    format!("lowerdir={}", lower.join(":")),
                ],
                ..Mount::default()
            },
        };
        let key = |number: usize| SnapshotKey::from(format!("snapshot {number}"));
        let snapshot = |number| SnapshotInfo {
            key: key(number),
            parent: (number > 0).then(|| key(number - 1)),
            kind: SnapshotKind::Committed,
            labels: Default::default(),
            created: SystemTime::now(),
        };
        ChainView {
            snapshotter: "overlayfs".to_owned(),
            mounts: vec![mount],
            snapshots: (0..self.layers.len()).map(snapshot).collect(),
        }
    }

    /// Copies a layer from its directory with `consume`.
    #[cfg(test)]
    pub(crate) fn copy<T>(
        &self,
        index: usize,
        consume: impl FnOnce(&mut Entries<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.copy_from(self.view(), index, consume)
    }

    /// Copies a layer of a view with `consume`.
    pub(crate) fn copy_from<T>(
        &self,
        view: ChainView,
        index: usize,
        consume: impl FnOnce(&mut Entries<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let copy = LayerCopy {
            chain: Arc::new(view),
            index,
        };
        let guard = Guard::from(CancellationToken::new());
        let layer = sibling::open(&copy, self.root(), 0, &guard)?;
        let work = Work {
            index,
            compression: Compression::None,
            limit: u64::MAX,
            guard,
            monitor: Arc::new(NoopMonitor),
        };
        layer.run(&work, consume).map(|(done, _)| done)
    }

    /// Copies all layers to other chains, and checks that they are those of the blobs.
    pub(crate) fn check(&self) {
        if let Some(difference) = self.differences() {
            panic!("{difference}");
        }
        if self.images.len() == self.layers.len()
            && !self.images.is_empty()
            && let Some(difference) = self.differences_from(&self.view_of_images())
        {
            panic!("from images: {difference}");
        }
    }

    /// Returns the differences between the copies and the layers of the blobs.
    pub(crate) fn differences(&self) -> Option<String> {
        self.differences_from(&self.view())
    }

    fn differences_from(&self, view: &ChainView) -> Option<String> {
        let root = tempfile::tempdir_in(self.root()).unwrap();
        let (mut directories, mut images) = (Vec::new(), Vec::new());
        for (index, from) in self.layers.iter().enumerate() {
            let to = root.path().join(index.to_string());
            fs::create_dir(&to).unwrap();
            let extracted = self.copy_from(view.clone(), index, |layer| {
                extract(layer, &to, &directories)
            });
            extracted.unwrap();
            let image = to.with_extension("erofs");
            let image = self.copy_from(view.clone(), index, |layer| write(layer, &image, &images));
            let image = image.unwrap();
            let (one, other) = (tree::on_disk(from), tree::on_disk(&to));
            let differences = tree::differences(&one, &other);
            if !differences.is_empty() {
                return Some(format!("layer {index}: {differences:#?}"));
            }
            if let Some(from) = self.images.get(index) {
                let (one, other) = (tree::in_image(from), tree::in_image(&image));
                let differences = tree::differences(&one, &other);
                if !differences.is_empty() {
                    return Some(format!("image of layer {index}: {differences:#?}"));
                }
            }
            directories.insert(0, to);
            images.insert(0, image);
        }
        None
    }
}
