// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What building a layer of a batch takes.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use resnap_core::media_type::{self, Compression, Format};
use resnap_core::{ApplyPermit, Batch, Descriptor};
use tokio::sync::{OnceCell, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::applier::Shared;
use crate::build::{Built, Placement, build};
use crate::erofs::Parents;
use crate::error::Error;
use crate::guard::Guard;
use crate::memory::Share;
use crate::pipeline::{Stop, Work};
use crate::source;
use crate::target::Shape;

/// How long what has been given up may take to notice.
const GRACE: Duration = Duration::from_secs(5);

/// What building a layer takes.
pub(crate) struct Job {
    pub(crate) shared: Arc<Shared>,
    pub(crate) batch: Batch,
    pub(crate) stop: Stop,
    pub(crate) user: bool,
    pub(crate) content: OnceCell<Option<PathBuf>>,
    /// Of the memory for layers ahead of their turn.
    pub(crate) share: Share,
    pub(crate) parents: Arc<Parents>,
}

/// How a layer is to be built.
pub(crate) struct Task {
    pub(crate) index: usize,
    pub(crate) shape: Shape,
    pub(crate) compression: Compression,
    pub(crate) path: PathBuf,
    pub(crate) place: Placement,
    pub(crate) is_turn: Arc<AtomicBool>,
}

impl Job {
    pub(crate) fn new(shared: Arc<Shared>, batch: Batch, stop: Stop) -> Self {
        Self {
            shared,
            batch,
            stop,
            user: is_user_namespace(),
            content: OnceCell::new(),
            share: Share::default(),
            parents: Arc::default(),
        }
    }

    pub(crate) fn layer(&self, index: usize) -> Result<&Descriptor, Error> {
        let layer = self.batch.layers.get(index);
        layer.ok_or_else(|| Error::Unfit(format!("no layer {index}")))
    }

    /// The root of the snapshotter.
    pub(crate) async fn root(&self) -> Result<PathBuf, Error> {
        let name = &self.batch.snapshotter;
        let all = self.shared.introspection.snapshotters().await?;
        let mut found = all
            .into_iter()
            .filter(|snapshotter| snapshotter.name == *name);
        if let Some(root) = found.next().and_then(|found| found.root) {
            return Ok(PathBuf::from(root));
        }
        // Some do not tell before containerd 1.7. This is where it is by default; if not, the mounts
        // are elsewhere.
        let content = self.content_root().await?;
        let root = content.and_then(Path::parent);
        let root = root.map(|root| root.join(format!("io.containerd.snapshotter.v1.{name}")));
        root.ok_or_else(|| Error::Unfit(format!("the root of {name} is not told")))
    }

    /// The root of the content store.
    async fn content_root(&self) -> Result<Option<&Path>, Error> {
        let ask = || async {
            let root = self.shared.introspection.content_root().await?;
            Ok::<_, resnap_core::Error>(root.map(PathBuf::from))
        };
        Ok(self.content.get_or_try_init(ask).await?.as_deref())
    }

    /// Waits until a layer may be written.
    pub(crate) async fn admit(&self, index: usize) -> Result<ApplyPermit, Error> {
        let mut stop = self.stop.clone();
        tokio::select! {
            admission = self.batch.monitor.admit(index) => Ok(admission),
            () = stop.set() => Err(Error::Stopped),
        }
    }

    /// Builds a layer, unless it is stopped or does not get on.
    pub(crate) async fn build(
        &self,
        task: Task,
        alive: mpsc::Sender<Infallible>,
    ) -> Result<Built, Error> {
        let memory = &self.shared.memory;
        let allowance = memory.allow(&self.share, Arc::clone(&task.is_turn));
        let guard = Guard::new(self.stop.clone(), allowance);
        let limit = self.shared.settings.stall;
        let progress = Arc::clone(&guard.progress);
        let mut built = pin!(self.write(task, guard, alive));
        tokio::select! {
            built = &mut built => return built,
            () = progress.stalled(limit) => progress.end(),
        }
        // Who is in a call of the system does not notice.
        let _ = timeout(GRACE, built).await;
        Err(Error::Stalled(limit))
    }

    async fn write(
        &self,
        task: Task,
        guard: Guard,
        alive: mpsc::Sender<Infallible>,
    ) -> Result<Built, Error> {
        let Task {
            index,
            shape,
            compression,
            path,
            place,
            ..
        } = task;
        let (layer, shared) = (self.layer(index)?, &self.shared);
        let root = self.content_root().await?;
        let scope = &self.batch.scope;
        let mut stop = self.stop.clone();
        let source = tokio::select! {
            source = source::open(&*shared.content, root, scope, layer, &guard) => source?,
            () = stop.set() => return Err(Error::Stopped),
            () = guard.progress.over() => return Err(Error::Stopped),
        };
        let work = Work {
            index,
            compression,
            limit: shared.settings.limit(layer),
            guard,
            monitor: Arc::clone(&self.batch.monitor),
        };
        let user = self.user;
        let built = spawn_blocking(move || {
            let _alive = alive;
            build(source, &work, shape, path, place, user)
        });
        built.await.map_err(|_| Error::Panicked("writes"))?
    }
}

/// What a layer of its media type is.
pub(crate) fn known(layer: &Descriptor) -> Result<(Format, Compression), Error> {
    let kind = &layer.media_type;
    media_type::layer(kind).ok_or_else(|| Error::Unfit(format!("layers of type {kind}")))
}

/// Whether this process is in a user namespace of less than all users (`user_namespaces(7)`).
fn is_user_namespace() -> bool {
    let map = std::fs::read_to_string(Path::new("/proc/self/uid_map")).unwrap_or_default();
    let numbers: Vec<&str> = map.split_whitespace().collect();
    !map.is_empty() && numbers != ["0", "0", "4294967295"]
}
