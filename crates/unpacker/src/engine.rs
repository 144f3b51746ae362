// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The engine: the public methods, over the modules that implement them.

use std::ops::Deref;
use std::sync::Arc;

use futures::stream::BoxStream;
use resnap_core::{Applied, Error, Integrity, Ports, Scope, error_chain};
use tokio::sync::Semaphore;
use tracing::Instrument as _;

use crate::alternatives::complete_plan;
use crate::asked::write_layer;
use crate::backend::Backend;
use crate::content::OffLoop;
use crate::documents::Documents;
use crate::found_ready::FoundReady;
use crate::inventory::Inventory;
use crate::job::Canceller;
use crate::lease::LeaseKeeper;
use crate::locks::Locks;
use crate::observe::EngineEvent;
use crate::proofs::warn_of_unused;
use crate::reader::Reader;
use crate::registry::JobRegistry;
use crate::route::pick_target;
use crate::run::Runner;
use crate::running::Waiter;
use crate::sibling::inspect;
use crate::signed::{Views, verify_signed};
use crate::slots::Slots;
use crate::support::require_reference;
use crate::unpacked::request_of;
use crate::verify::Verifier;
use crate::watch::watch_jobs;
use crate::{
    Check, Configuration, EngineSettings, EvictRequest, Eviction, Job, JobStatus, LayerRequest,
    LeaseStatus, Plan, Request, UnpackError, UnpackedImage, evict, orphans,
};

/// Makes images ready in one containerd namespace. Clones share jobs and limits. It can do all that its
/// [`Reader`] can, to which it dereferences.
#[derive(Debug, Clone)]
pub struct Engine {
    reader: Reader,
    configurations: Arc<[Configuration]>,
    keeper: Arc<LeaseKeeper>,
    registry: Arc<JobRegistry>,
    runner: Arc<Runner>,
    views: Arc<Views>,
    pub(crate) found_ready: Arc<FoundReady>,
}

impl Deref for Engine {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        &self.reader
    }
}

/// The snapshotter of a request that names none, in errors.
const ANY: &str = "its snapshotter";

impl Engine {
    /// Returns an engine for the images of `namespace`.
    ///
    /// # Errors
    /// [`UnpackError::RuntimeDir`] if the runtime directory cannot be created or used.
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
        let backend = Arc::new(Backend {
            ports,
            scope: Scope::new(namespace),
            profiles: settings.profiles,
            sources: settings.sources,
            keep_fetched: settings.keep_fetched,
            absent: Default::default(),
            // Others get slots beyond the limit if all of these wait for registries.
            feeds: Arc::new(Semaphore::new(settings.parallel_applies)),
        });
        let keeper = Arc::new(LeaseKeeper {
            backend: Arc::clone(&backend),
            locks,
            clock: settings.clock.clone(),
            lifetime: settings.lease_lifetime,
        });
        let slots = Slots::new(settings.parallel_applies);
        let registry = JobRegistry::new(slots, settings.clock, settings.observer);
        let registry = Arc::new(registry);
        let runner = Runner::new(
            Arc::clone(&backend),
            Arc::clone(&keeper),
            Arc::clone(&registry),
        );
        Ok(Self {
            reader: Reader::new(backend),
            configurations: settings.configurations.into(),
            keeper,
            registry,
            runner: Arc::new(runner),
            views: Arc::default(),
            found_ready: Arc::default(),
        })
    }

    /// Starts to make an image ready, or joins the job that already does so. Must be called within
    /// a tokio runtime; the work ends with the runtime, not with the handle.
    pub fn unpack(&self, request: Request) -> Job {
        let image = request.image.clone();
        let canceller = Canceller::default();
        let (engine, cancelling) = (self.clone(), canceller.clone());
        let start = async move {
            let waiter = engine.join_or_start(request, &cancelling).await;
            let waiter = waiter.inspect_err(|error| {
                let refused = EngineEvent::Refused(error);
                engine.registry.notify_observer(&refused);
            })?;
            cancelling.set_job(&waiter.job);
            Ok(Arc::new(waiter))
        };
        Job::new(image, tokio::spawn(start), canceller)
    }

    /// Joins the running job for a request, or starts one.
    async fn join_or_start(
        &self,
        mut request: Request,
        canceller: &Canceller,
    ) -> Result<Waiter, UnpackError> {
        let cancelled = UnpackError::Cancelled {
            image: request.image.clone(),
            snapshotter: request.snapshotter.clone().unwrap_or(ANY.to_owned()),
        };
        let mut documents = Documents::new(&self.keeper, &self.planner);
        let planned = tokio::select! {
            planned = self.plan_job(&mut request, &mut documents) => planned,
            () = canceller.requested() => Err(cancelled),
        };
        documents.end().await;
        let (plan, snapshotter) = planned?;
        let waiter = self.registry.join_or_start(plan, request, snapshotter)?;
        if !waiter.joined {
            let (job, spec) = (Arc::clone(&waiter.job), &waiter.job.spec);
            let (pod, snapshotter) = (spec.pod.as_ref().map(|pod| &*pod.name), &spec.snapshotter);
            let span = tracing::info_span!("unpack", image = spec.title, pod, snapshotter);
            let run = Arc::clone(&self.runner).run_job(job);
            tokio::spawn(run.instrument(span));
        }
        Ok(waiter)
    }

    /// Chooses the snapshotter of a request, if it names none, and plans its layers there.
    async fn plan_job(
        &self,
        request: &mut Request,
        documents: &mut Documents<'_>,
    ) -> Result<(Arc<Plan>, String), UnpackError> {
        let (backend, planner) = (&self.backend, &self.planner);
        if request.snapshotter.is_none() && !backend.sources.is_empty() {
            // The image's platforms decide on the snapshotter, which then reports what is wrong.
            _ = documents.plan(request).await;
        }
        let snapshotter = pick_target(backend, &self.configurations, request).await?;
        let plan = documents.plan(request).await;
        let plan = complete_plan(backend, planner, request, &snapshotter, plan).await?;
        require_reference(backend, &plan, &snapshotter)?;
        Ok((plan, snapshotter))
    }

    /// Checks how ready an image is on the snapshotter that `request` names, or on all working
    /// snapshotters if it names none. Warns of chains that were made without the layers' parents, by
    /// views of them under a lease of its own.
    ///
    /// # Errors
    /// As for [`Reader::plan`] and [`Reader::require_snapshotter`].
    pub async fn check_image(&self, request: &Request) -> Result<Check, UnpackError> {
        let snapshotters = match &request.snapshotter {
            None => self.working_snapshotters().await?,
            Some(name) => {
                self.require_snapshotter(name).await?;
                vec![name.clone()]
            }
        };
        let plan = self.plan(request).await?;
        let mut check = self.check(&plan, &snapshotters).await?;
        let ready = check.snapshotters.iter();
        let ready = ready.filter(|(_, readiness)| readiness.ready && plan.layers.len() > 1);
        for (snapshotter, _) in ready {
            if let Err(error) = self.require_parents(&plan, snapshotter).await {
                check.warnings.push(format!(
                    "on {snapshotter}, files may be wrong: {}; remove it with `resnap evict` and \
                     unpack it again",
                    error_chain(&error)
                ));
            }
        }
        self.warn_of_unused_proofs(&mut [(plan, &mut check)]).await;
        Ok(check)
    }

    /// Checks that the layers of a planned image on `snapshotter` were made with their parents, by a view of
    /// them under a lease of its own. Snapshotters whose layers cannot be looked at are skipped.
    ///
    /// # Errors
    /// The error for a chain that was made without them.
    pub async fn require_parents(&self, plan: &Plan, snapshotter: &str) -> Result<(), Error> {
        inspect(&self.keeper, plan, snapshotter).await
    }

    /// Adds to checks the warnings of snapshotters that mount layers without their dm-verity trees. Looks
    /// at each snapshotter once, by a view under a lease of its own.
    pub async fn warn_of_unused_proofs(&self, checks: &mut [(Arc<Plan>, &mut Check)]) {
        warn_of_unused(&self.keeper, checks).await;
    }

    /// Writes a layer that the backend asks for, under a job of its own once there is something to write.
    /// Returns `None`, with nothing written, if the backend has to write it. Dropping the future cancels the
    /// work.
    ///
    /// # Errors
    /// The error of the layer or of the backend. The snapshot must be removed then.
    pub async fn write_layer(&self, request: LayerRequest) -> Result<Option<Applied>, Error> {
        write_layer(&self.backend, &self.registry, request).await
    }

    /// Returns the running jobs, the oldest first.
    pub fn jobs(&self) -> Vec<JobStatus> {
        self.registry.running()
    }

    /// Returns the running jobs, which may be none, and then the current status of jobs that changed,
    /// and once more of a job that has ended. The stream does not end. A slow reader misses
    /// intermediate states; it misses the end of a job only if 64 others have ended after it.
    pub fn watch_jobs(&self) -> BoxStream<'static, Vec<JobStatus>> {
        watch_jobs(Arc::clone(&self.registry))
    }

    /// Cancels a running job for all waiters, as [`Canceller::cancel`] does, and waits until it has
    /// ended. With `unless_shared`, a job with more than one waiter is not cancelled. Dropping the
    /// future stops only the waiting.
    ///
    /// # Errors
    /// [`UnpackError::NoSuchJob`], [`UnpackError::SharedJob`]. The error of the job itself is in its
    /// status.
    pub async fn cancel(&self, id: u64, unless_shared: bool) -> Result<JobStatus, UnpackError> {
        self.registry.cancel(id, unless_shared).await
    }

    /// Verifies the signatures of an image's layers again, without reading the layers, if the layers on
    /// `snapshotter` need signatures; otherwise nothing is asked for. All layers must exist.
    ///
    /// # Errors
    /// [`UnpackError::Unsigned`], the errors of [`Reader::plan`], or the backend's error.
    pub async fn verify_signed(
        &self,
        request: &Request,
        snapshotter: &str,
    ) -> Result<(), UnpackError> {
        if self.backend.profiles.get(snapshotter).integrity != Integrity::Signed {
            return Ok(());
        }
        let plan = self.plan(request).await?;
        verify_signed(&self.keeper, &self.views, &plan, snapshotter).await
    }

    /// Returns a verifier of the layers of images on `snapshotter`. It compares all of them with what proves
    /// them; [`Engine::verify_signed`] looks at their signatures only.
    pub fn verifier(&self, snapshotter: &str) -> Verifier {
        Verifier::new(Arc::clone(&self.keeper), self.planner.clone(), snapshotter)
    }

    /// Returns the images that are unpacked on `snapshotter`, ordered by name. Takes as few calls for many
    /// images as for one.
    ///
    /// # Errors
    /// As for [`Reader::require_snapshotter`], or the backend's error.
    pub async fn unpacked_images(
        &self,
        snapshotter: &str,
    ) -> Result<Vec<UnpackedImage>, UnpackError> {
        self.require_snapshotter(snapshotter).await?;
        let inventory = Inventory::read(&self.backend, snapshotter).await?;
        Ok(inventory.unpacked())
    }

    /// Returns a request for each image that is unpacked on a snapshotter, for the manifest that is unpacked there.
    ///
    /// # Errors
    /// As for [`Engine::unpacked_images`].
    pub async fn unpacked_requests(&self, snapshotter: &str) -> Result<Vec<Request>, UnpackError> {
        let mut requests = Vec::new();
        for image in self.unpacked_images(snapshotter).await? {
            requests.push(request_of(&self.backend, &self.planner, &image, snapshotter).await);
        }
        Ok(requests)
    }

    /// Evicts images from a snapshotter: removes the labels by which garbage collection keeps their
    /// chains there, and collects garbage. Images with the same chain are evicted together. Containers
    /// keep their snapshots until they end. A refused image does not keep the others from being evicted.
    /// Dropping the future may leave the rest to the backend's next garbage collection.
    ///
    /// # Errors
    /// As for [`Reader::resolve`] and [`Reader::require_snapshotter`], before anything is changed; or the
    /// backend's error.
    pub async fn evict(&self, request: &EvictRequest) -> Result<Eviction, UnpackError> {
        evict::evict(&self.keeper, &self.planner, request).await
    }

    /// Collects the backend's garbage, and returns when it is gone.
    ///
    /// # Errors
    /// The backend's error.
    pub async fn collect_garbage(&self) -> Result<(), UnpackError> {
        let (ports, scope) = (&self.backend.ports, &self.backend.scope);
        Ok(ports.leases.collect_garbage(scope).await?)
    }

    /// Returns the leases that engines made in the namespace, the oldest first.
    ///
    /// # Errors
    /// The backend's error.
    pub async fn leases(&self) -> Result<Vec<LeaseStatus>, UnpackError> {
        orphans::leases(&self.keeper).await
    }

    /// Releases the leases of owners that have ended, and returns them. Content kept only by them
    /// becomes garbage.
    ///
    /// # Errors
    /// The backend's error; some leases may be left then.
    pub async fn sweep(&self) -> Result<Vec<LeaseStatus>, UnpackError> {
        orphans::sweep(&self.keeper).await
    }
}
