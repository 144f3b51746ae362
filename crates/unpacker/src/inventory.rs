// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The inventory of a namespace: its images and the snapshots of one snapshotter, each read as one
//! list, and what keeps these snapshots from garbage collection.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::sync::Arc;

use futures::future::try_join_all;
use resnap_core::{
    Digest, Error, Image, Labels, LeaseId, LeaseInfo, Resource, SnapshotInfo, SnapshotKey,
    SnapshotKind, labels,
};

use crate::backend::Backend;
use crate::image::rank;

/// A label of a blob that keeps a chain on the snapshotter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChainLabel {
    /// The blob, the config of an image.
    pub(crate) config: Digest,
    pub(crate) label: String,
    /// The top of the chain.
    pub(crate) chain: SnapshotKey,
}

/// The images of one config that is unpacked on a snapshotter.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnpackedImage {
    /// Their names: those with a tag, those with a digest, and bare IDs.
    pub names: Vec<String>,
    /// The snapshot of the top layer.
    pub chain_id: SnapshotKey,
}

impl UnpackedImage {
    /// Returns the first of the names.
    pub fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }
}

/// The images and blobs of a namespace.
#[derive(Debug)]
pub(crate) struct Stores {
    images: Arc<BTreeMap<String, Image>>,
    /// The labels of all blobs.
    blobs: Arc<BTreeMap<Digest, Labels>>,
}

impl Stores {
    pub(crate) async fn read(backend: &Backend) -> Result<Self, Error> {
        let (ports, scope) = (&backend.ports, &backend.scope);
        let (images, blobs) =
            futures::try_join!(ports.images.list(scope), ports.labeler.list(scope))?;
        let images = images.into_iter();
        let images = images.map(|image| (image.name.clone(), image)).collect();
        let blobs = blobs
            .into_iter()
            .map(|(digest, info)| (digest, info.labels))
            .collect();
        Ok(Self {
            images: Arc::new(images),
            blobs: Arc::new(blobs),
        })
    }
}

/// A container or a lease that keeps a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Holder {
    Container(String),
    Lease(LeaseId),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container(id) => write!(f, "container {id}"),
            Self::Lease(id) => write!(f, "lease {}", id.0),
        }
    }
}

/// The containers and leases of a namespace, and the snapshots that they keep.
#[derive(Debug)]
pub(crate) struct Holders {
    pub(crate) leases: Vec<LeaseInfo>,
    /// Each holder with a snapshotter and a snapshot there.
    held: Vec<(Holder, String, SnapshotKey)>,
}

/// The images of a namespace, and the snapshots of one snapshotter.
#[derive(Debug)]
pub(crate) struct Inventory {
    pub(crate) images: Arc<BTreeMap<String, Image>>,
    /// The labels of all blobs.
    pub(crate) blobs: Arc<BTreeMap<Digest, Labels>>,
    pub(crate) snapshots: BTreeMap<SnapshotKey, SnapshotInfo>,
    pub(crate) chain_labels: Vec<ChainLabel>,
    /// The containers and leases with snapshots on the snapshotter.
    pub(crate) holders: Vec<(Holder, SnapshotKey)>,
    /// The names of the images of each blob with a chain label, the best one first.
    names: BTreeMap<Digest, Vec<String>>,
}

impl Inventory {
    pub(crate) async fn read(backend: &Backend, snapshotter: &str) -> Result<Self, Error> {
        let (stores, snapshots) =
            futures::try_join!(Stores::read(backend), list_snapshots(backend, snapshotter))?;
        let holders = Holders::read(backend).await?;
        Ok(Self::new(&stores, snapshotter, snapshots, &holders))
    }

    pub(crate) fn new(
        stores: &Stores,
        snapshotter: &str,
        snapshots: BTreeMap<SnapshotKey, SnapshotInfo>,
        holders: &Holders,
    ) -> Self {
        let Stores { images, blobs } = stores;
        let chain_labels: Vec<ChainLabel> = chain_labels(blobs, snapshotter).collect();
        Self {
            names: names(images, blobs, &chain_labels),
            holders: holders.on(snapshotter),
            images: Arc::clone(images),
            blobs: Arc::clone(blobs),
            snapshots,
            chain_labels,
        }
    }

    /// Returns the images that are unpacked on the snapshotter, ordered by name.
    pub(crate) fn unpacked(&self) -> Vec<UnpackedImage> {
        let mut images = self.labelled();
        images.retain(|image| self.is_committed(&image.chain_id));
        images
    }

    /// Returns the images that keep a chain on the snapshotter, ordered by name, whether or not it has the chain.
    pub(crate) fn labelled(&self) -> Vec<UnpackedImage> {
        let labels = self.chain_labels.iter();
        let images = labels.map(|label| UnpackedImage {
            names: self.names_of(&label.config).to_vec(),
            chain_id: label.chain.clone(),
        });
        let mut images: Vec<_> = images.filter(|image| !image.names.is_empty()).collect();
        images.sort_by(|left, right| left.names.cmp(&right.names));
        images
    }

    /// Returns the blobs that are there and that images keep.
    pub(crate) fn kept_blobs(&self) -> BTreeSet<Digest> {
        let targets = self
            .images
            .values()
            .map(|image| image.target.digest.clone());
        let mut kept = reachable(&self.blobs, targets);
        kept.retain(|digest| self.blobs.contains_key(digest));
        kept
    }

    /// Returns the labels by which an image keeps chains.
    pub(crate) fn labels_of(&self, target: &Digest) -> Vec<&ChainLabel> {
        let reachable = reachable(&self.blobs, [target.clone()]);
        let labels = self.chain_labels.iter();
        labels
            .filter(|label| reachable.contains(&label.config))
            .collect()
    }

    /// Returns the names of the images of a config with a chain label, the best one first.
    pub(crate) fn names_of(&self, config: &Digest) -> &[String] {
        self.names.get(config).map_or(&[], Vec::as_slice)
    }

    /// Returns the snapshots from `top` down to the base. Those that do not exist are left out.
    pub(crate) fn lineage<'a>(
        &'a self,
        top: &'a SnapshotKey,
    ) -> impl Iterator<Item = &'a SnapshotKey> {
        let first = self.snapshots.get(top);
        let below = |info: &&SnapshotInfo| self.snapshots.get(info.parent.as_ref()?);
        std::iter::successors(first, below).map(|info| &info.key)
    }

    /// Returns whether a chain is committed.
    pub(crate) fn is_committed(&self, chain: &SnapshotKey) -> bool {
        let found = self.snapshots.get(chain);
        found.is_some_and(|info| info.kind == SnapshotKind::Committed)
    }

    /// Returns the snapshots that stay if the labels of these chains are removed.
    pub(crate) fn kept_without(&self, chains: &BTreeSet<&SnapshotKey>) -> HashSet<&SnapshotKey> {
        let labels = self.chain_labels.iter().map(|label| &label.chain);
        let labels = labels.filter(|chain| !chains.contains(chain));
        let holders = self.holders.iter().map(|(_, key)| key);
        let roots = self.snapshots.values();
        let roots = roots.filter(|info| info.labels.contains_key(labels::GC_ROOT));
        let mut kept = HashSet::new();
        for root in labels.chain(holders).chain(roots.map(|info| &info.key)) {
            for key in self.lineage(root) {
                if !kept.insert(key) {
                    break;
                }
            }
        }
        kept
    }
}

/// Returns all snapshots of a snapshotter, by their keys.
pub(crate) async fn list_snapshots(
    backend: &Backend,
    snapshotter: &str,
) -> Result<BTreeMap<SnapshotKey, SnapshotInfo>, Error> {
    let snapshotter = backend.snapshotter(snapshotter);
    let snapshots = snapshotter.list(&backend.scope).await?.into_iter();
    Ok(snapshots.map(|info| (info.key.clone(), info)).collect())
}

/// Returns the labels of blobs that keep chains on a snapshotter. A slash and any text may follow its
/// name in the label (containerd `core/metadata/gc.go`).
fn chain_labels<'a>(
    blobs: &'a BTreeMap<Digest, Labels>,
    snapshotter: &'a str,
) -> impl Iterator<Item = ChainLabel> + 'a {
    blobs.iter().flat_map(move |(config, labels)| {
        labels.iter().filter_map(move |(label, chain)| {
            let rest = label.strip_prefix(labels::GC_SNAPSHOT_PREFIX)?;
            let rest = rest.strip_prefix(snapshotter)?;
            (rest.is_empty() || rest.starts_with('/')).then(|| ChainLabel {
                config: config.clone(),
                label: label.clone(),
                chain: SnapshotKey::from(chain.clone()),
            })
        })
    })
}

/// Returns the blobs that garbage collection keeps with `targets`, as the labels say.
fn reachable(
    blobs: &BTreeMap<Digest, Labels>,
    targets: impl IntoIterator<Item = Digest>,
) -> BTreeSet<Digest> {
    let mut reachable = BTreeSet::new();
    let mut next: Vec<Digest> = targets.into_iter().collect();
    while let Some(digest) = next.pop() {
        let labels = blobs.get(&digest).into_iter().flatten();
        let references = labels.filter(|(key, _)| key.starts_with(labels::GC_CONTENT_PREFIX));
        let references = references.filter_map(|(_, value)| value.parse().ok());
        if reachable.insert(digest.clone()) {
            next.extend(references);
        }
    }
    reachable
}

fn names(
    images: &BTreeMap<String, Image>,
    blobs: &BTreeMap<Digest, Labels>,
    chain_labels: &[ChainLabel],
) -> BTreeMap<Digest, Vec<String>> {
    let configs: BTreeSet<&Digest> = chain_labels.iter().map(|label| &label.config).collect();
    let mut by_target: BTreeMap<&Digest, Vec<&String>> = BTreeMap::new();
    for image in images.values() {
        let names = by_target.entry(&image.target.digest).or_default();
        names.push(&image.name);
    }
    let mut names: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
    for (target, of_target) in by_target {
        for digest in reachable(blobs, [target.clone()]) {
            if configs.contains(&digest) {
                let names = names.entry(digest).or_default();
                names.extend(of_target.iter().copied().cloned());
            }
        }
    }
    for names in names.values_mut() {
        names.sort_by(|left, right| (rank(left), left).cmp(&(rank(right), right)));
    }
    names
}

impl Holders {
    pub(crate) async fn read(backend: &Backend) -> Result<Self, Error> {
        let (ports, scope) = (&backend.ports, &backend.scope);
        let (containers, leases) =
            futures::try_join!(ports.containers.list(scope), ports.leases.list(scope, None))?;
        let containers = containers.into_iter();
        let mut held: Vec<_> = containers
            .map(|container| {
                let holder = Holder::Container(container.id);
                (holder, container.snapshotter, container.snapshot)
            })
            .collect();
        let resources = leases.iter().map(async |lease| {
            match ports.leases.resources(scope, &lease.id).await {
                // It has ended meanwhile.
                Err(error) if error.is_not_found() => Ok(Vec::new()),
                resources => resources,
            }
        });
        for (lease, resources) in leases.iter().zip(try_join_all(resources).await?) {
            for resource in resources {
                if let Resource::Snapshot { snapshotter, key } = resource {
                    held.push((Holder::Lease(lease.id.clone()), snapshotter, key));
                }
            }
        }
        Ok(Self { leases, held })
    }

    /// Returns those that keep snapshots of a snapshotter.
    fn on(&self, snapshotter: &str) -> Vec<(Holder, SnapshotKey)> {
        let held = self
            .held
            .iter()
            .filter(|(_, owner, _)| owner == snapshotter);
        held.map(|(holder, _, key)| (holder.clone(), key.clone()))
            .collect()
    }
}
