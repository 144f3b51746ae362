// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The ports: the interface of the engine to a containerd, or to a substitute for one.
//!
//! All methods may be called concurrently. Dropping a returned future only stops waiting: as with any
//! RPC, the backend may still do the work. Calls that create something are therefore made under a lease
//! and undone by name. No method retries.

use std::any::Any;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    Applier, ByteStream, ChainId, Descriptor, Digest, Labels, LeaseId, Mount, Platform, Result,
    Scope, SnapshotInfo, SnapshotKey, Usage,
};

/// An image record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The reference, or a bare `sha256:…` image ID as the CRI plugin keeps one.
    pub name: String,
    /// The index or manifest.
    pub target: Descriptor,
    /// The labels of the record.
    pub labels: Labels,
}

/// The image store.
#[async_trait]
pub trait Images: Send + Sync {
    /// Returns the record of exactly this name; [`Kind::NotFound`](crate::Kind::NotFound) if there is
    /// none.
    async fn get(&self, scope: &Scope, name: &str) -> Result<Image>;
    /// Returns all records of the namespace, in no particular order.
    async fn list(&self, scope: &Scope) -> Result<Vec<Image>>;
    /// Returns the records of this target, in no particular order. The default searches all records.
    async fn of_target(&self, scope: &Scope, target: &Digest) -> Result<Vec<Image>> {
        let mut images = self.list(scope).await?;
        images.retain(|image| image.target.digest == *target);
        Ok(images)
    }
}

/// The content store's record of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentInfo {
    /// The size in bytes.
    pub size: u64,
    /// The blob's labels.
    pub labels: Labels,
}

/// Reads the content store.
#[async_trait]
pub trait ContentReader: Send + Sync {
    /// Returns size and labels of a blob; [`Kind::NotFound`](crate::Kind::NotFound) if it does not
    /// exist.
    async fn info(&self, scope: &Scope, digest: &Digest) -> Result<ContentInfo>;
    /// Returns the blob's bytes, unchecked ([`read_verified`](crate::read_verified) checks). For a blob
    /// that does not exist, the result or the stream's first item is
    /// [`Kind::NotFound`](crate::Kind::NotFound).
    async fn open(&self, scope: &Scope, digest: &Digest) -> Result<ByteStream>;
    /// Returns those of `digests` whose blobs exist. The default looks them up one after the other.
    async fn existing(&self, scope: &Scope, digests: &[Digest]) -> Result<HashSet<Digest>> {
        let mut existing = HashSet::new();
        for digest in digests {
            match self.info(scope, digest).await {
                Ok(_) => _ = existing.insert(digest.clone()),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(existing)
    }
    /// Does work on many bytes that were read, such as parsing them. The default does it in place; a
    /// wrapper of the port may move it elsewhere. See [`work_on`](crate::work_on).
    async fn work(&self, work: Work) {
        work();
    }
    /// Waits until one more reader may hold a large document. The default does not wait; a wrapper of
    /// the port may limit the number of readers. See [`LargeRead`](crate::LargeRead).
    async fn admit_large_read(&self) -> LargeReadPermit {
        Box::new(())
    }
}

/// A permission that is returned on drop.
pub type LargeReadPermit = Box<dyn Any + Send>;

/// A piece of work.
pub type Work = Box<dyn FnOnce() + Send>;

/// The labels of blobs.
#[async_trait]
pub trait ContentLabeler: Send + Sync {
    /// Sets one label and keeps the others.
    async fn set_label(&self, scope: &Scope, digest: &Digest, key: &str, value: &str)
    -> Result<()>;
    /// Removes one label, if the blob has it, and keeps the others.
    async fn remove_label(&self, scope: &Scope, digest: &Digest, key: &str) -> Result<()>;
    /// Returns the records of all blobs of the namespace.
    async fn list(&self, scope: &Scope) -> Result<BTreeMap<Digest, ContentInfo>>;
}

/// Writes blobs to the content store.
#[async_trait]
pub trait ContentWriter: Send + Sync {
    /// Opens the ingest of this name exclusively, and creates it if there is none. A blob of
    /// `descriptor` is to be written. [`Kind::AlreadyExists`](crate::Kind::AlreadyExists) if the blob
    /// exists; [`Kind::Unavailable`](crate::Kind::Unavailable) while another client writes to the
    /// ingest. Dropping the ingest ends the writing; its bytes stay for the next client.
    async fn ingest(
        &self,
        scope: &Scope,
        name: &str,
        descriptor: &Descriptor,
    ) -> Result<Box<dyn Ingest>>;
    /// Returns the number of bytes written to an ingest, also while another client writes to it;
    /// [`Kind::NotFound`](crate::Kind::NotFound) if there is none.
    async fn written(&self, scope: &Scope, name: &str) -> Result<u64>;
    /// Removes an ingest and its bytes; [`Kind::NotFound`](crate::Kind::NotFound) if there is none.
    async fn abort(&self, scope: &Scope, name: &str) -> Result<()>;
}

/// An ingest that is being written.
#[async_trait]
pub trait Ingest: Send {
    /// Returns the number of bytes written so far, also by earlier clients.
    fn offset(&self) -> u64;
    /// Appends bytes.
    async fn write(&mut self, bytes: Bytes) -> Result<()>;
    /// Makes a blob of the ingest if size and digest are those of the descriptor, with these labels.
    /// [`Kind::FailedPrecondition`](crate::Kind::FailedPrecondition) if they are not;
    /// [`Kind::AlreadyExists`](crate::Kind::AlreadyExists) if the blob exists by now.
    async fn commit(self: Box<Self>, labels: &Labels) -> Result<()>;
}

/// One snapshotter (containerd `core/snapshots/snapshotter.go`).
#[async_trait]
pub trait Snapshotter: Send + Sync {
    /// Returns the snapshot of a name; [`Kind::NotFound`](crate::Kind::NotFound) if there is none.
    async fn stat(&self, scope: &Scope, key: &SnapshotKey) -> Result<SnapshotInfo>;
    /// Creates an active snapshot on `parent`. [`Kind::AlreadyExists`](crate::Kind::AlreadyExists) if
    /// `key` is taken. A remote snapshotter also answers so if the layer in the label `snapshot.ref`
    /// needs no unpacking.
    async fn prepare(
        &self,
        scope: &Scope,
        key: &SnapshotKey,
        parent: Option<&ChainId>,
        labels: &Labels,
    ) -> Result<Vec<Mount>>;
    /// Creates a view of the committed snapshot `parent`.
    /// [`Kind::AlreadyExists`](crate::Kind::AlreadyExists) if `key` is taken.
    async fn view(&self, scope: &Scope, key: &SnapshotKey, parent: &ChainId) -> Result<Vec<Mount>>;
    /// Commits the active snapshot `key` as `name`, with the parent that Prepare set.
    /// [`Kind::AlreadyExists`](crate::Kind::AlreadyExists) if `name` exists.
    async fn commit(
        &self,
        scope: &Scope,
        name: &ChainId,
        key: &SnapshotKey,
        labels: &Labels,
    ) -> Result<()>;
    /// Removes a snapshot; [`Kind::FailedPrecondition`](crate::Kind::FailedPrecondition) if it has
    /// children.
    async fn remove(&self, scope: &Scope, key: &SnapshotKey) -> Result<()>;
    /// Sets these labels of a snapshot and keeps its others. An empty value removes a label.
    async fn set_labels(&self, scope: &Scope, key: &SnapshotKey, labels: &Labels) -> Result<()>;
    /// Returns the direct children of `parent`, in no particular order.
    async fn children(&self, scope: &Scope, parent: &SnapshotKey) -> Result<Vec<SnapshotInfo>>;
    /// Returns all snapshots of the namespace, in no particular order.
    async fn list(&self, scope: &Scope) -> Result<Vec<SnapshotInfo>>;
    /// Returns the disk space of a snapshot without its parents.
    async fn usage(&self, scope: &Scope, key: &SnapshotKey) -> Result<Usage>;
}

/// The snapshotters of a backend.
pub trait Snapshotters: Send + Sync {
    /// Returns the snapshotter of this name. If there is none, the first call fails.
    fn snapshotter(&self, name: &str) -> Arc<dyn Snapshotter>;
}

/// A resource that a lease can hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// A blob and everything it refers to.
    Content(Digest),
    /// The ingest of this name.
    Ingest(String),
    /// A snapshot and its ancestors.
    Snapshot {
        /// The snapshotter.
        snapshotter: String,
        /// The key of an active or committed snapshot.
        key: SnapshotKey,
    },
}

/// A lease that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseInfo {
    /// Its name.
    pub id: LeaseId,
    /// The time of creation.
    pub created: SystemTime,
    /// Its labels.
    pub labels: Labels,
}

/// The lease store. A lease cannot be changed. After it has expired, garbage collection removes it and
/// everything that only it held.
#[async_trait]
pub trait Leases: Send + Sync {
    /// Creates a lease; [`Kind::AlreadyExists`](crate::Kind::AlreadyExists) if the name is taken.
    async fn create(&self, scope: &Scope, lease: &LeaseId, labels: &Labels) -> Result<()>;
    /// Deletes a lease; [`Kind::NotFound`](crate::Kind::NotFound) if there is none.
    async fn delete(&self, scope: &Scope, lease: &LeaseId) -> Result<()>;
    /// Adds a resource to a lease. The resource is *not* checked for existence.
    async fn add_resource(&self, scope: &Scope, lease: &LeaseId, resource: &Resource)
    -> Result<()>;
    /// Returns the leases of the namespace, or those that have a label of this name, in no particular
    /// order.
    async fn list(&self, scope: &Scope, label: Option<&str>) -> Result<Vec<LeaseInfo>>;
    /// Returns the resources of a lease, in no particular order, without those that are no [`Resource`].
    /// [`Kind::NotFound`](crate::Kind::NotFound) if there is no such lease.
    async fn resources(&self, scope: &Scope, lease: &LeaseId) -> Result<Vec<Resource>>;
    /// Collects garbage, and returns when it is gone. The time limit is ten minutes: files are removed.
    async fn collect_garbage(&self, scope: &Scope) -> Result<()>;
}

/// The description of a snapshotter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotterInfo {
    /// Its name.
    pub name: String,
    /// The capabilities it reports (`rebase`, `remap-ids`, …); empty before containerd 2.0.
    pub capabilities: Vec<String>,
    /// The platforms it reports.
    pub platforms: Vec<Platform>,
    /// The directory of its snapshots, if it reports one.
    pub root: Option<String>,
    /// The reason why it failed to load, if it did.
    pub failure: Option<String>,
}

/// Describes the backend.
#[async_trait]
pub trait Introspection: Send + Sync {
    /// Returns all snapshotters, including those that failed to load, ordered by name.
    async fn snapshotters(&self) -> Result<Vec<SnapshotterInfo>>;
    /// Returns a unique name of this backend that stays the same across restarts.
    async fn identity(&self) -> Result<String>;
    /// Returns the directory that has the blobs as files `blobs/ALGORITHM/HEX`, if there is one.
    async fn content_root(&self) -> Result<Option<String>>;
}

/// A container's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its ID.
    pub id: String,
    /// The snapshotter of its root file system.
    pub snapshotter: String,
    /// The snapshot of its root file system.
    pub snapshot: SnapshotKey,
}

/// The container store.
#[async_trait]
pub trait Containers: Send + Sync {
    /// Returns all containers of the namespace, in no particular order.
    async fn list(&self, scope: &Scope) -> Result<Vec<Container>>;
}

/// The ports of one backend.
#[derive(Clone)]
pub struct Ports {
    /// The image store.
    pub images: Arc<dyn Images>,
    /// The content store.
    pub content: Arc<dyn ContentReader>,
    /// Labels of blobs.
    pub labeler: Arc<dyn ContentLabeler>,
    /// Writes blobs.
    pub writer: Arc<dyn ContentWriter>,
    /// Snapshotters.
    pub snapshotters: Arc<dyn Snapshotters>,
    /// The differ.
    pub applier: Arc<dyn Applier>,
    /// Leases.
    pub leases: Arc<dyn Leases>,
    /// Containers.
    pub containers: Arc<dyn Containers>,
    /// Describes the backend.
    pub introspection: Arc<dyn Introspection>,
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ports").finish_non_exhaustive()
    }
}
