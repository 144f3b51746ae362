// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The state that all clients share, and the context of one client.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use resnap_core::{ManifestPreference, PullCredentials, UnpackService};
use tokio::sync::Semaphore;

use crate::backend::{Backend, Endpoint};
use crate::discovery::Discovery;
use crate::held::HeldRequests;
use crate::kubelet_records::KubeletRecords;
use crate::limits::{MAX_BACKGROUND, MAX_HELD, PEEK_BUDGET};
use crate::observe::{ProxyEvent, ProxyObserver};
use crate::pods::NewPods;
use crate::pull::Pulls;
use crate::pull_memory::PullMemory;
use crate::runtime::{ClientThread, ServiceRuntime};
use crate::settings::ProxySettings;

/// The time in which it must turn out that an image is still ready. It takes a call or two.
const GLANCE: Duration = Duration::from_secs(1);

/// The state of a proxy.
pub(crate) struct ProxyState {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) service: Arc<dyn UnpackService>,
    /// See [`ProxySettings::credentials`].
    pub(crate) credentials: Option<PullCredentials>,
    pub(crate) discovery: Discovery,
    /// The unused bytes of [`PEEK_BUDGET`].
    pub(crate) peek_budget: Semaphore,
    pub(crate) held: HeldRequests,
    pub(crate) pulls: Arc<Pulls>,
    pub(crate) pull_memory: PullMemory,
    pub(crate) new_pods: NewPods,
    pub(crate) kubelet_records: KubeletRecords,
    /// The unused places of [`MAX_BACKGROUND`].
    pub(crate) background: Arc<Semaphore>,
    pub(crate) observer: Option<Arc<dyn ProxyObserver>>,
    pub(crate) client_thread: ClientThread,
}

impl ProxyState {
    pub(crate) fn new(
        backend: &Path,
        service: Arc<dyn UnpackService>,
        settings: ProxySettings,
        observer: Option<Arc<dyn ProxyObserver>>,
    ) -> Self {
        Self {
            endpoint: Arc::new(Endpoint::new(backend)),
            service,
            credentials: settings.credentials.clone(),
            kubelet_records: KubeletRecords::new(&settings.kubelet_root),
            discovery: Discovery::new(settings),
            peek_budget: Semaphore::new(PEEK_BUDGET),
            held: HeldRequests::new(MAX_HELD),
            pulls: Arc::default(),
            pull_memory: PullMemory::default(),
            new_pods: NewPods::default(),
            background: Arc::new(Semaphore::new(MAX_BACKGROUND)),
            observer,
            client_thread: ClientThread::default(),
        }
    }

    pub(crate) fn on_event(&self, event: &ProxyEvent) {
        if let Some(observer) = &self.observer {
            observer.on_event(event);
        }
    }
}

impl fmt::Debug for ProxyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyState")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// The state that the calls of one client share.
pub(crate) struct ClientContext {
    pub(crate) state: Arc<ProxyState>,
    pub(crate) service_runtime: ServiceRuntime,
    pub(crate) backend: Backend,
}

impl ClientContext {
    /// Creates a context for work that outlives its client.
    pub(crate) fn detached(state: &Arc<ProxyState>, service_runtime: &ServiceRuntime) -> Self {
        Self {
            state: Arc::clone(state),
            service_runtime: service_runtime.clone(),
            backend: Backend::detached(&state.endpoint),
        }
    }

    /// Returns whether an image that was found ready on a snapshotter is ready still, as far as that is known at
    /// once. If it is not, the service has all the time to tell.
    pub(crate) async fn is_still_ready(
        &self,
        image: &str,
        snapshotter: &str,
        pick: ManifestPreference,
    ) -> bool {
        let is_still_ready = self.state.service.is_still_ready(image, snapshotter, pick);
        tokio::time::timeout(GLANCE, is_still_ready).await == Ok(true)
    }

    /// Returns whether an image is ready on a snapshotter. Errors count as no.
    pub(crate) async fn is_ready(
        &self,
        image: &str,
        snapshotter: &str,
        pick: ManifestPreference,
    ) -> bool {
        let service = Arc::clone(&self.state.service);
        let (image, snapshotter) = (image.to_owned(), snapshotter.to_owned());
        let is_ready = async move { service.is_ready(&image, &snapshotter, pick).await };
        matches!(self.service_runtime.run(is_ready).await, Ok(Ok(true)))
    }
}
