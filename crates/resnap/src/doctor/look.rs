// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A look at everything on the node that the checks need, each of it once.

pub(crate) mod cri;
pub(crate) mod daemon;
pub(crate) mod host;
pub(crate) mod kubelet;
pub(crate) mod mkfs;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use futures::StreamExt as _;
use resnap_containerd::{Client, IngestInfo};
use resnap_core::{Error, Scope, SnapshotterInfo};
use resnap_unpacker::{Check, Engine, LeaseStatus, Plan, Request, Survey, UnpackError};

use self::cri::Cri;
use self::daemon::{Daemon, ask_cri};
use self::host::Host;
use self::kubelet::Kubelet;
use self::mkfs::Mkfs;
use super::containerd_config::ContainerdConfig;
use super::process::Process;
use crate::config::Config;
use crate::connect;
use crate::diff_plugin;
use crate::documents::{IMAGES_AT_ONCE, Overview};

/// The state of the node. A part that could not be read has the reason.
pub(crate) struct Look<'a> {
    pub(crate) config: &'a Config,
    pub(crate) engine: &'a Engine,
    pub(crate) version: String,
    pub(crate) snapshotters: Vec<SnapshotterInfo>,
    pub(crate) cri: Result<Cri, String>,
    pub(crate) containerd: Result<ContainerdConfig, String>,
    pub(crate) diff_plugins: resnap_core::Result<Vec<String>>,
    pub(crate) mkfs: Result<Option<Mkfs>, String>,
    pub(crate) host: Host,
    pub(crate) kubelet: io::Result<Option<Kubelet>>,
    pub(crate) daemon: Daemon,
    /// The version of containerd that is told through the daemon.
    pub(crate) cri_socket: Result<String, String>,
    pub(crate) images: Vec<LookedImage>,
    pub(crate) survey: Survey,
    pub(crate) leases: Vec<LeaseStatus>,
    pub(crate) ingests: Result<Vec<IngestInfo>, Error>,
}

/// An image, and its state on all snapshotters that work.
pub(crate) struct LookedImage {
    pub(crate) name: String,
    pub(crate) looked: Result<(Arc<Plan>, Check), UnpackError>,
}

impl<'a> Look<'a> {
    /// Looks at everything.
    ///
    /// # Errors
    /// containerd does not answer.
    pub(crate) async fn take(
        config: &'a Config,
        engine: &'a Engine,
        client: &Client,
    ) -> Result<Self> {
        let version = client.version().await.map_err(UnpackError::from)?;
        let host = tokio::task::spawn_blocking(Host::look);
        let root = config.kubelet_root.value.clone();
        let kubelet = tokio::task::spawn_blocking(move || Kubelet::look(&root));
        let program = async {
            let process = Process::listening_at(config.backend()).await;
            let process = process
                .as_ref()
                .map_err(|error| format!("the process of containerd is not known: {error}"));
            let containerd = async { ContainerdConfig::of(process.clone()?).await };
            let mkfs = async {
                let path = process.clone()?.variable("PATH");
                let path = path.ok_or("the search path of containerd cannot be read")?;
                Ok(Mkfs::find(&path).await)
            };
            tokio::join!(containerd, mkfs)
        };
        let cri = async {
            let proxy = connect::proxy(config, engine.clone(), None, None);
            proxy.facts().await.map(Cri::new)
        };
        let stores = async {
            let overview = Overview::read(engine, &config.runtime_dir.value, None).await?;
            let working = overview.reader.working_snapshotters().await?;
            let images = images(&overview, &working).await?;
            overview.keep_documents();
            Ok::<_, UnpackError>((images, engine.survey(&working).await?))
        };
        let scope = Scope::new(&config.namespace.value);
        let (program, cri, stores, snapshotters, leases, ingests, diff_plugins, daemon, cri_socket) = tokio::join!(
            program,
            cri,
            stores,
            engine.snapshotters(),
            engine.leases(),
            client.ingests(&scope),
            diff_plugin::warnings(config),
            Daemon::look(config),
            ask_cri(&config.cri_socket.value),
        );
        let (containerd, mkfs) = program;
        let (images, survey) = stores?;
        let cri = cri.map(|mut cri| {
            if let Ok(config) = &containerd {
                // containerd 2 does not tell it before a pod has needed it.
                let configured = || config.sandbox_image().map(str::to_owned);
                cri.sandbox_image = cri.sandbox_image.or_else(configured);
            }
            cri
        });
        Ok(Self {
            config,
            engine,
            version,
            snapshotters: snapshotters?,
            cri,
            containerd,
            diff_plugins,
            mkfs,
            host: host.await?,
            kubelet: kubelet.await?,
            daemon,
            cri_socket,
            images,
            survey,
            leases: leases?,
            ingests,
        })
    }

    /// Returns the images whose layers are known.
    pub(crate) fn known_images(&self) -> impl Iterator<Item = (&str, &Arc<Plan>, &Check)> {
        self.images.iter().filter_map(|image| {
            let (plan, check) = image.looked.as_ref().ok()?;
            Some((image.name.as_str(), plan, check))
        })
    }

    /// Returns the directories of the snapshotters that work, where containerd tells them.
    pub(crate) fn roots(&self) -> impl Iterator<Item = (&str, Option<PathBuf>)> {
        let working = self.snapshotters.iter();
        let working = working.filter(|info| info.failure.is_none());
        working.map(|info| {
            let own = info.root.as_ref().map(PathBuf::from);
            // containerd 1.6 does not tell those of its own snapshotters.
            let config = self.containerd.as_ref().ok();
            let root = own.or_else(|| config?.snapshotter_root(&info.name));
            (info.name.as_str(), root)
        })
    }

    /// Returns how the daemon is started.
    pub(crate) fn start(&self) -> &'static str {
        match self.host.has_unit {
            true => "start it (`systemctl start resnap`)",
            false => "install it as a service (`resnap install`)",
        }
    }

    /// Returns whether pods run on erofs, or layers are there.
    pub(crate) fn uses_erofs(&self) -> bool {
        let cri = self.cri.as_ref();
        let has_layers = self.survey.snapshotters.iter().any(|(name, surveyed)| {
            let surveyed = surveyed.as_ref();
            name == "erofs" && surveyed.is_ok_and(|surveyed| !surveyed.snapshots.is_empty())
        });
        has_layers || cri.is_ok_and(|cri| cri.snapshotters().contains("erofs"))
    }
}

async fn images(
    overview: &Overview,
    snapshotters: &[String],
) -> Result<Vec<LookedImage>, UnpackError> {
    let reader = &overview.reader;
    let looked = async |name: String| {
        let looked = async {
            let plan = reader.plan(&Request::new(&name)).await?;
            let check = reader.check(&plan, snapshotters).await?;
            Ok((plan, check))
        };
        let looked = looked.await;
        LookedImage { name, looked }
    };
    let names = overview.images().await?;
    let images = futures::stream::iter(names).map(looked);
    Ok(images.buffered(IMAGES_AT_ONCE).collect().await)
}
