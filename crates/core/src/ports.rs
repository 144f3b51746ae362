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
use futures::channel::oneshot;
use futures::{Stream, StreamExt as _};

use crate::{
    Batch, BatchApplier, ChainId, Descriptor, Digest, Error, Kind, Labels, Mount, Platform, Result,
    SnapshotInfo, SnapshotKey,
};

/// Where and under what a call is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The containerd namespace.
    pub namespace: Arc<str>,
    /// The lease that keeps what the call makes.
    pub lease: Option<LeaseId>,
}

impl Scope {
    /// Calls in `namespace`, under no lease.
    pub fn new(namespace: &str) -> Self {
        Self {
            namespace: namespace.into(),
            lease: None,
        }
    }

    /// The same under `lease`.
    #[must_use]
    pub fn leased(&self, lease: LeaseId) -> Self {
        Self {
            namespace: Arc::clone(&self.namespace),
            lease: Some(lease),
        }
    }
}

/// The name of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LeaseId(pub Arc<str>);

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
    /// The blob's bytes, unchecked ([`read_verified`] checks). A blob that is not there is
    /// [`Kind::NotFound`], here or as the stream's first item.
    async fn open(&self, scope: &Scope, digest: &Digest) -> Result<ByteStream>;
    /// Does work on many bytes that were read, such as parsing them: here and now, unless whoever
    /// wraps the port has a better place for what takes long. See [`work_on`].
    async fn work(&self, work: Work) {
        work();
    }
    /// Returns when one more reader may hold a large document: at once, unless whoever wraps the
    /// port bounds how many do. See [`LargeRead`].
    async fn admit_large_read(&self) -> LargeReadPermit {
        Box::new(())
    }
}

/// A right that ends when this is dropped.
pub type LargeReadPermit = Box<dyn Any + Send>;

/// The right of a reader of documents to hold large ones, or what it parsed them to. It is asked for at
/// the first of them, and ends when this is dropped.
#[derive(Debug, Default)]
pub struct LargeRead(Option<LargeReadPermit>);

impl LargeRead {
    async fn admit(&mut self, content: &dyn ContentReader) {
        if self.0.is_none() {
            self.0 = Some(content.admit_large_read().await);
        }
    }
}

/// Work to be done once.
pub type Work = Box<dyn FnOnce() + Send>;

/// From so many bytes on it takes long to work on them.
const LARGE: usize = 64 << 10;

/// Does `work` on bytes that were read: of many, where [`ContentReader::work`] has it done.
///
/// # Errors
/// [`Kind::Internal`] if the work panicked there.
pub async fn work_on<T: Send + 'static>(
    content: &dyn ContentReader,
    bytes: Vec<u8>,
    work: impl FnOnce(Vec<u8>) -> T + Send + 'static,
) -> Result<T> {
    if bytes.len() < LARGE {
        return Ok(work(bytes));
    }
    let size = bytes.len();
    let (sender, receiver) = oneshot::channel();
    let work = move || {
        // Who asked may have gone.
        let _ = sender.send(work(bytes));
    };
    content.work(Box::new(work)).await;
    let done = receiver.await;
    done.map_err(|_| {
        Error::new(
            Kind::Internal,
            "work on",
            format!("{size} bytes of content"),
        )
    })
}

/// Reads a blob of at most `limit` bytes, or returns how many of more it has read.
async fn read_up_to(
    content: &dyn ContentReader,
    scope: &Scope,
    digest: &Digest,
    limit: usize,
) -> Result<std::result::Result<Vec<u8>, u64>> {
    let mut stream = content.open(scope, digest).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        if bytes.len() + piece.len() > limit {
            return Ok(Err((bytes.len() + piece.len()) as u64));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(Ok(bytes))
}

/// Reads a whole blob of at most `limit` bytes and checks it against its digest. One that is small, and
/// is said to be, waits for no other reader.
///
/// # Errors
/// [`Kind::ResourceExhausted`] for one over the limit, by what it says and by what comes;
/// [`Kind::DataLoss`] if the bytes are not those of the digest; else the port's.
pub async fn read_verified(
    content: &dyn ContentReader,
    scope: &Scope,
    descriptor: &Descriptor,
    limit: usize,
    large: &mut LargeRead,
) -> Result<Vec<u8>> {
    let digest = &descriptor.digest;
    let too_large = |size: u64| {
        Error::new(Kind::ResourceExhausted, "read content", digest.as_str()).with_source(format!(
            "{size} bytes or more, and {} has at most {limit}",
            descriptor.media_type
        ))
    };
    if usize::try_from(descriptor.size).map_or(true, |size| size > limit) {
        return Err(too_large(descriptor.size));
    }
    // What a descriptor says of the size may be wrong.
    let mut read = Err(descriptor.size);
    if large.0.is_none() && descriptor.size < LARGE as u64 {
        read = read_up_to(content, scope, digest, LARGE.min(limit)).await?;
    }
    // Nobody waits with a stream open: on one connection, those that are not read keep others from
    // getting on.
    if read.is_err() {
        large.admit(content).await;
        read = read_up_to(content, scope, digest, limit).await?;
    }
    let bytes = read.map_err(too_large)?;
    let expected = digest.clone();
    let hash = move |bytes: Vec<u8>| (expected.same_algorithm(&bytes), bytes);
    let (actual, bytes) = work_on(content, bytes, hash).await?;
    if actual != *digest {
        return Err(Error::new(Kind::DataLoss, "read content", digest.as_str())
            .with_source(format!("its bytes have the digest {actual}")));
    }
    Ok(bytes)
}

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

/// What an Apply wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The digest of the uncompressed tar that was written.
    pub diff_id: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// Writing a layer to a snapshot.
#[async_trait]
pub trait Applier: Send + Sync {
    /// Writes the layer through the mounts of its active snapshot; with `sync_fs` to the disk.
    /// [`Kind::NotFound`] if the blob is not there.
    async fn apply(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        sync_fs: bool,
    ) -> Result<Applied>;

    /// Begins to write several layers, if the applier can make more of that than of one after the
    /// other; see
    /// [`in_batch`](crate::in_batch). It must be called within a tokio runtime.
    fn batch(&self, batch: &Batch) -> Option<Arc<dyn BatchApplier>> {
        let _ = batch;
        None
    }
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
