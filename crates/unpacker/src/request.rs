// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The settings of an engine and the requests to it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use resnap_core::{EROFS_FEATURE, ManifestPreference, PodId, Profiles, SnapshotKey};
use resnap_handler_wrapper::Wrapper;
use resnap_platforms::Platform;

use crate::clock::Clock;
use crate::observe::EngineObserver;
use crate::sources::{KeepFetched, Source};
use crate::verification::Verification;

/// The settings of an engine.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EngineSettings {
    /// The directory for locks. Engines that share it, also in other processes, never do the same
    /// work twice, and know which leases belong to running processes. Without it an engine knows
    /// its own jobs only.
    pub runtime_dir: Option<PathBuf>,
    /// The number of layers written at once, in staging or in their snapshots. The default is 3,
    /// as in containerd. Beyond it, up to as many jobs with waiters write one more layer each.
    pub parallel_applies: usize,
    /// The time until a lease that is not renewed expires. The default is 1 h.
    pub lease_lifetime: Duration,
    /// The properties of the known snapshotters.
    pub profiles: Profiles,
    /// The unpack configurations, tried in order when a request names no snapshotter. The default
    /// is [`Configuration::defaults`] for overlayfs.
    pub configurations: Vec<Configuration>,
    /// The sources of missing content, tried in order. The default is none.
    pub sources: Vec<Source>,
    /// Whether blobs that were fetched are kept.
    pub keep_fetched: KeepFetched,
    /// The clock by which the backend expires leases.
    pub clock: Clock,
    /// The receiver of the events of all jobs.
    pub observer: Option<Arc<dyn EngineObserver>>,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            runtime_dir: None,
            parallel_applies: 3,
            lease_lifetime: Duration::from_secs(3600),
            profiles: Profiles::default(),
            configurations: Configuration::defaults("overlayfs"),
            sources: Vec::new(),
            keep_fetched: KeepFetched::default(),
            clock: Clock::default(),
            observer: None,
        }
    }
}

/// A platform and the snapshotter that its images are unpacked for unless the request names one
/// (compare containerd's transfer service, `plugins/transfer/plugin.go`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// The platform that the image must have.
    pub platform: Platform,
    /// The snapshotter.
    pub snapshotter: String,
    /// Whether the configuration is skipped, instead of an error, if the snapshotter is missing.
    pub optional: bool,
}

impl Configuration {
    /// Returns the default configurations: the plain platform of this machine on `default`, and
    /// EROFS images on the erofs snapshotter if there is one.
    pub fn defaults(default: &str) -> Vec<Self> {
        vec![
            Self {
                platform: Platform::host(),
                snapshotter: default.to_owned(),
                optional: false,
            },
            Self {
                platform: host_with_features([EROFS_FEATURE.to_owned()]),
                snapshotter: "erofs".to_owned(),
                optional: true,
            },
        ]
    }
}

/// Returns this machine's platform with additional OS features.
pub(crate) fn host_with_features(features: impl IntoIterator<Item = String>) -> Platform {
    Platform {
        os_features: features.into_iter().collect(),
        ..Platform::host()
    }
}

/// A request to make an image ready.
#[derive(Clone)]
#[non_exhaustive]
pub struct Request {
    /// An exact name, a Docker name, or an image ID or a prefix of one.
    pub image: String,
    /// The snapshotter; `None` to pick it by [`EngineSettings::configurations`].
    pub snapshotter: Option<String>,
    /// The platform; `None` for this machine's.
    pub platform: Option<Platform>,
    /// The reference that the user wrote, used if the store knows the image by its ID only.
    pub user_reference: Option<String>,
    /// Whether layers that are present without labels are repaired: by setting the labels where
    /// that suffices (nydus in proxy mode), otherwise by removing the layers and unpacking them
    /// again. Unless [`Request::background`] or [`Request::by_itself`] is set, layers that were
    /// copied from another snapshotter are replaced as well.
    pub repair: bool,
    /// Whether nobody waits for the job: its layers are written only while no job with waiters has
    /// work to do. The job becomes urgent when a request without this flag joins it.
    pub background: bool,
    /// Whether the request comes from a program that repeats it, such as a kubelet. Such a request,
    /// like one with [`Request::background`], is refused for a while after the image has failed by a
    /// limit; a request from a person is tried at once.
    pub by_itself: bool,
    /// The preferred manifest of an index, if no platform is named.
    pub pick: ManifestPreference,
    /// A word that names the caller, shown as [`JobStatus::origin`](crate::JobStatus::origin) of a
    /// job that this request starts.
    pub origin: String,
    /// The pod that needs the image.
    pub pod: Option<PodId>,
    /// Additional wrappers for the layers' descriptors: annotations under `containerd.io/snapshot/`
    /// become labels.
    pub wrappers: Vec<Wrapper>,
    /// Layers that are wrong, with the times when they were made.
    pub(crate) wrong: BTreeMap<SnapshotKey, SystemTime>,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("image", &self.image)
            .field("snapshotter", &self.snapshotter)
            .field("platform", &self.platform)
            .field("repair", &self.repair)
            .field("origin", &self.origin)
            .field("pod", &self.pod)
            .finish_non_exhaustive()
    }
}

impl Request {
    /// Returns a request for `image`, for this machine's platform.
    pub fn new(image: impl Into<String>) -> Self {
        Self {
            image: image.into(),
            snapshotter: None,
            platform: None,
            user_reference: None,
            repair: false,
            background: false,
            by_itself: false,
            pick: ManifestPreference::default(),
            origin: String::new(),
            pod: None,
            wrappers: Vec::new(),
            wrong: BTreeMap::new(),
        }
    }

    /// Returns this request for the snapshotter of this name.
    #[must_use]
    pub fn on(self, snapshotter: impl Into<String>) -> Self {
        Self {
            snapshotter: Some(snapshotter.into()),
            ..self
        }
    }

    /// Returns this request for making layers again that are wrong, and those above: they are removed if nothing
    /// uses them and their blobs are right or can be fetched. They are not copied from another snapshotter.
    #[must_use]
    pub fn healing(self, verification: &Verification) -> Self {
        Self {
            snapshotter: Some(verification.snapshotter.clone()),
            repair: true,
            wrong: verification.wrong(),
            ..self
        }
    }

    /// Returns the requested platform, or this machine's.
    pub(crate) fn platform_or_host(&self) -> Platform {
        self.platform.clone().unwrap_or_else(Platform::host)
    }
}
