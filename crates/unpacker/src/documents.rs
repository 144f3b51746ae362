// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Fetching documents of an image that are missing: its index, manifest or config.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use resnap_core::{
    BlobSource, ByteStream, ContentInfo, ContentReader, Descriptor, Digest, Error, Kind, Labels,
    MissingBlob, Resource, Result, Scope, error_chain, labels, media_type,
};
use resnap_handler_wrapper::{
    Children, Handler as _, MAX_DOCUMENT_BYTES, MAX_LAYERS, MissingDocument,
};
use tokio::time::timeout;

use crate::fetch::{MAX_SERVERS, open};
use crate::lease::{JobLease, LeaseKeeper};
use crate::missing::{missing_blob, source_labels};
use crate::planner::Planner;
use crate::sources::{Source, Tried};
use crate::{Plan, Request, UnpackError};

/// The limit on the documents that are fetched for an image: an index, a manifest and a config, and
/// manifests of entries without a platform.
const MAX_DOCUMENTS: usize = 8;

/// The time limit for the fetch of a document from one source.
const TIME: Duration = Duration::from_secs(60);

/// The documents of an image, fetched while it is planned.
pub(crate) struct Documents<'a> {
    keeper: &'a Arc<LeaseKeeper>,
    planner: &'a Planner,
    lease: Option<JobLease>,
    tried: HashSet<Digest>,
}

impl<'a> Documents<'a> {
    pub(crate) fn new(keeper: &'a Arc<LeaseKeeper>, planner: &'a Planner) -> Self {
        Self {
            keeper,
            planner,
            lease: None,
            tried: HashSet::new(),
        }
    }

    /// Returns the plan for `request`, and fetches documents that it needs and that are missing.
    pub(crate) async fn plan(&mut self, request: &Request) -> Result<Arc<Plan>, UnpackError> {
        loop {
            let error = match self.planner.plan(request).await {
                Ok(plan) => return Ok(plan),
                Err(error) => error,
            };
            let UnpackError::Documents { source, .. } = &error else {
                return Err(error);
            };
            let Some(MissingDocument { descriptor }) = MissingDocument::behind(source) else {
                return Err(error);
            };
            let descriptor = (**descriptor).clone();
            if self.tried.len() == MAX_DOCUMENTS || !self.tried.insert(descriptor.digest.clone()) {
                return Err(error);
            }
            if let Err(tried) = self.fetch(request, &descriptor).await {
                return Err(with_tried(error, tried));
            }
        }
    }

    /// Releases what was fetched, which the documents above it keep.
    pub(crate) async fn end(self) {
        if let Some(lease) = self.lease
            && let Err(error) = lease.end(false).await
        {
            let error = error.into_source();
            tracing::warn!(%error, "a lease of documents expires later");
        }
    }

    /// Fetches a document from the first source that has it.
    ///
    /// # Errors
    /// The sources, none of which has it.
    async fn fetch(&mut self, request: &Request, document: &Descriptor) -> Result<(), Vec<Tried>> {
        let backend = &self.keeper.backend;
        let mut tried = Vec::new();
        let sources = backend.sources.iter().filter_map(|source| match source {
            Source::Blobs(source) => Some(source),
            Source::Sibling { .. } => None,
        });
        for source in sources {
            let fetched = async {
                let blob = self.blob(request, document).await?;
                let fetched = timeout(TIME, read(&**source, &blob)).await;
                let bytes = fetched.unwrap_or_else(|_| {
                    let error =
                        Error::new(Kind::DeadlineExceeded, "fetch", document.digest.as_str());
                    Err(error.with_source(format!("it did not come within {TIME:?}")))
                })?;
                self.store(request, &blob, bytes).await
            };
            match fetched.await {
                Ok(()) => {
                    let (source, digest) = (source.name(), &document.digest);
                    tracing::info!(source, %digest, "document fetched");
                    return Ok(());
                }
                Err(error) => tried.push(Tried::new(source.name(), error)),
            }
        }
        Err(tried)
    }

    async fn blob(&self, request: &Request, document: &Descriptor) -> Result<MissingBlob> {
        let backend = &self.keeper.backend;
        let image = self.planner.resolve_for(request).await;
        let image = image.map_err(|error| Error::new(error.kind(), "find", &*request.image))?;
        let info = backend
            .ports
            .content
            .info(&backend.scope, &image.target.digest);
        // The labels only add to what the reference says.
        let labels = info.await.map(|info| info.labels).unwrap_or_default();
        let pods = request.pod.iter().cloned().collect();
        let reference = image.reference.as_deref();
        Ok(missing_blob(document, reference, &labels, pods))
    }

    /// Writes a document to the content store, with labels that keep what it refers to.
    async fn store(&mut self, request: &Request, blob: &MissingBlob, bytes: Bytes) -> Result<()> {
        let backend = Arc::clone(&self.keeper.backend);
        let document = &blob.descriptor;
        let content = Arc::new(Document {
            inner: Arc::clone(&backend.ports.content),
            digest: document.digest.clone(),
            bytes: bytes.clone(),
        });
        let children = Children::new(content, backend.scope.clone());
        let mut labels = children_labels(&children.handle(document).await?);
        labels.extend(source_labels(blob));
        let lease = match &self.lease {
            Some(lease) => lease,
            None => {
                let (image, target) = (&request.image, &document.digest);
                let snapshotter = request.snapshotter.as_deref().unwrap_or_default();
                let lease =
                    JobLease::new(Arc::clone(self.keeper), target, None, image, snapshotter);
                self.lease.insert(lease)
            }
        };
        lease.begin().await?;
        lease
            .add(&Resource::Content(document.digest.clone()))
            .await?;
        let kind = if media_type::is_index(&document.media_type) {
            "index"
        } else if media_type::is_manifest(&document.media_type) {
            "manifest"
        } else {
            "config"
        };
        // containerd's own name (`core/remotes/handlers.go`, `MakeRefKey`).
        let name = format!("{kind}-{}", document.digest);
        let Some(mut ingest) = open(&backend, lease, blob, &name).await? else {
            return Ok(());
        };
        // Held meanwhile, so that the lease is not renewed.
        let scope = lease.scope().await?;
        let committed = async {
            let offset = usize::try_from(ingest.offset()).unwrap_or(usize::MAX);
            ingest.write(bytes.slice(offset.min(bytes.len())..)).await?;
            ingest.commit(&labels).await
        };
        match committed.await {
            Err(error) if error.is_already_exists() => Ok(()),
            Err(error) if error.kind() == Kind::FailedPrecondition => {
                // Another client has written wrong bytes before.
                let aborted = backend.ports.writer.abort(&scope, &name).await;
                tracing::debug!(?aborted, name, "an ingest of wrong bytes");
                Err(error)
            }
            committed => committed,
        }
    }
}

/// Adds the sources and their reasons to the error for a missing document.
fn with_tried(mut error: UnpackError, from: Vec<Tried>) -> UnpackError {
    if let UnpackError::Documents { source, tried, .. } = &mut error {
        let reason = std::error::Error::source(source).map(ToString::to_string);
        let mut reason = reason.unwrap_or_default();
        for Tried { source, error } in &from {
            reason += &format!("; {source}: {}", error_chain(error));
        }
        *source = source.clone().with_source(reason);
        *tried = from;
    }
    error
}

/// Reads a document from a source, whose next server is asked if the bytes of one are wrong.
async fn read(source: &dyn BlobSource, blob: &MissingBlob) -> Result<Bytes> {
    for _ in 1..MAX_SERVERS {
        match read_once(source, blob).await {
            Err(error) if error.kind() == Kind::DataLoss && source.reject(blob) => {}
            read => return read,
        }
    }
    read_once(source, blob).await
}

/// Reads a document from a source, and checks it.
async fn read_once(source: &dyn BlobSource, blob: &MissingBlob) -> Result<Bytes> {
    let Descriptor { digest, size, .. } = &blob.descriptor;
    let wrong = |kind, reason| Err(Error::new(kind, "fetch", digest.as_str()).with_source(reason));
    if *size > MAX_DOCUMENT_BYTES as u64 {
        return wrong(
            Kind::ResourceExhausted,
            format!("it has {size} bytes, more than {MAX_DOCUMENT_BYTES}"),
        );
    }
    let mut bytes = Vec::new();
    let mut stream = source.open(blob, 0).await?;
    while let Some(piece) = stream.try_next().await? {
        if (bytes.len() + piece.len()) as u64 > *size {
            return wrong(Kind::DataLoss, format!("it has more than {size} bytes"));
        }
        bytes.extend_from_slice(&piece);
    }
    let actual = digest.same_algorithm(&bytes);
    if actual != *digest {
        return wrong(
            Kind::DataLoss,
            format!("its bytes have the digest {actual}"),
        );
    }
    Ok(bytes.into())
}

/// Returns the labels of a document that keep its children, as a pull sets them (containerd
/// `core/images/handlers.go`, `ChildGCLabels`).
fn children_labels(children: &[Descriptor]) -> Labels {
    let (mut manifests, mut layers) = (0, 0);
    let labels = children.iter().take(MAX_LAYERS).map(|child| {
        let kind = &child.media_type;
        let key = if media_type::is_manifest(kind) || media_type::is_index(kind) {
            manifests += 1;
            format!("{}{}", labels::GC_MANIFEST_PREFIX, manifests - 1)
        } else if media_type::is_layer(kind) {
            layers += 1;
            format!("{}{}", labels::GC_LAYER_PREFIX, layers - 1)
        } else {
            labels::GC_CONFIG.to_owned()
        };
        (key, child.digest.to_string())
    });
    labels.collect()
}

/// A content store that has one more document.
struct Document {
    inner: Arc<dyn ContentReader>,
    digest: Digest,
    bytes: Bytes,
}

#[async_trait]
impl ContentReader for Document {
    async fn info(&self, scope: &Scope, digest: &Digest) -> Result<ContentInfo> {
        self.inner.info(scope, digest).await
    }

    async fn open(&self, scope: &Scope, digest: &Digest) -> Result<ByteStream> {
        match *digest == self.digest {
            true => Ok(stream::iter([Ok(self.bytes.clone())]).boxed()),
            false => self.inner.open(scope, digest).await,
        }
    }
}
