// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The engine.

use std::time::Instant;

use resnap_core::{Kind, Ports, Scope, SnapshotterInfo, labels};
use resnap_handler_wrapper::Wrapper;
use resnap_platforms::Platform;
use tokio::sync::mpsc;
use tracing::Instrument as _;

use crate::chain::Chain;
use crate::job::Teller;
use crate::plan::plan;
use crate::{Check, Event, Job, Phase, Plan, Report, ResolvedImage, UnpackError, check, image};

/// Makes images ready, in one namespace, through one backend. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    ports: Ports,
    scope: Scope,
}

/// What is wanted.
#[derive(Clone)]
pub struct Request {
    /// An exact name, else a Docker name, else an image ID or the start of one.
    pub image: String,
    /// Where the image is to be ready.
    pub snapshotter: String,
    /// The platform; the machine's own if `None`.
    pub platform: Option<Platform>,
    /// The reference the user wrote, for where the store knows the image by its ID only.
    pub user_reference: Option<String>,
    /// What else is to be done to the layers' descriptors: annotations under
    /// `containerd.io/snapshot/` become labels.
    pub wrappers: Vec<Wrapper>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("image", &self.image)
            .field("snapshotter", &self.snapshotter)
            .field("platform", &self.platform)
            .finish_non_exhaustive()
    }
}

impl Request {
    /// `image` on `snapshotter`, for the machine's own platform.
    pub fn new(image: impl Into<String>, snapshotter: impl Into<String>) -> Self {
        Self {
            image: image.into(),
            snapshotter: snapshotter.into(),
            platform: None,
            user_reference: None,
            wrappers: Vec::new(),
        }
    }
}

impl Engine {
    /// An engine for the images of `namespace`.
    pub fn new(ports: Ports, namespace: &str) -> Self {
        Self {
            ports,
            scope: Scope::new(namespace),
        }
    }

    /// Begins to make an image ready. The work is a task of its own and goes on without the
    /// handle. Must be called within a tokio runtime.
    pub fn unpack(&self, request: Request) -> Job {
        let (sender, events) = mpsc::unbounded_channel();
        let image = request.image.clone();
        let span = tracing::info_span!("unpack", image, snapshotter = request.snapshotter);
        let engine = self.clone();
        let work = async move { engine.run(&request, sender).await };
        Job {
            image,
            events,
            task: tokio::spawn(work.instrument(span)),
        }
    }

    /// Which snapshots `request` stands for; nothing is changed.
    ///
    /// # Errors
    /// What of the image is missing or broken, as for [`Engine::unpack`].
    pub async fn plan(&self, request: &Request) -> Result<Plan, UnpackError> {
        let mut image = self.resolve(&request.image).await?;
        image.reference = image.reference.or_else(|| request.user_reference.clone());
        let platform = request.platform.as_ref();
        plan(&self.ports, &self.scope, image, platform, &request.wrappers).await
    }

    /// Finds an image record by an exact name, else a Docker name, else an image ID.
    ///
    /// # Errors
    /// [`UnpackError::NoSuchImage`], [`UnpackError::AmbiguousId`], or what the backend says.
    pub async fn resolve(&self, image: &str) -> Result<ResolvedImage, UnpackError> {
        image::resolve(&self.ports, &self.scope, image).await
    }

    /// How ready the planned image is on each of `snapshotters`.
    ///
    /// # Errors
    /// What the backend says.
    pub async fn check(&self, plan: &Plan, snapshotters: &[String]) -> Result<Check, UnpackError> {
        check::check(&self.ports, &self.scope, plan, snapshotters).await
    }

    /// Whether the planned image is ready on `snapshotter`, by a look at its top layer: a committed
    /// snapshot's parents are there, and its labels were set together with theirs.
    ///
    /// # Errors
    /// What the backend says.
    pub async fn is_ready(&self, plan: &Plan, snapshotter: &str) -> Result<bool, UnpackError> {
        check::is_ready(&self.ports, &self.scope, plan, snapshotter).await
    }

    /// The names of all images of the namespace, sorted.
    ///
    /// # Errors
    /// What the backend says.
    pub async fn images(&self) -> Result<Vec<String>, UnpackError> {
        let images = self.ports.images.list(&self.scope).await?;
        let mut names: Vec<String> = images.into_iter().map(|image| image.name).collect();
        names.sort();
        Ok(names)
    }

    /// All snapshotters, those that failed to load included.
    ///
    /// # Errors
    /// What the backend says.
    pub async fn snapshotters(&self) -> Result<Vec<SnapshotterInfo>, UnpackError> {
        Ok(self.ports.introspection.snapshotters().await?)
    }

    /// Makes sure that `name` is a snapshotter that works.
    ///
    /// # Errors
    /// [`UnpackError::NoSuchSnapshotter`] with those that do.
    pub async fn require_snapshotter(&self, name: &str) -> Result<(), UnpackError> {
        let all = self.snapshotters().await?;
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

    async fn run(
        &self,
        request: &Request,
        events: mpsc::UnboundedSender<Event>,
    ) -> Result<Report, UnpackError> {
        let started = Instant::now();
        let plan = self.plan(request).await?;
        let snapshotter = request.snapshotter.as_str();
        if plan.image.reference.is_none() && labels::why_needed(snapshotter).is_some() {
            return Err(UnpackError::NoReference {
                image: plan.image.name,
                snapshotter: snapshotter.to_owned(),
            });
        }
        let teller = Teller {
            plan: &plan,
            image: &request.image,
            snapshotter,
            started,
            events,
        };
        (0..plan.layers.len()).for_each(|index| teller.tell(index, Phase::Planned));
        let chain = Chain::new(&self.ports, &self.scope, &plan, snapshotter, &teller);
        let layers = match chain.make().await {
            Ok(layers) => layers,
            Err(error) => return Err(self.explain(snapshotter, error).await),
        };
        Ok(Report {
            image: request.image.clone(),
            reference: plan.image.reference.clone(),
            snapshotter: snapshotter.to_owned(),
            platform: plan.platform.to_string(),
            manifest: plan.manifest.digest.clone(),
            config: plan.config.digest.clone(),
            chain_id: plan.top().cloned(),
            layers,
            seconds: started.elapsed().as_secs_f64(),
        })
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
}
