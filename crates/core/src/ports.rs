// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The ports: what the engine asks of a containerd, or of what stands for one.
//!
//! All methods may be called at once and from several tasks. Dropping a returned future gives up
//! waiting; whether the backend still does the work is unknown, as with any RPC, so what makes
//! something is called under a lease and undone by name. No method retries.

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;

use crate::{
    Applier, ChainId, Descriptor, Digest, Labels, LeaseId, Mount, Platform, Result, Scope,
    SnapshotInfo, SnapshotKey,
};

/// An image record: a name and what it points at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The reference, or a bare `sha256:…` image ID as the CRI plugin keeps one.
    pub name: String,
    /// The index or manifest.
    pub target: Descriptor,
}

/// The image store.
#[async_trait]
pub trait Images: Send + Sync {
    /// The record of exactly this name; [`Kind::NotFound`] if there is none.
    async fn get(&self, scope: &Scope, name: &str) -> Result<Image>;
    /// All records of the namespace, in no order.
    async fn list(&self, scope: &Scope) -> Result<Vec<Image>>;
}

/// What the content store knows of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentInfo {
    /// The size in bytes.
    pub size: u64,
    /// The blob's labels.
    pub labels: Labels,
}

/// A blob as it comes, in pieces of the backend's choice.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>;

/// Reading the content store.
#[async_trait]
pub trait ContentReader: Send + Sync {
    /// Size and labels of a blob; [`Kind::NotFound`] if it is not there.
    async fn info(&self, scope: &Scope, digest: &Digest) -> Result<ContentInfo>;
    /// The blob's bytes, unchecked ([`read_verified`](crate::read_verified) checks). A blob that is not there is
    /// [`Kind::NotFound`], here or as the stream's first item.
    async fn open(&self, scope: &Scope, digest: &Digest) -> Result<ByteStream>;
    /// Does work on many bytes that were read, such as parsing them: here and now, unless whoever
    /// wraps the port has a better place for what takes long. See [`work_on`](crate::work_on).
    async fn work(&self, work: Work) {
        work();
    }
    /// Returns when one more reader may hold a large document: at once, unless whoever wraps the
    /// port bounds how many do. See [`LargeRead`](crate::LargeRead).
    async fn admit_large_read(&self) -> LargeReadPermit {
        Box::new(())
    }
}

/// A right that ends when this is dropped.
pub type LargeReadPermit = Box<dyn Any + Send>;

/// Work to be done once.
pub type Work = Box<dyn FnOnce() + Send>;

/// Labels of blobs.
#[async_trait]
pub trait ContentLabeler: Send + Sync {
    /// Sets one label and leaves the others as they are.
    async fn set_label(&self, scope: &Scope, digest: &Digest, key: &str, value: &str)
    -> Result<()>;
}

/// One snapshotter (containerd `core/snapshots/snapshotter.go`).
#[async_trait]
pub trait Snapshotter: Send + Sync {
    /// What there is of a name; [`Kind::NotFound`] if nothing.
    async fn stat(&self, scope: &Scope, key: &SnapshotKey) -> Result<SnapshotInfo>;
    /// Makes an active snapshot on `parent`. [`Kind::AlreadyExists`] if `key` is taken, and from a
    /// remote snapshotter if the layer named by the label `snapshot.ref` needs no unpacking.
    async fn prepare(
        &self,
        scope: &Scope,
        key: &SnapshotKey,
        parent: Option<&ChainId>,
        labels: &Labels,
    ) -> Result<Vec<Mount>>;
    /// Makes the active snapshot `key` the committed one `name`; its parent is that of the
    /// Prepare. [`Kind::AlreadyExists`] if `name` is there.
    async fn commit(
        &self,
        scope: &Scope,
        name: &ChainId,
        key: &SnapshotKey,
        labels: &Labels,
    ) -> Result<()>;
    /// Removes a snapshot; [`Kind::FailedPrecondition`] if another stands on it.
    async fn remove(&self, scope: &Scope, key: &SnapshotKey) -> Result<()>;
    /// Sets these labels of a snapshot and leaves its others as they are.
    async fn set_labels(&self, scope: &Scope, key: &SnapshotKey, labels: &Labels) -> Result<()>;
    /// The snapshots that stand directly on `parent`, in no order.
    async fn children(&self, scope: &Scope, parent: &SnapshotKey) -> Result<Vec<SnapshotInfo>>;
}

/// The snapshotters by name.
pub trait Snapshotters: Send + Sync {
    /// The snapshotter of this name. Whether there is one shows at the first call.
    fn snapshotter(&self, name: &str) -> Arc<dyn Snapshotter>;
}

/// What a lease can keep.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// A blob and all it refers to.
    Content(Digest),
    /// A snapshot and those below it.
    Snapshot {
        /// The snapshotter.
        snapshotter: String,
        /// The snapshot, active or committed.
        key: SnapshotKey,
    },
}

/// A lease that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseInfo {
    /// Its name.
    pub id: LeaseId,
    /// When it was made.
    pub created: SystemTime,
    /// Its labels.
    pub labels: Labels,
}

/// Leases. One cannot be changed once made, and a garbage collection after it has expired takes
/// along what only it kept.
#[async_trait]
pub trait Leases: Send + Sync {
    /// Makes a lease; [`Kind::AlreadyExists`] if the name is taken.
    async fn create(&self, scope: &Scope, lease: &LeaseId, labels: &Labels) -> Result<()>;
    /// Ends a lease. [`Kind::NotFound`] if it is gone already.
    async fn delete(&self, scope: &Scope, lease: &LeaseId) -> Result<()>;
    /// Adds a thing to a lease. Whether the thing exists is *not* checked.
    async fn add_resource(&self, scope: &Scope, lease: &LeaseId, resource: &Resource)
    -> Result<()>;
    /// The leases of the namespace that have a label of this name, in no order.
    async fn list(&self, scope: &Scope, label: &str) -> Result<Vec<LeaseInfo>>;
    /// What a lease keeps, in no order; what is not a [`Resource`] is left out.
    /// [`Kind::NotFound`] if there is no such lease.
    async fn resources(&self, scope: &Scope, lease: &LeaseId) -> Result<Vec<Resource>>;
}

/// What a snapshotter is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotterInfo {
    /// Its name.
    pub name: String,
    /// What it says it can do (`rebase`, `remap-ids`, …); empty before containerd 2.0.
    pub capabilities: Vec<String>,
    /// The platforms it says it takes.
    pub platforms: Vec<Platform>,
    /// Where it keeps its snapshots, if it says.
    pub root: Option<String>,
    /// Why it did not load, if it did not.
    pub failure: Option<String>,
}

/// What the backend says of itself.
#[async_trait]
pub trait Introspection: Send + Sync {
    /// All snapshotters, those that failed to load included, by name.
    async fn snapshotters(&self) -> Result<Vec<SnapshotterInfo>>;
    /// A name of this backend that no other has, the same after a restart.
    async fn identity(&self) -> Result<String>;
    /// Where blobs are kept as files, if somewhere: `blobs/ALGORITHM/HEX` below that.
    async fn content_root(&self) -> Result<Option<String>>;
}

/// A container's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its ID.
    pub id: String,
    /// The snapshotter of its root file system.
    pub snapshotter: String,
    /// Its root file system.
    pub snapshot: SnapshotKey,
}

/// The containers.
#[async_trait]
pub trait Containers: Send + Sync {
    /// All of the namespace, in no order.
    async fn list(&self, scope: &Scope) -> Result<Vec<Container>>;
}

/// All ports of one backend.
#[derive(Clone)]
pub struct Ports {
    /// The image store.
    pub images: Arc<dyn Images>,
    /// Blobs.
    pub content: Arc<dyn ContentReader>,
    /// Their labels.
    pub labeler: Arc<dyn ContentLabeler>,
    /// Snapshotters.
    pub snapshotters: Arc<dyn Snapshotters>,
    /// The differ.
    pub applier: Arc<dyn Applier>,
    /// Leases.
    pub leases: Arc<dyn Leases>,
    /// Containers.
    pub containers: Arc<dyn Containers>,
    /// What the backend says of itself.
    pub introspection: Arc<dyn Introspection>,
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ports").finish_non_exhaustive()
    }
}
