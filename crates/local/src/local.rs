// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A store.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use resnap_applier::ApplierSettings;
use resnap_core::{Error, Image, Kind, Ports, Result, Scope};
use tokio::task::spawn_blocking;

use crate::applier::{LayerByLayer, NoFallback};
use crate::fault::Fault;
use crate::records;
use crate::state::{NAMESPACE, State, is_own};

/// A store of images and their snapshots in a directory. Several processes may use it at once. Clones are the
/// same store.
#[derive(Debug, Clone)]
pub struct Local(Arc<State>);

impl Local {
    /// The namespace of all that is in a store.
    pub const NAMESPACE: &str = NAMESPACE;

    /// The time for which [`Local::keep_image`] keeps the content of an image.
    pub const KEPT: Duration = Duration::from_secs(3600);

    /// Opens the store in a directory, which is created if it does not exist. It must belong to this user.
    ///
    /// # Errors
    /// [`Kind::PermissionDenied`] if others may write to the directory;
    /// [`Kind::FailedPrecondition`] if it cannot be created, or another version of resnap made it;
    /// [`Kind::DataLoss`] if its database is damaged.
    pub async fn open(root: impl Into<PathBuf>) -> Result<Self> {
        Self::open_by(root.into(), State::open).await
    }

    /// Opens the store in a directory, and creates nothing.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no store, and those of [`Local::open`].
    pub async fn open_existing(root: impl Into<PathBuf>) -> Result<Self> {
        Self::open_by(root.into(), State::open_existing).await
    }

    async fn open_by(
        root: PathBuf,
        open: impl FnOnce(PathBuf) -> Result<State> + Send + 'static,
    ) -> Result<Self> {
        let subject = root.display().to_string();
        let opened = spawn_blocking(move || open(root)).await;
        let opened = opened.map_err(|error| {
            Error::new(Kind::Internal, "open the store", subject).with_source(error)
        })?;
        Ok(Self(Arc::new(opened?)))
    }

    /// Returns the ports of the store. Layers are written in this process; nothing is mounted, so that this machine's
    /// kernel need not know dm-verity.
    pub fn ports(&self, mut settings: ApplierSettings) -> Ports {
        settings.mounts_here = false;
        let this = Arc::new(self.clone());
        let mut ports = Ports {
            images: this.clone(),
            content: this.clone(),
            labeler: this.clone(),
            writer: this.clone(),
            snapshotters: this.clone(),
            applier: Arc::new(NoFallback),
            leases: this.clone(),
            containers: this.clone(),
            introspection: this,
        };
        ports.applier = Arc::new(LayerByLayer::new(&ports, settings));
        ports
    }

    /// Returns the directory for the locks of engines, the same for all that use the store at `root`.
    pub fn runtime_dir(root: &Path) -> PathBuf {
        root.join("run")
    }

    /// Keeps the content of an image that has no record yet, for [`Local::KEPT`] from the last call on. An engine
    /// can make it ready meanwhile, while another image has the name.
    ///
    /// # Errors
    /// [`Kind::ResourceExhausted`] if there is no space.
    pub async fn keep_image(&self, image: &Image) -> Result<()> {
        let kept = image.clone();
        self.call("keep image", &image.name, move |state| {
            records::keep(state, &kept, Self::KEPT)
        })
        .await
    }

    /// Records an image, in the place of the one with this name if there is one. Its content may be missing:
    /// an engine fetches it from its sources. What the other alone kept is removed after [`Local::keep_image`], and
    /// goes with the next garbage collection otherwise.
    ///
    /// # Errors
    /// [`Kind::ResourceExhausted`] if there is no space; [`Kind::DataLoss`] if the index of the layout is
    /// damaged.
    pub async fn set_image(&self, image: &Image) -> Result<()> {
        let new = image.clone();
        self.call("record image", &image.name, move |state| {
            records::set(state, &new)
        })
        .await
    }

    /// Removes the record of an image, and what only it kept.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no image of this name, and those of [`Local::set_image`].
    pub async fn remove_image(&self, name: &str) -> Result<()> {
        let image = name.to_owned();
        self.call("remove image", name, move |state| {
            records::remove(state, &image)
        })
        .await
    }

    /// Does work in a thread, which goes on if the future is dropped.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        subject: &str,
        work: impl FnOnce(&State) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T> {
        let state = Arc::clone(&self.0);
        let done = spawn_blocking(move || work(&state)).await;
        let done = done
            .map_err(|error| Error::new(Kind::Internal, operation, subject).with_source(error))?;
        done.map_err(|fault| fault.of(operation, subject))
    }

    /// Does work as [`Local::call`] does, for a call in the store's own namespace. In others nothing exists.
    pub(crate) async fn call_in<T: Send + 'static>(
        &self,
        scope: &Scope,
        operation: &'static str,
        subject: &str,
        work: impl FnOnce(&State) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T> {
        if !is_own(scope) {
            let reason = format!("a local store has the namespace {NAMESPACE} only");
            return Err(Error::new(Kind::NotFound, operation, subject).with_source(reason));
        }
        self.call(operation, subject, work).await
    }
}
