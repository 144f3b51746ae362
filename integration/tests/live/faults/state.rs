// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The state of an image in a containerd, by its API and in its files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use resnap_core::labels::{GC_EXPIRE, GC_SNAPSHOT_PREFIX};
use resnap_core::{
    ChainId, Descriptor, Digest, Labels, LeaseId, Ports, Scope, SnapshotInfo, SnapshotKey,
    SnapshotKind, Snapshotter,
};
use resnap_integration::image::Built;
use tokio::runtime::Runtime;

use super::stored::{Layers, differences, stored};
use crate::connection::Connection;
use crate::node::{Node, unique};
use crate::poll::{DEADLINE, eventually};
use crate::unpack::{IMAGE_WRITER, expected_labels};

/// A connection to a containerd for an image in a namespace.
pub(crate) struct State {
    runtime: Runtime,
    ports: Ports,
    scope: Scope,
    pub(crate) image: Built,
    content: PathBuf,
}

/// The labels that a layer may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Labelled {
    /// All.
    Fully,
    /// All or none.
    FullyOrNot,
    /// Any: another client has made it.
    Anyhow,
}

impl State {
    pub(crate) fn new(node: &Node, image: &Built) -> Result<Self> {
        let Connection { runtime, ports } = Connection::new(&node.containerd)?;
        Ok(Self {
            runtime,
            ports,
            scope: Scope::new(&node.namespace),
            image: image.clone(),
            content: node
                .containerd
                .root()
                .join("io.containerd.content.v1.content"),
        })
    }

    fn snapshotter(&self, name: &str) -> Arc<dyn Snapshotter> {
        self.ports.snapshotters.snapshotter(name)
    }

    fn chain(&self, index: usize) -> Result<ChainId> {
        let digest: Digest = self.image.layers[index].chain_id.parse()?;
        Ok(ChainId::from_trusted(digest))
    }

    pub(crate) fn snapshots(&self, snapshotter: &str) -> Result<Vec<SnapshotInfo>> {
        let list = self.snapshotter(snapshotter);
        Ok(self.runtime.block_on(list.list(&self.scope))?)
    }

    /// Returns the committed layers by their indexes, and the keys of all other snapshots.
    fn layers(&self, snapshotter: &str) -> Result<(BTreeMap<usize, SnapshotInfo>, Vec<String>)> {
        let (mut layers, mut others) = (BTreeMap::new(), Vec::new());
        for info in self.snapshots(snapshotter)? {
            let key = info.key.as_str().to_owned();
            let index = self
                .image
                .layers
                .iter()
                .position(|layer| layer.chain_id == key);
            match index.filter(|_| info.kind == SnapshotKind::Committed) {
                Some(index) => _ = layers.insert(index, info),
                None => others.push(key),
            }
        }
        Ok((layers, others))
    }

    /// Returns the number of layers.
    pub(crate) fn committed(&self, snapshotter: &str) -> Result<usize> {
        Ok(self.layers(snapshotter)?.0.len())
    }

    /// Removes all snapshots, by garbage collection: containerd counts children that it has collected, and
    /// removes no parent of such a one.
    pub(crate) fn clear(&self, snapshotters: &[&str]) -> Result<()> {
        let config: Digest = self.image.config.parse()?;
        for snapshotter in snapshotters {
            let label = keeps(snapshotter);
            let labeler = &self.ports.labeler;
            let remove = labeler.remove_label(&self.scope, &config, &label);
            self.runtime.block_on(remove)?;
        }
        eventually("no snapshot is left", DEADLINE, || {
            self.expire()?;
            for snapshotter in snapshotters {
                if !self.layers(snapshotter)?.0.is_empty() {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// Waits until containerd answers again.
    pub(crate) fn reconnect(&self) -> Result<()> {
        eventually("containerd answers again", DEADLINE, || {
            Ok(self.leases().is_ok())
        })
    }

    /// Returns the leases of jobs, and those that never expire.
    pub(crate) fn leases(&self) -> Result<Vec<String>> {
        let list = self.ports.leases.list(&self.scope, None);
        let mut leases = self.runtime.block_on(list)?;
        leases.retain(|lease| {
            lease.id.0.starts_with("resnap-") || !lease.labels.contains_key(GC_EXPIRE)
        });
        Ok(leases
            .into_iter()
            .map(|lease| lease.id.0.to_string())
            .collect())
    }

    /// Deletes all leases and collects the garbage, as when all have expired.
    pub(crate) fn expire(&self) -> Result<()> {
        let leases = self
            .runtime
            .block_on(self.ports.leases.list(&self.scope, None))?;
        for lease in leases {
            let delete = self.ports.leases.delete(&self.scope, &lease.id);
            match self.runtime.block_on(delete) {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        self.collect_garbage()
    }

    pub(crate) fn collect_garbage(&self) -> Result<()> {
        let collect = self.ports.leases.collect_garbage(&self.scope);
        Ok(self.runtime.block_on(collect)?)
    }

    /// Returns the directories and images that each of the lowest `count` layers adds to a mount.
    fn places(
        &self,
        snapshotter: &str,
        indexes: impl Iterator<Item = usize>,
    ) -> Result<BTreeMap<usize, BTreeSet<PathBuf>>> {
        let of = self.snapshotter(snapshotter);
        // A view that garbage collection takes keeps its parent from being removed.
        let (scope, lease) = self.leased("look")?;
        let mut known = BTreeSet::new();
        let mut places = BTreeMap::new();
        for index in indexes {
            let key = SnapshotKey::from(unique("look"));
            let chain = self.chain(index)?;
            let mounts = self.runtime.block_on(of.view(&scope, &key, &chain))?;
            self.runtime.block_on(of.remove(&scope, &key))?;
            let mut paths = BTreeSet::new();
            for mount in &mounts {
                let lower = mount
                    .options
                    .iter()
                    .filter_map(|option| option.strip_prefix("lowerdir="));
                let all = lower
                    .flat_map(|dirs| dirs.split(':'))
                    .chain([&*mount.source]);
                paths.extend(all.filter(|path| path.starts_with('/')).map(PathBuf::from));
            }
            let own: BTreeSet<_> = paths.difference(&known).cloned().collect();
            known.extend(paths);
            places.insert(index, own);
        }
        let leases = &self.ports.leases;
        self.runtime.block_on(leases.delete(&self.scope, &lease))?;
        Ok(places)
    }

    /// Returns what is stored of each layer that is there.
    pub(crate) fn stored(&self, snapshotter: &str) -> Result<Layers> {
        let (layers, _) = self.layers(snapshotter)?;
        let places = self.places(snapshotter, layers.into_keys())?;
        let read = |(index, paths): (usize, BTreeSet<PathBuf>)| {
            let stored: Result<Vec<_>> = paths.iter().map(|path| stored(path)).collect();
            Ok((index, stored?))
        };
        places.into_iter().map(read).collect()
    }

    /// Checks that each layer that is there is what it was before, with its labels.
    pub(crate) fn is_right(
        &self,
        snapshotter: &str,
        expected: &Layers,
        labelled: Labelled,
    ) -> Result<()> {
        // Garbage that is about to go would be there in a list, and not when it is read.
        self.collect_garbage()?;
        let (layers, _) = self.layers(snapshotter)?;
        for (index, info) in &layers {
            let mut labels = info.labels.clone();
            labels.remove(IMAGE_WRITER);
            labels.remove("resnap.io/copied-from");
            if labelled == Labelled::FullyOrNot && labels.len() == 1 {
                // containerd's own.
                labels.remove("containerd.io/snapshot.ref");
            }
            let spared = match labelled {
                Labelled::Fully => false,
                Labelled::FullyOrNot => labels.is_empty(),
                Labelled::Anyhow => true,
            };
            let want = expected_labels(&self.image, *index);
            ensure!(
                labels == want || spared,
                "layer {index} on {snapshotter} has the labels {labels:#?}\nwant {want:#?}"
            );
        }
        for (index, stored) in self.stored(snapshotter)? {
            let want = &expected[&index];
            let differences = differences(want, &stored);
            ensure!(
                differences.is_empty(),
                "layer {index} on {snapshotter} is wrong: {differences}"
            );
        }
        Ok(())
    }

    /// Checks that exactly this number of layers is there, that nothing else is but the layers of `other`, and
    /// that garbage collection takes none.
    pub(crate) fn has_only(
        &self,
        snapshotter: &str,
        count: usize,
        other: Option<&Built>,
    ) -> Result<()> {
        self.collect_garbage()?;
        let (layers, mut others) = self.layers(snapshotter)?;
        let known = other.into_iter().flat_map(|image| &image.layers);
        let known: BTreeSet<&str> = known.map(|layer| &*layer.chain_id).collect();
        others.retain(|key| !known.contains(&**key));
        ensure!(
            others.is_empty(),
            "snapshots are left on {snapshotter}: {others:?}"
        );
        let have = layers.len();
        ensure!(
            have == count,
            "{have} layers are on {snapshotter}, want {count}"
        );
        Ok(())
    }

    /// Checks that no lease and no half-written blob is left.
    pub(crate) fn is_clean(&self) -> Result<()> {
        let leases = self.leases()?;
        ensure!(leases.is_empty(), "leases are left: {leases:?}");
        let ingests = names(&self.content.join("ingest"))?;
        ensure!(
            ingests.is_empty(),
            "half-written blobs are left: {ingests:?}"
        );
        Ok(())
    }

    /// Unpacks the image as a client does that sets no labels.
    pub(crate) fn unpack_bare(&self, snapshotter: &str) -> Result<()> {
        let (scope, lease) = self.leased("bare")?;
        let leases = &self.ports.leases;
        self.runtime.block_on(async {
            self.unpack_under(&scope, snapshotter).await?;
            Ok(leases.delete(&self.scope, &lease).await?)
        })
    }

    /// Makes a lease, and returns the scope of calls under it.
    fn leased(&self, name: &str) -> Result<(Scope, LeaseId)> {
        let lease = LeaseId(unique(name).into());
        let (leases, none) = (&self.ports.leases, Labels::new());
        let create = leases.create(&self.scope, &lease, &none);
        self.runtime.block_on(create)?;
        Ok((self.scope.leased(lease.clone()), lease))
    }

    async fn unpack_under(&self, scope: &Scope, snapshotter: &str) -> Result<()> {
        let on = self.snapshotter(snapshotter);
        let none = Labels::new();
        let mut parent = None;
        for (index, layer) in self.image.layers.iter().enumerate() {
            let key = SnapshotKey::from(unique("bare"));
            let mounts = on.prepare(scope, &key, parent.as_ref(), &none).await?;
            let descriptor = Descriptor {
                media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
                digest: layer.digest.parse()?,
                size: layer.size,
                annotations: BTreeMap::new(),
                platform: None,
            };
            let applier = &self.ports.applier;
            applier.apply(scope, &descriptor, &mounts, false).await?;
            let chain = self.chain(index)?;
            on.commit(scope, &chain, &key, &none).await?;
            parent = Some(chain);
        }
        let top = parent.context("an image without layers")?;
        let (config, label) = (self.image.config.parse()?, keeps(snapshotter));
        let labeler = &self.ports.labeler;
        Ok(labeler
            .set_label(scope, &config, &label, top.as_str())
            .await?)
    }
}

/// Returns the label by which a config keeps its snapshots.
fn keeps(snapshotter: &str) -> String {
    format!("{GC_SNAPSHOT_PREFIX}{snapshotter}")
}

/// Returns the names in a directory, none if it does not exist.
pub(crate) fn names(dir: &Path) -> Result<Vec<String>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(dir)?;
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}
