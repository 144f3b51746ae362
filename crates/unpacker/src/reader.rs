// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Looking at images: the public methods that change nothing.

use std::sync::Arc;

use resnap_core::{Profiles, SnapshotKey, SnapshotterInfo};

use crate::backend::Backend;
use crate::known::KnownDocuments;
use crate::listed;
use crate::planner::Planner;
use crate::unpack::is_rooted;
use crate::{Check, Plan, Request, ResolvedImage, Survey, UnpackError, check, lost, survey};

/// Looks at the images of one containerd namespace, and changes nothing. Clones share the cached plans.
#[derive(Debug, Clone)]
pub struct Reader {
    pub(crate) backend: Arc<Backend>,
    pub(crate) planner: Planner,
}

impl Reader {
    pub(crate) fn new(backend: Arc<Backend>) -> Self {
        Self {
            planner: Planner::new(Arc::clone(&backend)),
            backend,
        }
    }

    /// Returns a reader of the namespace as it is now: it answers from lists of the images, the blobs,
    /// and the snapshots on `snapshotters`, or on all working ones, which are read here, once each. So
    /// it takes as few calls for many images as for one, but for their documents: it reads those that
    /// are not in `documents`, and adds them there. A snapshotter that does not answer is reported with
    /// each image that is looked for there.
    ///
    /// # Errors
    /// The backend's error.
    pub async fn listed(
        &self,
        snapshotters: Option<&[String]>,
        documents: &KnownDocuments,
    ) -> Result<Self, UnpackError> {
        let backend = listed::backend(&self.backend, snapshotters, documents).await?;
        Ok(Self::new(Arc::new(backend)))
    }

    /// Returns the snapshots that make up the requested image, and changes nothing. The name is
    /// looked up each time; the documents behind it cannot change and are read once, in a task of
    /// the tokio runtime within which this must be called.
    ///
    /// # Errors
    /// As for [`Engine::unpack`](crate::Engine::unpack), if documents of the image are missing or invalid.
    pub async fn plan(&self, request: &Request) -> Result<Arc<Plan>, UnpackError> {
        self.planner.plan(request).await
    }

    /// Finds an image record by an exact name, a Docker name or an image ID.
    ///
    /// # Errors
    /// [`UnpackError::NoSuchImage`], [`UnpackError::AmbiguousId`], or the backend's error.
    pub async fn resolve(&self, image: &str) -> Result<ResolvedImage, UnpackError> {
        self.planner.resolve(image).await
    }

    /// Returns the containerd namespace.
    pub fn namespace(&self) -> &str {
        &self.backend.scope.namespace
    }

    /// Returns the names of the snapshotters that work.
    ///
    /// # Errors
    /// The backend's error.
    pub async fn working_snapshotters(&self) -> Result<Vec<String>, UnpackError> {
        let all = self.snapshotters().await?.into_iter();
        let working = all.filter(|snapshotter| snapshotter.failure.is_none());
        Ok(working.map(|snapshotter| snapshotter.name).collect())
    }

    /// Checks how ready the planned image is on each of `snapshotters`.
    ///
    /// # Errors
    /// The backend's error.
    pub async fn check(&self, plan: &Plan, snapshotters: &[String]) -> Result<Check, UnpackError> {
        check::check(&self.backend, plan, snapshotters).await
    }

    /// Returns whether the planned image is ready on `snapshotter`. Examines the top layer, on which
    /// a container stands, and all layers that must have labels or a proof.
    ///
    /// # Errors
    /// The backend's error.
    pub async fn is_ready(&self, plan: &Plan, snapshotter: &str) -> Result<bool, UnpackError> {
        check::is_ready(&self.backend, plan, snapshotter).await
    }

    /// Returns whether the planned image keeps its chain on `snapshotter` from garbage collection. Without,
    /// a chain that is ready may still go with a lease or another image.
    ///
    /// # Errors
    /// The backend's error.
    pub async fn is_kept(&self, plan: &Plan, snapshotter: &str) -> Result<bool, UnpackError> {
        Ok(is_rooted(&self.backend, plan, snapshotter).await?)
    }

    /// Returns whether the planned image, or a layer that it shares with another image, is on
    /// `snapshotter` in a form whose files exist only in guests. Mounted on the host, they are
    /// missing.
    ///
    /// # Errors
    /// The backend's error.
    pub async fn is_remote(&self, plan: &Plan, snapshotter: &str) -> Result<bool, UnpackError> {
        check::is_remote(&self.backend, plan, snapshotter).await
    }

    /// Returns the properties of the known snapshotters.
    pub fn profiles(&self) -> &Profiles {
        &self.backend.profiles
    }

    /// Returns the names of all images of the namespace, sorted.
    ///
    /// # Errors
    /// The backend's error.
    pub async fn images(&self) -> Result<Vec<String>, UnpackError> {
        let (images, scope) = (&self.backend.ports.images, &self.backend.scope);
        let images = images.list(scope).await?;
        let mut names: Vec<String> = images.into_iter().map(|image| image.name).collect();
        names.sort();
        Ok(names)
    }

    /// Returns all snapshotters, including those that failed to load.
    ///
    /// # Errors
    /// The backend's error.
    pub async fn snapshotters(&self) -> Result<Vec<SnapshotterInfo>, UnpackError> {
        Ok(self.backend.ports.introspection.snapshotters().await?)
    }

    /// Checks that `name` is a snapshotter that works.
    ///
    /// # Errors
    /// [`UnpackError::NoSuchSnapshotter`] with those that do.
    pub async fn require_snapshotter(&self, name: &str) -> Result<(), UnpackError> {
        self.backend.require_snapshotter(name).await
    }

    /// Returns the snapshots on these snapshotters, what keeps them, and what is missing. Takes as few calls
    /// for many images as for one.
    ///
    /// # Errors
    /// The backend's error.
    pub async fn survey(&self, snapshotters: &[String]) -> Result<Survey, UnpackError> {
        Ok(survey::survey(&self.backend, snapshotters).await?)
    }

    /// Returns whether the backend has a record of a snapshot that the snapshotter itself does not have. It
    /// cannot be used, nor made again, until [`Request::repair`] removes the record. Nothing is changed.
    ///
    /// # Errors
    /// The backend's error.
    pub async fn is_lost(
        &self,
        snapshotter: &str,
        snapshot: &SnapshotKey,
    ) -> Result<bool, UnpackError> {
        let (backend, scope) = (&self.backend, &self.backend.scope);
        Ok(lost::is_lost(backend, scope, snapshotter, snapshot).await?)
    }
}
