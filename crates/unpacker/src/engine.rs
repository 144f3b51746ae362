// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The engine.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use resnap_core::{
    Digest, Error, Kind, ManifestPreference, Ports, Profiles, Scope, SnapshotterInfo,
};
use tokio::sync::{OnceCell, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::Instrument as _;

use crate::chain::Chain;
use crate::content::OffLoop;
use crate::flight::{Boarding, Flight, Seat};
use crate::job::Canceller;
use crate::jobs::Jobs;
use crate::lease::{Left, Tenure};
use crate::locks::Locks;
use crate::observe::{EngineEvent, EngineObserver};
use crate::plan::{plan, require_room};
use crate::plans::Plans;
use crate::slots::Slots;
use crate::title::title;
use crate::{
    Check, Clock, Configuration, EngineSettings, Job, JobStatus, JobWatch, LeaseStatus, Phase,
    Plan, Report, Request, ResolvedImage, UnpackError, check, image, missing,
};

/// Makes images ready, in one namespace, through one backend. Clones are the same engine: they
/// share jobs and limits.
#[derive(Debug, Clone)]
pub struct Engine(pub(crate) Shared);

pub(crate) type Shared = Arc<Inner>;

/// What all jobs of an engine share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) ports: Ports,
    pub(crate) scope: Scope,
    pub(crate) locks: Locks,
    pub(crate) lifetime: Duration,
    pub(crate) profiles: Profiles,
    pub(crate) configurations: Vec<Configuration>,
    pub(crate) clock: Clock,
    observer: Option<Arc<dyn EngineObserver>>,
    slots: Slots,
    identity: OnceCell<String>,
    pub(crate) plans: Plans,
    pub(crate) jobs: Mutex<Jobs>,
    /// Sent when a job comes, changes or goes.
    pub(crate) changed: watch::Sender<()>,
}

impl Engine {
    /// An engine for the images of `namespace`.
    ///
    /// # Errors
    /// [`UnpackError::RuntimeDir`] if the runtime directory cannot be made or used.
    pub fn new(
        mut ports: Ports,
        namespace: &str,
        settings: EngineSettings,
    ) -> Result<Self, UnpackError> {
        ports.content = Arc::new(OffLoop::new(ports.content));
        let locks = match settings.runtime_dir {
            None => Locks::in_process(),
            Some(dir) => Locks::in_dir(&dir).map_err(|error| UnpackError::RuntimeDir {
                dir,
                source: Arc::new(error),
            })?,
        };
        Ok(Self(Arc::new(Inner {
            ports,
            scope: Scope::new(namespace),
            locks,
            lifetime: settings.lease_lifetime,
            profiles: settings.profiles,
            configurations: settings.configurations,
            clock: settings.clock,
            observer: settings.observer,
            slots: Slots::new(settings.parallel_applies),
            identity: OnceCell::new(),
            plans: Plans::default(),
            jobs: Mutex::default(),
            changed: watch::Sender::new(()),
        })))
    }

    /// Begins to make an image ready, or joins the job that does so already. Must be called within
    /// a tokio runtime; the work ends with that, not with the handle.
    pub fn unpack(&self, mut request: Request) -> Job {
        let image = request.image.clone();
        let canceller = Canceller::default();
        let (engine, cancelling) = (self.clone(), canceller.clone());
        let begin = async move {
            let settled = engine.0.settle(&mut request).await;
            let plan = match settled {
                Ok(()) => {
                    let plan = engine.plan(&request).await;
                    missing::or_another(&engine, &request, plan).await
                }
                Err(error) => Err(error),
            };
            let seat = plan.and_then(|plan| engine.0.board(plan, request));
            let seat = seat.inspect_err(|error| engine.0.on_event(&EngineEvent::Refused(error)))?;
            cancelling.aim(&seat.flight);
            Ok(Arc::new(seat))
        };
        Job::new(image, tokio::spawn(begin), canceller)
    }

    /// Which snapshots `request` stands for; nothing is changed. Which image a name stands for is
    /// looked up each time; what that consists of cannot change and is read once, in a task of the
    /// tokio runtime within which this must be called.
    ///
    /// # Errors
    /// What of the image is missing or broken, as for [`Engine::unpack`].
    pub async fn plan(&self, request: &Request) -> Result<Arc<Plan>, UnpackError> {
        let mut image = self.resolve(&request.image).await?;
        let written = request.user_reference.as_deref();
        image.reference = image
            .reference
            .or_else(|| written.and_then(image::normalise));
        let key = plan_key(&self.0, &image, request);
        let (engine, asked) = (Arc::clone(&self.0), request.clone());
        let name = image.name.clone();
        let make = async move { plan(&engine, image, &asked).await };
        let plan = self.0.plans.get_or_make(&name, key, make).await?;
        self.0.require_support(&plan, request).await?;
        Ok(plan)
    }

    /// Finds an image record by an exact name, else a Docker name, else an image ID.
    ///
    /// # Errors
    /// [`UnpackError::NoSuchImage`], [`UnpackError::AmbiguousId`], or what the backend says.
    pub async fn resolve(&self, image: &str) -> Result<ResolvedImage, UnpackError> {
        image::resolve(&self.0.ports, &self.0.scope, image).await
    }

    /// The containerd namespace of its images.
    pub fn namespace(&self) -> &str {
        &self.0.scope.namespace
    }

    /// How ready an image is on the snapshotter that `request` names, or on all that work if it
    /// names none.
    ///
    /// # Errors
    /// As for [`Engine::plan`] and [`Engine::require_snapshotter`].
    pub async fn check_image(&self, request: &Request) -> Result<Check, UnpackError> {
        let name = &request.snapshotter;
        let snapshotters = if name.is_empty() {
            self.working_snapshotters().await?
        } else {
            self.require_snapshotter(name).await?;
            vec![name.clone()]
        };
        let plan = self.plan(request).await?;
        self.check(&plan, &snapshotters).await
    }

    /// The names of the snapshotters that work.
    ///
    /// # Errors
    /// What the backend says.
    pub async fn working_snapshotters(&self) -> Result<Vec<String>, UnpackError> {
        let all = self.snapshotters().await?.into_iter();
        let working = all.filter(|snapshotter| snapshotter.failure.is_none());
        Ok(working.map(|snapshotter| snapshotter.name).collect())
    }

    /// How ready the planned image is on each of `snapshotters`.
    ///
    /// # Errors
    /// What the backend says.
    pub async fn check(&self, plan: &Plan, snapshotters: &[String]) -> Result<Check, UnpackError> {
        check::check(&self.0, plan, snapshotters).await
    }

    /// Whether the planned image is ready on `snapshotter`, by a look at its top layer, on which a
    /// container stands, and at all of those that have to have labels.
    ///
    /// # Errors
    /// What the backend says.
    pub async fn is_ready(&self, plan: &Plan, snapshotter: &str) -> Result<bool, UnpackError> {
        check::is_ready(&self.0, plan, snapshotter).await
    }

    /// Whether the planned image, or a layer of it that others have there, is on `snapshotter` in
    /// the form of which the files come to be in guests only: mounted on the host they are missing.
    ///
    /// # Errors
    /// What the backend says.
    pub async fn is_remote(&self, plan: &Plan, snapshotter: &str) -> Result<bool, UnpackError> {
        check::is_remote(&self.0, plan, snapshotter).await
    }

    /// The jobs that run, the oldest first.
    pub fn jobs(&self) -> Vec<JobStatus> {
        let jobs = self.0.jobs();
        jobs.running.iter().map(|job| job.status()).collect()
    }

    /// Sees jobs come, change and go, from now on.
    pub fn watch_jobs(&self) -> JobWatch {
        JobWatch::new(Arc::clone(&self.0))
    }

    /// Cancels the running job of this number, for all who wait for it, as [`Canceller::cancel`]
    /// does, and waits for its end; or, if `unless_shared`, only if no more than one caller waits.
    /// Dropping the future stops only the waiting.
    ///
    /// # Errors
    /// [`UnpackError::NoSuchJob`], [`UnpackError::SharedJob`]. What the job itself failed with is
    /// in its status.
    pub async fn cancel(&self, id: u64, unless_shared: bool) -> Result<JobStatus, UnpackError> {
        self.0.cancel(id, unless_shared).await
    }

    /// What is known of the snapshotters.
    pub fn profiles(&self) -> &Profiles {
        &self.0.profiles
    }

    /// The names of all images of the namespace, sorted.
    ///
    /// # Errors
    /// What the backend says.
    pub async fn images(&self) -> Result<Vec<String>, UnpackError> {
        let images = self.0.ports.images.list(&self.0.scope).await?;
        let mut names: Vec<String> = images.into_iter().map(|image| image.name).collect();
        names.sort();
        Ok(names)
    }

    /// All snapshotters, those that failed to load included.
    ///
    /// # Errors
    /// What the backend says.
    pub async fn snapshotters(&self) -> Result<Vec<SnapshotterInfo>, UnpackError> {
        Ok(self.0.ports.introspection.snapshotters().await?)
    }

    /// Makes sure that `name` is a snapshotter that works.
    ///
    /// # Errors
    /// [`UnpackError::NoSuchSnapshotter`] with those that do.
    pub async fn require_snapshotter(&self, name: &str) -> Result<(), UnpackError> {
        self.0.require_snapshotter(name).await
    }

    /// The leases that engines made in the namespace, the oldest first.
    ///
    /// # Errors
    /// What the backend says.
    pub async fn leases(&self) -> Result<Vec<LeaseStatus>, UnpackError> {
        self.0.leases().await
    }

    /// Ends the leases of the dead, and answers with them. What only they kept is garbage then.
    ///
    /// # Errors
    /// What the backend says; leases are left then.
    pub async fn sweep(&self) -> Result<Vec<LeaseStatus>, UnpackError> {
        self.0.sweep().await
    }
}

impl Inner {
    /// A seat in the job for this plan: the one that runs already, or else a new one.
    fn board(self: &Arc<Self>, plan: Arc<Plan>, request: Request) -> Result<Seat, UnpackError> {
        let Request {
            snapshotter,
            repair,
            background,
            by_itself,
            origin,
            pod,
            user_reference,
            ..
        } = request;
        if plan.image.reference.is_none() && self.profiles.need(&snapshotter).is_some() {
            return Err(UnpackError::NoReference {
                image: plan.image.name.clone(),
                snapshotter,
            });
        }
        let mut jobs = self.jobs();
        let running = jobs.running.iter();
        let mut running = running.filter(|flight| flight.serves(&plan, &snapshotter, repair));
        if let Some(running) = running.next() {
            self.on_event(&EngineEvent::Joined);
            return Ok(Seat::new(running, true, background, pod.as_deref()));
        }
        require_room(jobs.running.iter().map(|flight| &*flight.plan), &plan)?;
        if background || by_itself {
            jobs.backoff.require_over(&plan, &snapshotter)?;
        } else {
            jobs.backoff.forget(&plan, &snapshotter);
        }
        let id = jobs.next_id();
        let boarding = Boarding {
            id,
            share: self.slots.share(id),
            title: title(&plan.image, user_reference.as_deref()),
            pod,
            plan,
            snapshotter,
            namespace: self.scope.namespace.to_string(),
            repair,
            origin,
            started: self.clock.now(),
            changed: self.changed.clone(),
            observer: self.observer.clone(),
        };
        let flight = Flight::new(boarding);
        let seat = Seat::new(&flight, false, background, flight.pod.as_deref());
        jobs.running.push(Arc::clone(&flight));
        let Flight {
            title, snapshotter, ..
        } = &*flight;
        let pod = flight.pod.as_deref();
        let span = tracing::info_span!("unpack", image = title, pod, snapshotter);
        tokio::spawn(Arc::clone(self).fly(Arc::clone(&flight)).instrument(span));
        Ok(seat)
    }

    /// Does a job to its end, whatever that is, and leaves nothing behind.
    async fn fly(self: Arc<Self>, flight: Arc<Flight>) {
        let (plan, title) = (&flight.plan, &flight.title);
        let tenure = Tenure::new(Arc::clone(&self), plan, title, &flight.snapshotter);
        let tenure = Arc::new(tenure);
        let chain = Chain::new(Arc::clone(&self), Arc::clone(&flight), Arc::clone(&tenure));
        (0..flight.plan.layers.len()).for_each(|index| flight.tell(index, Phase::Planned));
        let status = flight.status();
        tracing::info!(layers = status.layers, bytes = status.bytes, "unpack begun");
        // A task of its own, so that a panic ends only that.
        let mut work = tokio::spawn(async move { chain.make().await }.in_current_span());
        // A lease is succeeded well before half of its life is over.
        let pause = self.lifetime / 3;
        let mut succession = interval_at(Instant::now() + pause, pause);
        succession.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let result = loop {
            tokio::select! {
                ended = &mut work => break ended,
                _ = succession.tick() => {
                    if let Err(error) = tenure.succeed().await {
                        let error: &dyn std::error::Error = &error;
                        tracing::warn!(error, "the job's lease was not succeeded this time");
                    }
                }
            }
        };
        let image = || flight.title.clone();
        let result = result.unwrap_or_else(|error| {
            Err(UnpackError::Broken {
                image: image(),
                reason: error.to_string(),
            })
        });
        let left = tenure.end(result.is_err()).await;
        let clean = left.is_ok();
        let result = match (result, left) {
            (Err(cause), Err(Left::Snapshot(left, cleanup))) => Err(UnpackError::Unclean {
                cause: Box::new(cause),
                left,
                cleanup,
            }),
            (result, Err(Left::Snapshot(_, error) | Left::Lease(error))) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "the job is over, and its lease not yet");
                result
            }
            (result, Ok(())) => result,
        };
        let made = flight.plan.top().filter(|_| result.is_ok());
        let result = match result {
            Ok(layers) => Ok(report(&flight, layers)),
            Err(error) => Err(self.explain(&flight.snapshotter, error).await),
        };
        if !clean {
            self.on_event(&EngineEvent::CleanupFailed);
        }
        self.land(&flight, result);
        if !clean {
            let made = made.map(|top| (flight.snapshotter.as_str(), top));
            self.reap(made).await;
        }
    }

    /// containerd answers a wrong snapshotter name with InvalidArgument, whatever the call; asking
    /// only then saves the question where all is well.
    async fn explain(&self, snapshotter: &str, error: UnpackError) -> UnpackError {
        if !matches!(
            error.kind(),
            Kind::InvalidArgument | Kind::NotFound | Kind::Unknown
        ) {
            return error;
        }
        match self.require_snapshotter(snapshotter).await {
            Err(missing @ UnpackError::NoSuchSnapshotter { .. }) => missing,
            _ => error,
        }
    }

    pub(crate) async fn require_snapshotter(&self, name: &str) -> Result<(), UnpackError> {
        let all = self.ports.introspection.snapshotters().await?;
        let found = all.iter().find(|snapshotter| snapshotter.name == name);
        if found.is_some_and(|snapshotter| snapshotter.failure.is_none()) {
            return Ok(());
        }
        Err(UnpackError::NoSuchSnapshotter {
            snapshotter: name.to_owned(),
            failure: found.and_then(|snapshotter| snapshotter.failure.clone()),
            available: all
                .iter()
                .filter(|snapshotter| snapshotter.failure.is_none())
                .map(|snapshotter| snapshotter.name.clone())
                .collect(),
        })
    }

    /// The lock under which a snapshot is made, by whoever it may be on this machine.
    pub(crate) async fn chain_lock(&self, snapshotter: &str, key: &str) -> Result<String, Error> {
        let mut backend = "";
        if self.locks.are_shared() {
            let identity = || self.ports.introspection.identity();
            backend = self.identity.get_or_try_init(identity).await?;
        }
        let namespace = &self.scope.namespace;
        let of = format!("{backend}\n{namespace}\n{snapshotter}\n{key}");
        Ok(format!("chain-{}", Digest::sha256(of.as_bytes()).encoded()))
    }

    fn on_event(&self, seen: &EngineEvent<'_>) {
        if let Some(observer) = &self.observer {
            observer.on_event(seen);
        }
    }
}

/// What has to be the same for a plan to be the same; `None` if it cannot be known.
fn plan_key(engine: &Inner, image: &ResolvedImage, request: &Request) -> Option<String> {
    if !request.wrappers.is_empty() {
        // What a wrapper does is its own affair.
        return None;
    }
    let (name, reference) = (&image.name, &image.reference);
    let features = match request.pick {
        ManifestPreference::Best => &engine.profiles.get(&request.snapshotter).os_features,
        ManifestPreference::Plain | ManifestPreference::First => &BTreeSet::new(),
    };
    let by_id = (request.pick == ManifestPreference::First).then_some(&request.image);
    Some(format!(
        "{name}\n{reference:?}\n{}\n{:?}\n{:?}\n{features:?}\n{by_id:?}",
        image.target.digest, request.platform, request.pick
    ))
}

fn report(flight: &Flight, layers: Vec<crate::LayerReport>) -> Report {
    let plan = &flight.plan;
    Report {
        image: plan.image.name.clone(),
        reference: plan.image.reference.clone(),
        snapshotter: flight.snapshotter.clone(),
        platform: plan.platform.to_string(),
        manifest: plan.manifest.digest.clone(),
        config: plan.config.digest.clone(),
        chain_id: plan.top().cloned(),
        layers,
        seconds: flight.seconds(),
    }
}

#[cfg(test)]
mod tests {
    use resnap_core::testing::{Simulated, SimulatedImage, SimulatedLayer};
    use resnap_handler_wrapper::MAX_LAYERS;

    use super::*;
    use crate::plans::MAX_BYTES;

    #[tokio::test]
    async fn plans_of_tall_images_do_not_pile_up() {
        let backend = Simulated::new();
        let layer = SimulatedLayer::new("the same again");
        let tall = SimulatedImage::new(vec![layer.clone(); MAX_LAYERS]);
        let mut wordy = layer.clone();
        let word = |number| (format!("org.example.{number}"), "x".repeat(4000));
        wordy.descriptor.annotations = (0..1500).map(word).collect();
        let wordy = SimulatedImage::new([wordy]);
        let usual = SimulatedImage::new([layer]);
        let engine = Engine::new(backend.ports(), "k8s.io", EngineSettings::default()).unwrap();
        for number in 0..12 {
            for (name, image) in [("tall", &tall), ("wordy", &wordy), ("usual", &usual)] {
                let name = format!("{name}-{number}");
                backend.add_image("k8s.io", &name, image);
                engine.plan(&Request::new(&name, "")).await.unwrap();
                let kept = engine.0.plans.kept();
                let texts = kept.values().map(|kept| format!("{:?}", kept.result));
                let bytes: usize = texts.map(|text| text.len()).sum();
                assert!(bytes <= MAX_BYTES, "{bytes} in {}", kept.len());
                assert!(kept.keys().any(|key| key.starts_with(&name)), "{name}");
            }
        }
    }
}
