// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A batch: its first layer says where all go, and the others are built ahead from then on.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use resnap_core::media_type::{self, Compression, Format};
use resnap_core::{
    Admission, Applied, Batch, BatchApplier, Descriptor, Error as PortError, Kind, Mount,
    Result as PortResult, Scope, Span, Stage,
};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

use crate::applier::{Differ, Shared};
use crate::build::{Built, Placement, build};
use crate::erofs::{self, Parents};
use crate::error::Error;
use crate::extract::Style;
use crate::guard::Guard;
use crate::memory::{Denied, Share};
use crate::pipeline::{Stop, Work};
use crate::source;
use crate::staging::Staging;
use crate::target::{Shape, Target, Terms, find};

/// A layer that is being built.
struct Build {
    receiver: oneshot::Receiver<Result<Ready, Error>>,
    /// To be set when its turn comes.
    is_turn: Arc<AtomicBool>,
}

/// A layer that waits for its turn.
struct Ready {
    built: Built,
    /// Kept if its turn has come: others may wait for the memory that it has, with all admissions that
    /// there are.
    admission: Option<Admitted>,
    _place: OwnedSemaphorePermit,
}

/// The right to write a layer, of this batch and of all.
type Admitted = (Option<OwnedSemaphorePermit>, Admission);

/// Layers that are being built or wait for their turn, for each that may be built at once: each takes
/// memory and has a file open.
const AHEAD: usize = 4;

/// How long what has been given up may take to notice.
const GRACE: Duration = Duration::from_secs(5);

/// A batch whose layers are built ahead.
pub(crate) struct Ahead {
    job: Arc<Job>,
    differ: Differ,
    stop: watch::Sender<bool>,
    /// Held by all that is at work.
    alive: Mutex<Option<mpsc::Sender<Infallible>>>,
    /// Ends when nothing is at work.
    ended: tokio::sync::Mutex<mpsc::Receiver<Infallible>>,
    /// What is built ahead; empty where nothing can be.
    builds: OnceCell<Mutex<HashMap<usize, Build>>>,
    /// The snapshotter's.
    root: OnceCell<PathBuf>,
    /// Its snapshots are newer.
    since: SystemTime,
}

/// What building a layer takes.
struct Job {
    shared: Arc<Shared>,
    batch: Batch,
    stop: Stop,
    user: bool,
    content: OnceCell<Option<PathBuf>>,
    /// Of the memory for layers ahead of their turn.
    share: Share,
    parents: Arc<Parents>,
}

/// How a layer is to be built.
struct Task {
    index: usize,
    shape: Shape,
    compression: Compression,
    path: PathBuf,
    place: Placement,
    is_turn: Arc<AtomicBool>,
}

/// A layer to be built ahead.
struct Order {
    task: Task,
    sender: oneshot::Sender<Result<Ready, Error>>,
}

impl Ahead {
    pub(crate) fn new(shared: Arc<Shared>, batch: Batch, differ: Differ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (alive, ended) = mpsc::channel(1);
        Self {
            job: Arc::new(Job {
                shared,
                batch,
                stop: Stop(stopped),
                user: is_user_namespace(),
                content: OnceCell::new(),
                share: Share::default(),
                parents: Arc::default(),
            }),
            differ,
            stop,
            alive: Mutex::new(Some(alive)),
            ended: tokio::sync::Mutex::new(ended),
            builds: OnceCell::new(),
            root: OnceCell::new(),
            since: SystemTime::now(),
        }
    }

    /// Says while it is held that something is at work.
    fn alive(&self) -> Result<mpsc::Sender<Infallible>, Error> {
        let alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        alive.clone().ok_or(Error::Stopped)
    }

    async fn ours(&self, index: usize, mounts: &[Mount]) -> Result<Applied, Error> {
        let job = &self.job;
        let layer = job.layer(index)?;
        let (format, compression) = known(layer)?;
        let root = self.root.get_or_try_init(|| job.root()).await?;
        let terms = Terms {
            root,
            user: job.user,
            since: self.since,
        };
        let target = find(mounts, terms)?;
        let shape = target.shape(format)?;
        let begun = self.builds.get_or_try_init(|| self.begin(index, &target));
        let build = {
            let mut builds = begun.await?.lock().unwrap_or_else(PoisonError::into_inner);
            // Those before were made by somebody else.
            builds.retain(|at, _| *at >= index);
            builds.remove(&index)
        };
        let ready = match build {
            Some(build) => {
                build.is_turn.store(true, Ordering::Relaxed);
                match build.receiver.await.map_err(|_| Error::Stopped)? {
                    Err(Error::Denied(Denied::Ahead)) => None,
                    ready => Some(ready?),
                }
            }
            None => None,
        };
        let (built, admission) = match ready {
            Some(ready) => (Some(ready.built), ready.admission),
            None => (None, None),
        };
        let _admission = match admission {
            Some(admission) => admission,
            None => (None, job.admit(index).await?),
        };
        let built = match built {
            Some(built) => built,
            None => {
                let task = Task {
                    index,
                    shape,
                    compression,
                    path: target.path(),
                    place: Placement::InPlace,
                    is_turn: Arc::new(AtomicBool::new(true)),
                };
                job.build(task, self.alive()?).await?
            }
        };
        let begin = Instant::now();
        let (alive, sync, blob) = (self.alive()?, job.batch.sync_fs, layer.digest.clone());
        let parents = Arc::clone(&job.parents);
        let placed = spawn_blocking(move || {
            let _alive = alive;
            built.place(&target, &blob, sync, &parents)
        });
        let applied = placed.await.map_err(|_| Error::Panicked("writes"))??;
        let monitor = &job.batch.monitor;
        monitor.went(index, Stage::Place, Span::since(begin));
        Ok(applied)
    }

    /// Begins to build the layers from `first` on, if they can be moved to where `target` is.
    async fn begin(
        &self,
        first: usize,
        target: &Target,
    ) -> Result<Mutex<HashMap<usize, Build>>, Error> {
        let none = || Ok(Mutex::default());
        let Some(root) = self.root.get().cloned() else {
            return none();
        };
        let (alive, to, user) = (self.alive()?, target.clone(), self.job.user);
        let begun = spawn_blocking(move || {
            let _alive = alive;
            begin(&root, &to, user)
        });
        let begun = begun.await.map_err(|_| Error::Panicked("makes files"))??;
        let Some((staging, dead, reaches)) = begun else {
            return none();
        };
        let (mut builds, mut orders) = (HashMap::new(), Vec::new());
        if reaches {
            for (index, layer) in self.job.batch.layers.iter().enumerate().skip(first) {
                let Ok((format, compression)) = known(layer) else {
                    continue;
                };
                let Ok(shape) = target.shape(format) else {
                    continue;
                };
                let shape = match shape {
                    Shape::Tree(Style::Base) if index > first => Shape::Tree(Style::Upper),
                    Shape::Image { .. } if index > first => Shape::Image { is_lowest: false },
                    shape => shape,
                };
                let (sender, receiver) = oneshot::channel();
                let is_turn = Arc::new(AtomicBool::new(false));
                let build = Build {
                    receiver,
                    is_turn: Arc::clone(&is_turn),
                };
                builds.insert(index, build);
                let task = Task {
                    index,
                    shape,
                    compression,
                    path: staging.path.join(index.to_string()),
                    place: Placement::Ahead,
                    is_turn,
                };
                orders.push(Order { task, sender });
            }
        }
        let (job, alive) = (Arc::clone(&self.job), self.alive()?);
        tokio::spawn(async move {
            let build = build_all(job, orders, alive.clone());
            tokio::join!(build, clear(dead));
            clear(vec![staging]).await;
            drop(alive);
        });
        Ok(Mutex::new(builds))
    }

    async fn by_fallback(
        &self,
        scope: &Scope,
        index: usize,
        layer: &Descriptor,
        mounts: &[Mount],
    ) -> PortResult<Applied> {
        let Batch {
            monitor, sync_fs, ..
        } = &self.job.batch;
        let _admission = monitor.admit(index).await;
        let begin = Instant::now();
        let shared = &self.job.shared;
        let applied = shared.by_fallback(scope, layer, mounts, *sync_fs).await;
        monitor.went(index, Stage::Write, Span::since(begin));
        applied
    }
}

#[async_trait]
impl BatchApplier for Ahead {
    async fn apply(&self, scope: &Scope, index: usize, mounts: &[Mount]) -> PortResult<Applied> {
        let error = match self.ours(index, mounts).await {
            Ok(applied) => return Ok(applied),
            Err(error) => error,
        };
        let Ok(layer) = self.job.layer(index) else {
            let error = PortError::new(Kind::InvalidArgument, "apply layer", index.to_string());
            return Err(error.because("the batch has no such layer"));
        };
        match error {
            Error::Unfit(reason) if self.differ == Differ::Auto => {
                tracing::debug!(reason, digest = %layer.digest, "left to containerd");
                self.by_fallback(scope, index, layer, mounts).await
            }
            error => Err(error.into_core(layer)),
        }
    }

    async fn end(&self) {
        self.stop.send_replace(true);
        drop(
            self.alive
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        // Nobody sends anything; the last one that could be at work is gone.
        self.ended.lock().await.recv().await;
    }
}

impl Job {
    fn layer(&self, index: usize) -> Result<&Descriptor, Error> {
        let layer = self.batch.layers.get(index);
        layer.ok_or_else(|| Error::Unfit(format!("no layer {index}")))
    }

    /// The root of the snapshotter.
    async fn root(&self) -> Result<PathBuf, Error> {
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
    async fn admit(&self, index: usize) -> Result<Admission, Error> {
        let mut stop = self.stop.clone();
        tokio::select! {
            admission = self.batch.monitor.admit(index) => Ok(admission),
            () = stop.set() => Err(Error::Stopped),
        }
    }

    /// Builds a layer, unless it is stopped or does not get on.
    async fn build(&self, task: Task, alive: mpsc::Sender<Infallible>) -> Result<Built, Error> {
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

/// Builds layers in order, some at once, until all are built or nobody wants them; then waits until
/// nobody does.
async fn build_all(job: Arc<Job>, orders: Vec<Order>, alive: mpsc::Sender<Infallible>) {
    let parallel = job.shared.settings.parallel();
    let slots = Arc::new(Semaphore::new(parallel));
    let places = Arc::new(Semaphore::new(AHEAD * parallel));
    let mut stop = job.stop.clone();
    let mut builders = JoinSet::new();
    for Order { task, sender } in orders {
        // In order: the next to be applied always has a place.
        let admission = async {
            let place = Arc::clone(&places).acquire_owned().await.ok()?;
            let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
            let admission = job.admit(task.index).await.ok()?;
            Some((place, (Some(slot), admission)))
        };
        let admission = tokio::select! {
            admission = admission => admission,
            () = stop.set() => break,
        };
        let Some((place, admission)) = admission else {
            break;
        };
        let (job, alive) = (Arc::clone(&job), alive.clone());
        builders.spawn(async move {
            let is_turn = Arc::clone(&task.is_turn);
            let built = job.build(task, alive).await;
            let is_turn = is_turn.load(Ordering::Relaxed);
            let admission = Some(admission).filter(|_| is_turn);
            // Nobody asks for a layer that somebody else made.
            let _ = sender.send(built.map(|built| Ready {
                built,
                admission,
                _place: place,
            }));
        });
    }
    stop.set().await;
    while builders.join_next().await.is_some() {}
}

/// Looks whether this process can write as it has to, and makes a directory for what is built ahead,
/// if anything can be; with those of the dead, and whether the snapshot is reached from it.
fn begin(
    root: &Path,
    target: &Target,
    user: bool,
) -> Result<Option<(Staging, Vec<Staging>, bool)>, Error> {
    let unfit = |error| Error::Unfit(format!("{:?}: {error}", target.snapshot()));
    target.probe(user).map_err(unfit)?;
    match target {
        Target::Copy { .. } => return Ok(None),
        Target::Image { .. } if erofs::has_verity(root).map_err(unfit)? => {
            return Err(Error::Unfit("layers have dm-verity".to_owned()));
        }
        Target::Image { .. } | Target::Upper { .. } => {}
    }
    let (staging, dead) = match Staging::begin(root) {
        Ok(begun) => begun,
        Err(error) => {
            tracing::debug!(%error, "nothing is built ahead");
            return Ok(None);
        }
    };
    let reaches = staging.reaches(target.snapshot()).unwrap_or_else(|error| {
        tracing::debug!(%error, "nothing is built ahead");
        false
    });
    Ok(Some((staging, dead, reaches)))
}

async fn clear(directories: Vec<Staging>) {
    let cleared = spawn_blocking(|| {
        for directory in directories {
            let path = directory.path.clone();
            if let Err(error) = directory.remove() {
                tracing::warn!(?path, %error, "cannot be removed yet");
            }
        }
    });
    // A panic there is told by itself.
    let _ = cleared.await;
}

fn known(layer: &Descriptor) -> Result<(Format, Compression), Error> {
    let kind = &layer.media_type;
    media_type::layer(kind).ok_or_else(|| Error::Unfit(format!("layers of type {kind}")))
}

/// Whether this process is in a user namespace of less than all users (`user_namespaces(7)`).
fn is_user_namespace() -> bool {
    let map = std::fs::read_to_string(Path::new("/proc/self/uid_map")).unwrap_or_default();
    let numbers: Vec<&str> = map.split_whitespace().collect();
    !map.is_empty() && numbers != ["0", "0", "4294967295"]
}
