// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The state of a simulated containerd, and the rules of everything but snapshots.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::behaviour::Behaviour;
use crate::testing::{Effect, Fault, Operation, SimulatedImage};
use crate::{
    Container, ContentInfo, Descriptor, DiffId, Digest, Error, Image, Kind, Labels, LeaseId,
    LeaseInfo, Resource, Result, Scope, SnapshotInfo, SnapshotKey, SnapshotKind, labels,
};

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) namespaces: BTreeMap<Arc<str>, Namespace>,
    pub(super) snapshotters: BTreeMap<String, Behaviour>,
    pub(super) faults: Vec<Fault>,
    pub(super) fired: Vec<Fault>,
    pub(super) calls: BTreeMap<Operation, usize>,
    pub(super) jitter: Option<u64>,
    /// The number of the last snapshot, which stands for its directory.
    pub(super) last_place: u64,
    /// The number of false answers of a lying snapshotter, by layer.
    pub(super) lies: BTreeMap<(String, SnapshotKey), usize>,
    /// The registry of a remote snapshotter: the layers by the digest of their blobs.
    pub(super) registry: BTreeMap<Digest, DiffId>,
}

#[derive(Debug, Default)]
pub(super) struct Namespace {
    pub(super) images: BTreeMap<String, (Descriptor, Labels)>,
    pub(super) blobs: BTreeMap<Digest, (Vec<u8>, Labels)>,
    pub(super) leases: BTreeMap<Arc<str>, Lease>,
    /// By snapshotter and name.
    pub(super) snapshots: BTreeMap<(String, SnapshotKey), Snapshot>,
    pub(super) containers: Vec<Container>,
    /// The bytes of ingests, and whether a client writes to them.
    pub(super) ingests: BTreeMap<String, (Vec<u8>, bool)>,
}

#[derive(Debug)]
pub(super) struct Lease {
    pub(super) created: SystemTime,
    pub(super) labels: Labels,
    pub(super) content: BTreeSet<Digest>,
    pub(super) ingests: BTreeSet<String>,
    pub(super) snapshots: BTreeSet<(String, SnapshotKey)>,
}

#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub(super) place: u64,
    pub(super) kind: SnapshotKind,
    pub(super) parent: Option<SnapshotKey>,
    pub(super) labels: Labels,
    pub(super) content: Vec<DiffId>,
    pub(super) created: SystemTime,
}

impl Snapshot {
    pub(super) fn info(&self, key: &SnapshotKey) -> SnapshotInfo {
        SnapshotInfo {
            key: key.clone(),
            parent: self.parent.clone(),
            kind: self.kind,
            labels: self.labels.clone(),
            created: self.created,
        }
    }
}

pub(super) fn not_found(what: &'static str, subject: impl ToString) -> Error {
    Error::new(Kind::NotFound, what, subject.to_string()).with_source("it does not exist")
}

pub(super) fn check_labels<'a>(
    labels: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Result<()> {
    match labels
        .into_iter()
        .find(|(key, value)| !labels::fits(key, value))
    {
        Some((key, _)) => Err(Error::new(Kind::InvalidArgument, "set label", key.as_str())
            .with_source("it is too long")),
        None => Ok(()),
    }
}

impl State {
    pub(super) fn namespace(&mut self, name: &str) -> &mut Namespace {
        self.namespaces.entry(name.into()).or_default()
    }

    pub(super) fn add_image(&mut self, namespace: &str, name: &str, image: &SimulatedImage) {
        for layer in &image.layers {
            let digest = layer.descriptor.digest.clone();
            self.registry.insert(digest, layer.diff_id.clone());
        }
        let namespace = self.namespace(namespace);
        namespace.set_image(name, image.manifest.clone());
        for (digest, blob) in &image.blobs {
            // An existing blob keeps its labels.
            let there = namespace.blobs.entry(digest.clone());
            there.or_insert_with(|| blob.clone());
        }
    }

    /// Counts a call, and returns its fault and its delay.
    pub(super) fn begin(&mut self, operation: Operation) -> (Option<Effect>, Option<Duration>) {
        let calls = self.calls.entry(operation).or_default();
        *calls += 1;
        let call = *calls;
        let meant = |fault: &&Fault| fault.operation == operation && fault.call == call;
        let fault = self.faults.iter().find(meant).copied();
        self.fired.extend(fault);
        let jitter = self.jitter.as_mut().map(|seed| {
            // Xorshift: the numbers only have to be the same for the same seed.
            *seed ^= *seed << 13;
            *seed ^= *seed >> 7;
            *seed ^= *seed << 17;
            Duration::from_millis(*seed % 8)
        });
        (fault.map(|fault| fault.effect), jitter)
    }
}

impl Namespace {
    pub(super) fn image(&self, name: &str) -> Result<Image> {
        let image = self.images.get(name);
        let (target, labels) = image.ok_or_else(|| not_found("get image", name))?;
        Ok(Image {
            name: name.to_owned(),
            target: target.clone(),
            labels: labels.clone(),
        })
    }

    pub(super) fn set_image(&mut self, name: &str, target: Descriptor) {
        let image = (target, Labels::new());
        self.images.insert(name.to_owned(), image);
    }

    pub(super) fn blob(&self, digest: &Digest) -> Result<&(Vec<u8>, Labels)> {
        let blob = self.blobs.get(digest);
        blob.ok_or_else(|| not_found("read content", digest))
    }

    pub(super) fn content_info(&self, digest: &Digest) -> Result<ContentInfo> {
        let (bytes, labels) = self.blob(digest)?;
        Ok(ContentInfo {
            size: bytes.len() as u64,
            labels: labels.clone(),
        })
    }

    pub(super) fn set_label(&mut self, digest: &Digest, key: String, value: String) -> Result<()> {
        let blob = self.blobs.get_mut(digest);
        let (_, labels) = blob.ok_or_else(|| not_found("label content", digest))?;
        check_labels([(&key, &value)])?;
        labels.insert(key, value);
        Ok(())
    }

    pub(super) fn remove_label(&mut self, digest: &Digest, key: &str) -> Result<()> {
        let blob = self.blobs.get_mut(digest);
        let (_, labels) = blob.ok_or_else(|| not_found("label content", digest))?;
        labels.remove(key);
        Ok(())
    }

    pub(super) fn create_lease(
        &mut self,
        id: &LeaseId,
        labels: Labels,
        created: SystemTime,
    ) -> Result<()> {
        check_labels(&labels)?;
        if self.leases.contains_key(&id.0) {
            return Err(Error::new(Kind::AlreadyExists, "create lease", &*id.0));
        }
        let lease = Lease {
            created,
            labels,
            content: BTreeSet::new(),
            ingests: BTreeSet::new(),
            snapshots: BTreeSet::new(),
        };
        self.leases.insert(Arc::clone(&id.0), lease);
        Ok(())
    }

    pub(super) fn delete_lease(&mut self, id: &LeaseId) -> Result<()> {
        let lease = self.leases.remove(&id.0);
        lease
            .map(drop)
            .ok_or_else(|| not_found("delete lease", &id.0))
    }

    pub(super) fn leases(&self, label: Option<&str>) -> Vec<LeaseInfo> {
        let leases = self.leases.iter();
        leases
            .filter(|(_, lease)| label.is_none_or(|label| lease.labels.contains_key(label)))
            .map(|(id, lease)| LeaseInfo {
                id: LeaseId(Arc::clone(id)),
                created: lease.created,
                labels: lease.labels.clone(),
            })
            .collect()
    }

    pub(super) fn lease(&mut self, id: &LeaseId) -> Result<&mut Lease> {
        let lease = self.leases.get_mut(&id.0);
        lease.ok_or_else(|| not_found("use lease", &id.0))
    }

    /// Adds a snapshot to the lease of a call, if it has one.
    pub(super) fn add_to_lease(
        &mut self,
        scope: &Scope,
        snapshotter: &str,
        key: &SnapshotKey,
    ) -> Result<()> {
        if let Some(id) = &scope.lease {
            let snapshot = (snapshotter.to_owned(), key.clone());
            self.lease(id)?.snapshots.insert(snapshot);
        }
        Ok(())
    }
}

impl Lease {
    /// Adds a resource without a check that it exists, like containerd.
    pub(super) fn add(&mut self, resource: Resource) {
        match resource {
            Resource::Content(digest) => self.content.insert(digest),
            Resource::Ingest(name) => self.ingests.insert(name),
            Resource::Snapshot { snapshotter, key } => self.snapshots.insert((snapshotter, key)),
        };
    }

    pub(super) fn resources(&self) -> Vec<Resource> {
        let content = self.content.iter().cloned().map(Resource::Content);
        let ingests = self.ingests.iter().cloned().map(Resource::Ingest);
        let snapshots = self.snapshots.iter().cloned();
        content
            .chain(ingests)
            .chain(snapshots.map(|(snapshotter, key)| Resource::Snapshot { snapshotter, key }))
            .collect()
    }
}
