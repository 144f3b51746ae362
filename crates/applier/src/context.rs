// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The context in which the layers of a batch are built.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use resnap_core::media_type::{self, Compression, Format};
use resnap_core::{
    ApplyPermit, Batch, Descriptor, ErofsMode, LayerCopy, Preparer, SignedRoot, error_chain,
};
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::build::{Built, LayerContent, Placement, build};
use crate::erofs::Parents;
use crate::error::Error;
use crate::guard::Guard;
use crate::link::{ImageBlob, Links, may_link};
use crate::memory::ImageMemory;
use crate::pipeline::Work;
use crate::shared::Shared;
use crate::sibling;
use crate::source::{self, Source};
use crate::target::LayerForm;
use crate::user_namespace::is_user_namespace;
use crate::xattr::XattrNamespace;

/// The time that abandoned work gets to end.
const GRACE: Duration = Duration::from_secs(5);

/// The context in which the layers of a batch are built.
pub(crate) struct BatchContext {
    pub(crate) shared: Arc<Shared>,
    pub(crate) batch: Batch,
    pub(crate) cancellation: CancellationToken,
    pub(crate) namespace: XattrNamespace,
    pub(crate) parents: Arc<Parents>,
    pub(crate) links: Arc<Links>,
    may_link: OnceCell<bool>,
    content_root: OnceCell<Option<PathBuf>>,
    /// The memory of the layers before their turn.
    memory: ImageMemory,
}

/// A request to build a layer.
pub(crate) struct BuildRequest {
    pub(crate) index: usize,
    pub(crate) form: LayerForm,
    pub(crate) compression: Compression,
    pub(crate) path: PathBuf,
    pub(crate) placement: Placement,
    /// Set when the layer's turn comes.
    pub(crate) is_turn: Arc<AtomicBool>,
}

impl BatchContext {
    pub(crate) fn new(shared: Arc<Shared>, batch: Batch, cancellation: CancellationToken) -> Self {
        Self {
            shared,
            batch,
            cancellation,
            namespace: match is_user_namespace() {
                true => XattrNamespace::User,
                false => XattrNamespace::Trusted,
            },
            parents: Arc::default(),
            links: Arc::default(),
            may_link: OnceCell::new(),
            content_root: OnceCell::new(),
            memory: ImageMemory::default(),
        }
    }

    pub(crate) fn layer(&self, index: usize) -> Result<&Descriptor, Error> {
        let layer = self.batch.layers.get(index);
        let layer = layer.map(|layer| &layer.descriptor);
        layer.ok_or_else(|| Error::Unsupported(format!("no layer {index}")))
    }

    /// Returns the snapshot that a layer is copied from, if it is.
    pub(crate) fn copy(&self, index: usize) -> Option<&LayerCopy> {
        self.batch.layers.get(index)?.copy.as_ref()
    }

    /// Returns the form of the EROFS images that are made of layers.
    pub(crate) fn erofs_mode(&self) -> ErofsMode {
        self.shared.settings.erofs_mode(&self.batch.snapshotter)
    }

    /// Returns the signed root hash of a layer, if it has one.
    pub(crate) fn signed(&self, index: usize) -> Option<&Arc<SignedRoot>> {
        self.batch.layers.get(index)?.signed.as_ref()
    }

    /// Returns the root of the snapshotter.
    pub(crate) async fn root(&self) -> Result<PathBuf, Error> {
        self.shared.root(&self.batch.snapshotter).await
    }

    /// Returns the root of the content store.
    async fn content_root(&self) -> Result<Option<&Path>, Error> {
        let ask = || self.shared.content_root();
        Ok(self.content_root.get_or_try_init(ask).await?.as_deref())
    }

    /// Waits until a layer may be written.
    pub(crate) async fn admit(&self, index: usize) -> Result<ApplyPermit, Error> {
        tokio::select! {
            permit = self.batch.monitor.admit(index) => Ok(permit),
            () = self.cancellation.cancelled() => Err(Error::Cancelled),
        }
    }

    /// Builds a layer, unless it is cancelled or makes no progress.
    pub(crate) async fn build(
        &self,
        request: BuildRequest,
        tracker: TaskTrackerToken,
    ) -> Result<Built, Error> {
        let memory = &self.shared.memory;
        let memory = memory.layer(&self.memory, Arc::clone(&request.is_turn));
        // A token of its own: it is checked for each entry, by the threads of all layers.
        let guard = Guard::new(self.cancellation.child_token(), memory);
        let limit = self.shared.settings.stall;
        let progress = Arc::clone(&guard.progress);
        let mut built = pin!(self.write(request, guard, tracker));
        tokio::select! {
            built = &mut built => return built,
            () = progress.stalled(limit) => progress.abandon(),
        }
        // A thread that is blocked in a system call does not notice.
        let _ = timeout(GRACE, built).await;
        Err(Error::Stalled(limit))
    }

    async fn write(
        &self,
        request: BuildRequest,
        guard: Guard,
        tracker: TaskTrackerToken,
    ) -> Result<Built, Error> {
        let BuildRequest {
            index,
            form,
            compression,
            path,
            placement,
            ..
        } = request;
        let (layer, shared) = (self.layer(index)?, &self.shared);
        let source = tokio::select! {
            source = self.source(index, form, &guard) => source?,
            () = self.cancellation.cancelled() => return Err(Error::Cancelled),
            () = guard.progress.abandoned() => return Err(Error::Cancelled),
        };
        let work = Work {
            index,
            compression,
            limit: shared.settings.limit(layer),
            guard,
            monitor: Arc::clone(&self.batch.monitor),
        };
        let namespace = self.namespace;
        let built = spawn_blocking(move || {
            let _tracker = tracker;
            build(source, &work, form, path, placement, namespace)
        });
        built.await.map_err(|_| Error::Panicked("writes"))?
    }

    /// Opens the blob of a layer, or the snapshot that it is copied from.
    async fn source(
        &self,
        index: usize,
        form: LayerForm,
        guard: &Guard,
    ) -> Result<LayerContent, Error> {
        let (layer, shared) = (self.layer(index)?, &self.shared);
        let Some(copy) = self.copy(index).cloned() else {
            let blob = match self.batch.monitor.incoming(index) {
                Some(incoming) => source::stream(incoming, guard),
                None => {
                    if let Some(image) = self.image_blob(index, form).await? {
                        return Ok(LayerContent::Image(
                            Box::new(image),
                            Arc::clone(&self.links),
                        ));
                    }
                    self.blob(layer, guard).await?
                }
            };
            let signed = self.signed(index).and_then(|signed| signed.index.clone());
            return match signed.filter(|_| form == LayerForm::Indexed) {
                Some(index) => {
                    let bytes = self.blob(&index.blob, guard).await?;
                    Ok(LayerContent::Indexed(blob, bytes, Box::new(index)))
                }
                None => Ok(LayerContent::Blob(blob)),
            };
        };
        let root = sibling::root(shared, &copy.chain.snapshotter).await?;
        let (guard, size) = (guard.clone(), layer.size);
        let opened = spawn_blocking(move || sibling::open(&copy, &root, size, &guard));
        let opened = opened.await.map_err(|_| Error::Panicked("reads"))??;
        Ok(LayerContent::Copy(Box::new(opened)))
    }

    /// Opens the blob of a layer that is an image as it is, if no tree is to be written behind it.
    async fn image_blob(&self, index: usize, form: LayerForm) -> Result<Option<ImageBlob>, Error> {
        let layer = self.layer(index)?;
        let (_, compression) = self.format(index)?;
        if (form, compression) != (LayerForm::Blob { has_tree: false }, Compression::None) {
            return Ok(None);
        }
        if let Preparer::Backend(_) = self.batch.preparer {
            // It is committed after the batch has ended.
            return Ok(None);
        }
        let Some(root) = self.content_root().await? else {
            return Ok(None);
        };
        // A blob of another namespace must not be read.
        let info = self.shared.content.info(&self.batch.scope, &layer.digest);
        let size = info.await?.size;
        let Some(file) = source::file(root, &layer.digest, size) else {
            return Ok(None);
        };
        let snapshotter = self.root().await?;
        let look = || async {
            let looked = spawn_blocking(move || may_link(&snapshotter));
            let looked = looked.await.map_err(|_| Error::Panicked("reads"))?;
            Ok::<_, Error>(looked.unwrap_or_default())
        };
        Ok(Some(ImageBlob {
            descriptor: layer.clone(),
            path: source::path(root, &layer.digest),
            file,
            may_link: *self.may_link.get_or_try_init(look).await?
                && !self.shared.no_links.load(Ordering::Relaxed),
        }))
    }

    /// Opens a blob.
    async fn blob(&self, blob: &Descriptor, guard: &Guard) -> Result<Source, Error> {
        let (root, scope) = (self.content_root().await?, &self.batch.scope);
        if let Preparer::Backend(_) = self.batch.preparer {
            if !scope.namespace.is_empty() {
                // A blob of another namespace must not be read.
                let info = self.shared.content.info(scope, &blob.digest).await;
                info.map_err(|error| Error::Unsupported(error_chain(&error)))?;
            }
            let file = root.and_then(|root| source::file(root, &blob.digest, blob.size));
            let missing = || Error::Unsupported("its blob is not a file here".to_owned());
            return file.map(Source::File).ok_or_else(missing);
        }
        let content = &*self.shared.content;
        Ok(source::open(content, root, scope, blob, guard).await?)
    }

    /// Returns the format and compression in which a layer is read.
    pub(crate) fn format(&self, index: usize) -> Result<(Format, Compression), Error> {
        let (format, compression) = format_of(self.layer(index)?)?;
        match (self.copy(index), format) {
            (None, _) => Ok((format, compression)),
            (Some(_), Format::Tar) => Ok((Format::Tar, Compression::None)),
            (Some(_), _) => Err(Error::Unsupported(
                "layers of other formats than tar are not copied".to_owned(),
            )),
        }
    }
}

/// Returns the format and compression of a layer by its media type.
fn format_of(layer: &Descriptor) -> Result<(Format, Compression), Error> {
    let kind = &layer.media_type;
    media_type::layer(kind).ok_or_else(|| Error::Unsupported(format!("layers of type {kind}")))
}
