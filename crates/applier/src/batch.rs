// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Batches of layers. The first layer decides where all of them go; the others are then built in staging,
//! ahead of their turn.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use async_trait::async_trait;
use resnap_core::erofs_layer::own_tree;
use resnap_core::media_type::Format;
use resnap_core::{
    Applied, ApplyPermit, Batch, BatchApplier, Descriptor, Error as PortError, Integrity, Kind,
    Mount, Preparer, Result as PortResult, Scope, Stage, StageTiming,
};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::{JoinSet, spawn_blocking};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::build::{Built, Placement};
use crate::context::{BatchContext, BuildRequest};
use crate::copy_fault::CopyFault;
use crate::erofs;
use crate::error::Error;
use crate::memory::StopReason;
use crate::preparation::Preparation;
use crate::proof;
use crate::settings::Differ;
use crate::shared::Shared;
use crate::source::mismatched_digest;
use crate::staging::Staging;
use crate::target::{LayerForm, SnapshotFacts, Target, find};
use crate::whiteout::WhiteoutMode;
use crate::xattr::XattrNamespace;

/// The number of layers that are being built or wait for their turn, for each that may be built at once.
/// Each takes memory and an open file.
const STAGED_PER_SLOT: usize = 4;

/// A layer that is being built ahead of its turn.
struct PendingBuild {
    receiver: oneshot::Receiver<Result<StagedLayer, Error>>,
    /// Set when the layer's turn comes.
    is_turn: Arc<AtomicBool>,
}

/// A built layer that waits for its turn.
struct StagedLayer {
    built: Built,
    /// Kept if the layer's turn has come: all permits may be held by layers that wait for its memory.
    admission: Option<Admission>,
    _place: OwnedSemaphorePermit,
}

/// The permits to write a layer: of this batch, and of the engine.
type Admission = (Option<OwnedSemaphorePermit>, ApplyPermit);

/// A layer to build ahead of its turn.
struct BuildTask {
    request: BuildRequest,
    sender: oneshot::Sender<Result<StagedLayer, Error>>,
}

/// The staging of a batch, if its snapshots can be reached from it.
struct StagingArea {
    staging: Staging,
    /// Staging directories that no process holds.
    orphans: Vec<Staging>,
    /// Whether files can be moved to the snapshots.
    can_move: bool,
}

/// A batch whose layers are built in staging.
pub(crate) struct StagedBatch {
    context: Arc<BatchContext>,
    differ: Differ,
    _cancel_on_drop: DropGuard,
    /// All tasks and threads of the batch.
    tasks: TaskTracker,
    /// The layers that are built ahead; empty if staging is not possible.
    builds: OnceCell<Mutex<HashMap<usize, PendingBuild>>>,
    /// The root of the snapshotter.
    root: OnceCell<PathBuf>,
    /// Whether images get dm-verity trees.
    has_tree: OnceCell<bool>,
    preparation: Preparation,
    /// Whether a layer was written to its snapshot in part.
    is_torn: AtomicBool,
}

impl StagedBatch {
    pub(crate) fn new(shared: Arc<Shared>, batch: Batch, differ: Differ) -> Self {
        let cancellation = CancellationToken::new();
        let preparation = match batch.preparer {
            // Its snapshots are newer.
            Preparer::Caller => Preparation::Since(SystemTime::now()),
            Preparer::Backend(process) => Preparation::ByBackend(process),
        };
        Self {
            context: Arc::new(BatchContext::new(shared, batch, cancellation.clone())),
            differ,
            _cancel_on_drop: cancellation.drop_guard(),
            tasks: TaskTracker::new(),
            builds: OnceCell::new(),
            root: OnceCell::new(),
            has_tree: OnceCell::new(),
            preparation,
            is_torn: AtomicBool::new(false),
        }
    }

    /// Returns a token that `end` waits for. Fails once the batch has ended.
    fn track(&self) -> Result<TaskTrackerToken, Error> {
        // The token comes first: `end` waits for it if it closes the tracker after the check.
        let token = self.tasks.token();
        match self.tasks.is_closed() {
            true => Err(Error::Cancelled),
            false => Ok(token),
        }
    }

    /// Applies a layer in this process.
    async fn apply_in_process(&self, index: usize, mounts: &[Mount]) -> Result<Applied, Error> {
        let context = &self.context;
        let layer = context.layer(index)?;
        let (format, compression) = context.format(index)?;
        let root = self.root.get_or_try_init(|| context.root()).await?;
        let facts = SnapshotFacts {
            root,
            namespace: context.namespace,
            preparation: self.preparation,
        };
        let target = find(mounts, facts)?;
        let has_tree = self.has_tree(root, &target).await?;
        let form = self.form(index, &target, (format, has_tree))?;
        let (built, admission) = match self.staged_layer(index, &target).await? {
            Some(staged) => (Some(staged.built), staged.admission),
            None => (None, None),
        };
        let _admission = match admission {
            Some(admission) => admission,
            None => (None, context.admit(index).await?),
        };
        let built = match built {
            Some(built) => built,
            None => {
                let request = BuildRequest {
                    index,
                    form,
                    compression,
                    path: target.path(),
                    placement: Placement::Snapshot,
                    is_turn: Arc::new(AtomicBool::new(true)),
                };
                let built = context.build(request, self.track()?).await;
                let is_torn = built.is_err() && target.may_have_files();
                self.is_torn.store(is_torn, Ordering::Relaxed);
                built?
            }
        };
        self.place(index, layer, built, (target, has_tree)).await
    }

    /// Returns the form in which a layer of this format is written, with a dm-verity tree or without.
    fn form(
        &self,
        index: usize,
        target: &Target,
        (format, has_tree): (Format, bool),
    ) -> Result<LayerForm, Error> {
        // A layer that brings a tree gets no other one behind it.
        let brings_tree = matches!(own_tree(self.context.layer(index)?), Ok(Some(_)));
        let has_tree = has_tree && !(format == Format::Erofs && brings_tree);
        let form = target.form(format, has_tree, self.context.erofs_mode())?;
        let signed = self.context.signed(index).map(|signed| &signed.index);
        match (form, signed) {
            (LayerForm::Image { has_tree: true, .. }, Some(Some(_))) => Ok(LayerForm::Indexed),
            (LayerForm::Blob { .. }, Some(None)) => Ok(form),
            _ if self.context.batch.integrity == Integrity::Signed => Err(Error::Unproven(
                "its publisher has signed no root hash of it".to_owned(),
            )),
            (form, _) => Ok(form),
        }
    }

    /// Returns whether images get dm-verity trees: if the layers need a proof, or if others on the
    /// snapshotter have trees. In the latter case containerd's differ is configured to add them (containerd
    /// 2.3 `plugins/diff/erofs`, `enable_dmverity`), and may be to refuse layers without (`dmverity_mode`).
    async fn has_tree(&self, root: &Path, target: &Target) -> Result<bool, Error> {
        let integrity = self.context.batch.integrity;
        let Target::Image { .. } = target else {
            return match integrity.is_on() {
                true => Err(Error::Unproven(
                    "it is written as files, not as an image".to_owned(),
                )),
                false => Ok(false),
            };
        };
        let look = || async {
            if integrity.is_on() {
                return self.context.shared.require_kernel().map(|()| true);
            }
            let (token, looked_at) = (self.track()?, root.to_owned());
            let looked = spawn_blocking(move || {
                let _token = token;
                erofs::has_verity(&looked_at)
            });
            let has_verity = looked.await.map_err(|_| Error::Panicked("reads"))?;
            let unsupported = |error| Error::Unsupported(format!("{root:?}: {error}"));
            Ok(has_verity.map_err(unsupported)? && proof::has_kernel_support())
        };
        self.has_tree.get_or_try_init(look).await.copied()
    }

    /// Returns a layer that was built ahead, or `None` if it has to be built in its turn.
    async fn staged_layer(
        &self,
        index: usize,
        target: &Target,
    ) -> Result<Option<StagedLayer>, Error> {
        let builds = self
            .builds
            .get_or_try_init(|| self.start_builds(index, target));
        let build = {
            let mut builds = builds.await?.lock().unwrap_or_else(PoisonError::into_inner);
            // Another process made the layers before this one.
            builds.retain(|at, _| *at >= index);
            builds.remove(&index)
        };
        let Some(build) = build else {
            return Ok(None);
        };
        build.is_turn.store(true, Ordering::Relaxed);
        match build.receiver.await.map_err(|_| Error::Cancelled)? {
            Err(Error::Stopped(StopReason::Ahead)) => Ok(None),
            staged => staged.map(Some),
        }
    }

    /// Completes a layer, and moves it to its snapshot.
    async fn place(
        &self,
        index: usize,
        layer: &Descriptor,
        built: Built,
        (target, has_tree): (Target, bool),
    ) -> Result<Applied, Error> {
        let start = Instant::now();
        let batch = &self.context.batch;
        let (token, sync, layer) = (self.track()?, batch.sync_fs, layer.clone());
        let parents = Arc::clone(&self.context.parents);
        let signed = self.context.signed(index).cloned();
        let placed = spawn_blocking(move || {
            let _token = token;
            let tree = (has_tree, signed.as_deref());
            built.place(&target, &layer, sync, tree, &parents)
        });
        let applied = placed.await.map_err(|_| Error::Panicked("writes"))??;
        let timing = StageTiming::since(start);
        batch.monitor.record_stage(index, Stage::Place, timing);
        Ok(applied)
    }

    /// Starts to build the layers from `first` on, if they can be moved to snapshots like `target`.
    async fn start_builds(
        &self,
        first: usize,
        target: &Target,
    ) -> Result<Mutex<HashMap<usize, PendingBuild>>, Error> {
        let none = || Ok(Mutex::default());
        let Some(root) = self.root.get().cloned() else {
            return none();
        };
        let (token, to, namespace) = (self.track()?, target.clone(), self.context.namespace);
        let area = spawn_blocking(move || {
            let _token = token;
            prepare_staging(&root, &to, namespace)
        });
        let area = area.await.map_err(|_| Error::Panicked("makes files"))??;
        let Some(area) = area else {
            return none();
        };
        let (builds, tasks) = match area.can_move {
            true => self.plan_builds(first, target, &area.staging),
            false => (HashMap::new(), Vec::new()),
        };
        let (context, token) = (Arc::clone(&self.context), self.track()?);
        let tracker = self.tasks.clone();
        tokio::spawn(async move {
            let build = build_all(context, tasks, tracker);
            tokio::join!(build, remove_all(area.orphans));
            remove_all(vec![area.staging]).await;
            drop(token);
        });
        Ok(Mutex::new(builds))
    }

    /// Returns the layers from `first` on that can be built ahead, and the tasks that build them.
    fn plan_builds(
        &self,
        first: usize,
        target: &Target,
        staging: &Staging,
    ) -> (HashMap<usize, PendingBuild>, Vec<BuildTask>) {
        let (mut builds, mut tasks) = (HashMap::new(), Vec::new());
        for index in first..self.context.batch.layers.len() {
            let Ok((format, compression)) = self.context.format(index) else {
                continue;
            };
            let has_tree = self.has_tree.get().copied().unwrap_or_default();
            let Ok(form) = self.form(index, target, (format, has_tree)) else {
                continue;
            };
            let form = match form {
                LayerForm::Tree(WhiteoutMode::Base) if index > first => {
                    LayerForm::Tree(WhiteoutMode::Upper)
                }
                LayerForm::Image { has_tree, mode, .. } if index > first => LayerForm::Image {
                    is_lowest: false,
                    has_tree,
                    mode,
                },
                form => form,
            };
            let (sender, receiver) = oneshot::channel();
            let is_turn = Arc::new(AtomicBool::new(false));
            let build = PendingBuild {
                receiver,
                is_turn: Arc::clone(&is_turn),
            };
            builds.insert(index, build);
            let request = BuildRequest {
                index,
                form,
                compression,
                path: staging.path.join(index.to_string()),
                placement: Placement::Staging,
                is_turn,
            };
            tasks.push(BuildTask { request, sender });
        }
        (builds, tasks)
    }

    /// Returns whether this process asks the backend to write what it cannot write.
    fn has_fallback(&self) -> bool {
        self.differ == Differ::Auto && self.context.batch.preparer == Preparer::Caller
    }

    /// Returns whether the backend, which asked for the layer, writes it itself if it finds no files of this
    /// process: if the error says nothing of the layer's content.
    fn is_left_to_backend(&self, error: &Error) -> bool {
        let is_asked = self.context.batch.preparer != Preparer::Caller;
        let is_unsupported = match error {
            Error::Unsupported(_) | Error::Unproven(_) => self.differ == Differ::Auto,
            error => error.kind() == Kind::Unimplemented,
        };
        is_asked && is_unsupported
    }

    async fn apply_with_fallback(
        &self,
        scope: &Scope,
        index: usize,
        layer: &Descriptor,
        mounts: &[Mount],
    ) -> PortResult<Applied> {
        let Batch {
            monitor, sync_fs, ..
        } = &self.context.batch;
        monitor.complete(index).await;
        let _permit = monitor.admit(index).await;
        let start = Instant::now();
        let shared = &self.context.shared;
        let applied = shared.apply_with_fallback(scope, layer, mounts, *sync_fs);
        let applied = applied.await;
        monitor.record_stage(index, Stage::Write, StageTiming::since(start));
        applied
    }
}

#[async_trait]
impl BatchApplier for StagedBatch {
    async fn apply(&self, scope: &Scope, index: usize, mounts: &[Mount]) -> PortResult<Applied> {
        let error = match self.apply_in_process(index, mounts).await {
            Ok(applied) => return Ok(applied),
            Err(error) => error,
        };
        let Ok(layer) = self.context.layer(index) else {
            let error = PortError::new(Kind::InvalidArgument, "apply layer", index.to_string());
            return Err(error.with_source("the batch has no such layer"));
        };
        if self.context.copy(index).is_some() {
            // containerd's differ would write it from its blob, which may not exist.
            let error = match error {
                Error::Unsupported(reason) => CopyFault::Target(reason).into(),
                error => error,
            };
            return Err(error.into_core(layer));
        }
        match error {
            error if self.is_left_to_backend(&error) => {
                let error = match self.is_torn.load(Ordering::Relaxed) {
                    true => return Err(Error::HalfWritten(Box::new(error)).into_core(layer)),
                    false => error,
                };
                let left =
                    PortError::new(Kind::Unimplemented, "apply layer", layer.digest.as_str());
                Err(left.with_source(error))
            }
            // containerd's differ gives no proof that is known here.
            Error::Unsupported(reason) if self.context.batch.integrity.is_on() => {
                Err(Error::Unproven(reason).into_core(layer))
            }
            Error::Unsupported(reason) if self.has_fallback() => {
                tracing::debug!(reason, digest = %layer.digest, "the layer is left to containerd");
                self.apply_with_fallback(scope, index, layer, mounts).await
            }
            error if error.is_content_error() => {
                let content = &*self.context.shared.content;
                let digest = tokio::select! {
                    digest = mismatched_digest(content, scope, layer) => digest,
                    () = self.context.cancellation.cancelled() => None,
                };
                let error = match digest {
                    Some(digest) => Error::Damaged(digest, Box::new(error)),
                    None => error,
                };
                Err(error.into_core(layer))
            }
            error => Err(error.into_core(layer)),
        }
    }

    async fn end(&self) {
        self.context.cancellation.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let links = Arc::clone(&self.context.links);
        // The panic hook has already reported a panic.
        if matches!(spawn_blocking(move || links.lift_flags()).await, Ok(true)) {
            let no_links = &self.context.shared.no_links;
            no_links.store(true, Ordering::Relaxed);
        }
    }
}

/// Builds layers in order, several at once, until all are built or the batch ends. Then waits until it
/// ends.
async fn build_all(context: Arc<BatchContext>, tasks: Vec<BuildTask>, tracker: TaskTracker) {
    let parallel = context.shared.settings.parallel();
    let slots = Arc::new(Semaphore::new(parallel));
    let places = Arc::new(Semaphore::new(STAGED_PER_SLOT * parallel));
    let mut builders = JoinSet::new();
    for BuildTask { request, sender } in tasks {
        // Permits are taken in order, so that the layer whose turn is next always gets a place.
        let permits = async {
            let place = Arc::clone(&places).acquire_owned().await.ok()?;
            let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
            let permit = context.admit(request.index).await.ok()?;
            Some((place, (Some(slot), permit)))
        };
        let permits = tokio::select! {
            permits = permits => permits,
            () = context.cancellation.cancelled() => break,
        };
        let Some((place, admission)) = permits else {
            break;
        };
        let (context, token) = (Arc::clone(&context), tracker.token());
        builders.spawn(async move {
            let is_turn = Arc::clone(&request.is_turn);
            let built = context.build(request, token).await;
            let is_turn = is_turn.load(Ordering::Relaxed);
            let admission = Some(admission).filter(|_| is_turn);
            // The receiver is dropped if another process made the layer.
            let _ = sender.send(built.map(|built| StagedLayer {
                built,
                admission,
                _place: place,
            }));
        });
    }
    context.cancellation.cancelled().await;
    while builders.join_next().await.is_some() {}
}

/// Checks that this process can write layers, and creates a staging directory if layers can be built
/// ahead.
fn prepare_staging(
    root: &Path,
    target: &Target,
    namespace: XattrNamespace,
) -> Result<Option<StagingArea>, Error> {
    let unsupported = |error| Error::Unsupported(format!("{:?}: {error}", target.snapshot()));
    target.probe(namespace).map_err(unsupported)?;
    match target {
        Target::Copy { .. } => return Ok(None),
        Target::Image { .. } | Target::Upper { .. } => {}
    }
    let (staging, orphans) = match Staging::create(root) {
        Ok(created) => created,
        Err(error) => {
            tracing::debug!(%error, "no layer is built ahead");
            return Ok(None);
        }
    };
    let can_move = staging
        .can_move_to(target.snapshot())
        .unwrap_or_else(|error| {
            tracing::debug!(%error, "no layer is built ahead");
            false
        });
    Ok(Some(StagingArea {
        staging,
        orphans,
        can_move,
    }))
}

/// Removes staging directories.
async fn remove_all(directories: Vec<Staging>) {
    let removed = spawn_blocking(|| {
        for directory in directories {
            let path = directory.path.clone();
            if let Err(error) = directory.remove() {
                tracing::warn!(?path, %error, "cannot remove a staging directory yet");
            }
        }
    });
    // The panic hook has already reported a panic.
    let _ = removed.await;
}
