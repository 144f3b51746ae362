// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What is told to an engine: how it works, and what is wanted of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use resnap_core::{ManifestPreference, Profiles};
use resnap_handler_wrapper::Wrapper;
use resnap_platforms::Platform;

use crate::Configuration;
use crate::observe::EngineObserver;

/// How an engine works.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EngineSettings {
    /// Where engines of this machine, also in other processes, leave locks for each other, by
    /// which they do nothing twice and tell the leases of the living from those of the dead.
    /// Without it an engine knows of its own jobs only.
    pub runtime_dir: Option<PathBuf>,
    /// How many layers are written at once, ahead or in their snapshots. 3, as containerd has it.
    /// While they are, up to as many jobs that somebody waits for write one more each.
    pub parallel_applies: usize,
    /// How long a lease lives of whose maker nothing is heard. 1 h.
    pub lease_lifetime: Duration,
    /// What is known of snapshotters.
    pub profiles: Profiles,
    /// What goes where if the user does not say so, the first that the image and the containerd
    /// have: [`Configuration::defaults`] of overlayfs.
    pub configurations: Vec<Configuration>,
    /// What time it is, by which the backend ends leases.
    pub clock: Clock,
    /// Who is told of all jobs.
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
            clock: Clock::default(),
            observer: None,
        }
    }
}

/// What tells the time of day, whenever it is asked: it may be set while an engine works, and goes on
/// while the machine sleeps. By default it is the system's.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// A clock that `now` reads.
    pub fn new(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    pub(crate) fn now(&self) -> SystemTime {
        self.0()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(SystemTime::now)
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Clock").finish_non_exhaustive()
    }
}

/// What is wanted.
#[derive(Clone)]
pub struct Request {
    /// An exact name, else a Docker name, else an image ID or the start of one.
    pub image: String,
    /// Where the image is to be ready; if empty, by [`EngineSettings::configurations`].
    pub snapshotter: String,
    /// The platform; the machine's own if `None`.
    pub platform: Option<Platform>,
    /// The reference the user wrote, for where the store knows the image by its ID only.
    pub user_reference: Option<String>,
    /// Whether layers that are there without labels are mended: by labels where that is known to
    /// do (nydus in proxy mode), else by removing and unpacking them again.
    pub repair: bool,
    /// Whether nobody waits for it: its layers are written when no job is at work that somebody
    /// waits for. Once somebody who waits joins it, it is as urgent as theirs.
    pub background: bool,
    /// Whether it is asked for by itself, again and again, as a kubelet does: what failed by a limit
    /// is tried again after a while then, and at once for a person. So it is with `background`.
    pub by_itself: bool,
    /// Which manifest of an index, if no platform is named.
    pub pick: ManifestPreference,
    /// Who asks, in a word for people: what [`JobStatus::origin`](crate::JobStatus::origin) says of a
    /// job that this begins.
    pub origin: String,
    /// The pod that it is for, as `namespace/name`.
    pub pod: Option<String>,
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
            .field("repair", &self.repair)
            .field("origin", &self.origin)
            .field("pod", &self.pod)
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
            repair: false,
            background: false,
            by_itself: false,
            pick: ManifestPreference::default(),
            origin: String::new(),
            pod: None,
            wrappers: Vec::new(),
        }
    }
}
