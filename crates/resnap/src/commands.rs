// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The commands.

pub(crate) mod check;
pub(crate) mod daemon;
pub(crate) mod explain;
pub(crate) mod generate;
pub(crate) mod images;
pub(crate) mod jobs;
pub(crate) mod leases;
pub(crate) mod snapshotters;
pub(crate) mod unpack;
pub(crate) mod warm;

use std::sync::Arc;

use anyhow::Result;
use resnap_applier::InProcessApplier;
use resnap_containerd::Client;
use resnap_core::ManifestPreference;
use resnap_unpacker::{Engine, EngineObserver, EngineSettings, UnpackError};

use crate::config::Config;

/// How a command ends, as the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Outcome {
    /// Done, or ready.
    Done = 0,
    /// Asked about, and not ready.
    NotReady = 1,
    /// Something went wrong, and was told.
    Failed = 2,
    /// Stopped by a signal.
    Cancelled = 130,
}

/// The engine on a connection to containerd, for looking.
pub(crate) async fn engine(config: &Config) -> Result<Engine> {
    connect(config, EngineSettings::default()).await
}

/// The engine on a connection to containerd, for work that other processes may do as well.
pub(crate) async fn working_engine(config: &Config) -> Result<Engine> {
    observed_engine(config, None).await
}

/// The same, with somebody who is told of its jobs.
pub(crate) async fn observed_engine(
    config: &Config,
    observer: Option<Arc<dyn EngineObserver>>,
) -> Result<Engine> {
    let mut settings = EngineSettings::default();
    settings.runtime_dir = Some(config.runtime_dir.value.clone());
    settings.observer = observer;
    connect(config, settings).await
}

/// Which manifests containerd takes for containers.
pub(crate) async fn pick(config: &Config) -> Result<ManifestPreference> {
    let connected = Client::connect(&config.address.value).await;
    let client = connected.map_err(UnpackError::from)?;
    let version = client.version().await.map_err(UnpackError::from)?;
    Ok(ManifestPreference::by_containerd(&version))
}

async fn connect(config: &Config, mut settings: EngineSettings) -> Result<Engine> {
    settings.profiles = config.profiles.clone();
    settings.configurations.clone_from(&config.unpack.value);
    let client = Client::connect(&config.address.value)
        .await
        .map_err(UnpackError::from)?;
    let mut ports = client.ports();
    ports.applier = Arc::new(InProcessApplier::new(&ports, config.applier.clone()));
    Ok(Engine::new(ports, &config.namespace.value, settings)?)
}
