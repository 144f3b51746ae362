// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A batch: its first layer says where all go, and the others are built ahead from then on.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use async_trait::async_trait;
use resnap_core::{
    Applied, ApplyPermit, Batch, BatchApplier, Descriptor, Error as PortError, Kind, Mount,
    Result as PortResult, Scope, Stage, StageTiming,
};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinSet, spawn_blocking};

use crate::applier::{Differ, Shared};
use crate::build::{Built, Placement};
use crate::erofs;
use crate::error::Error;
use crate::extract::Style;
use crate::job::{Job, Task, known};
use crate::memory::Denied;
use crate::pipeline::Stop;
use crate::source::other_digest;
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
type Admitted = (Option<OwnedSemaphorePermit>, ApplyPermit);

/// Layers that are being built or wait for their turn, for each that may be built at once: each takes
/// memory and has a file open.
const AHEAD: usize = 4;

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
            job: Arc::new(Job::new(shared, batch, Stop(stopped))),
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
        monitor.record_stage(index, Stage::Place, StageTiming::since(begin));
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
        monitor.record_stage(index, Stage::Write, StageTiming::since(begin));
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
            return Err(error.with_source("the batch has no such layer"));
        };
        match error {
            Error::Unfit(reason) if self.differ == Differ::Auto => {
                tracing::debug!(reason, digest = %layer.digest, "left to containerd");
                self.by_fallback(scope, index, layer, mounts).await
            }
            error if error.is_of_bytes() => {
                let mut stop = self.job.stop.clone();
                let content = &*self.job.shared.content;
                let digest = tokio::select! {
                    digest = other_digest(content, scope, layer) => digest,
                    () = stop.set() => None,
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
