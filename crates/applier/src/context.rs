// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The context in which the layers of a batch are built.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use resnap_core::media_type::{self, Compression, Format};
use resnap_core::{ApplyPermit, Batch, Descriptor};
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::build::{Built, Placement, build};
use crate::erofs::Parents;
use crate::error::Error;
use crate::guard::Guard;
use crate::memory::ImageMemory;
use crate::pipeline::Work;
use crate::shared::Shared;
use crate::source;
use crate::target::LayerForm;
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
            content_root: OnceCell::new(),
            memory: ImageMemory::default(),
        }
    }

    pub(crate) fn layer(&self, index: usize) -> Result<&Descriptor, Error> {
        let layer = self.batch.layers.get(index);
        let layer = layer.map(|layer| &layer.descriptor);
        layer.ok_or_else(|| Error::Unsupported(format!("no layer {index}")))
    }

    /// Returns the root of the snapshotter.
    pub(crate) async fn root(&self) -> Result<PathBuf, Error> {
        let name = &self.batch.snapshotter;
        let all = self.shared.introspection.snapshotters().await?;
        let mut found = all
            .into_iter()
            .filter(|snapshotter| snapshotter.name == *name);
        if let Some(root) = found.next().and_then(|found| found.root) {
            return Ok(PathBuf::from(root));
        }
        // Before containerd 1.7 some snapshotters do not report their root. This is the default; if it is
        // wrong, the mounts are not inside it and the layer is left to containerd.
        let content = self.content_root().await?;
        let root = content.and_then(Path::parent);
        let root = root.map(|root| root.join(format!("io.containerd.snapshotter.v1.{name}")));
        root.ok_or_else(|| Error::Unsupported(format!("the root of {name} is not known")))
    }

    /// Returns the root of the content store.
    async fn content_root(&self) -> Result<Option<&Path>, Error> {
        let ask = || async {
            let root = self.shared.introspection.content_root().await?;
            Ok::<_, resnap_core::Error>(root.map(PathBuf::from))
        };
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
        let root = self.content_root().await?;
        let scope = &self.batch.scope;
        let source = tokio::select! {
            source = source::open(&*shared.content, root, scope, layer, &guard) => source?,
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
}

/// Returns the format and compression of a layer by its media type.
pub(crate) fn format_of(layer: &Descriptor) -> Result<(Format, Compression), Error> {
    let kind = &layer.media_type;
    media_type::layer(kind).ok_or_else(|| Error::Unsupported(format!("layers of type {kind}")))
}

/// Returns whether this process is in a user namespace that does not have all users
/// (`user_namespaces(7)`).
fn is_user_namespace() -> bool {
    let map = std::fs::read_to_string(Path::new("/proc/self/uid_map")).unwrap_or_default();
    let numbers: Vec<&str> = map.split_whitespace().collect();
    !map.is_empty() && numbers != ["0", "0", "4294967295"]
}
