// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The engine and the proxy, on a connection to the configured containerd.

use std::sync::Arc;

use anyhow::Result;
use resnap_applier::InProcessApplier;
use resnap_archive::ArchiveSource;
use resnap_containerd::{Client, DiffPlugin, DiffServer, LayerWriter};
use resnap_core::{ManifestPreference, Ports, PullCredentials, unpacks_without_parents};
use resnap_cri_proxy::{Proxy, ProxyObserver, ProxySettings};
use resnap_local::Local;
use resnap_registry::{RegistrySource, Settings as RegistrySettings};
use resnap_unpacker::{Engine, EngineObserver, EngineSettings, EvictRequest, Source, UnpackError};

use crate::config::{Config, SiblingWord, SourceName};

/// Returns an engine for read-only commands. It takes no locks.
pub(crate) async fn engine(config: &Config) -> Result<Engine> {
    connect(config, EngineSettings::default()).await
}

/// Returns an engine for commands that change something. It coordinates with other processes through
/// the runtime directory.
pub(crate) async fn working_engine(config: &Config) -> Result<Engine> {
    observed_engine(config, None, &PullCredentials::new()).await
}

/// Returns a working engine whose events go to `observer`, and which fetches missing layers with the
/// credentials of pulls.
pub(crate) async fn observed_engine(
    config: &Config,
    observer: Option<Arc<dyn EngineObserver>>,
    credentials: &PullCredentials,
) -> Result<Engine> {
    let mut settings = EngineSettings::default();
    settings.runtime_dir = Some(config.runtime_dir.value.clone());
    settings.observer = observer;
    settings.sources = sources(config, credentials);
    settings.keep_fetched = config.keep_fetched.value.into();
    connect(config, settings).await
}

async fn connect(config: &Config, mut settings: EngineSettings) -> Result<Engine> {
    settings.profiles = config.profiles.clone();
    settings.configurations.clone_from(&config.unpack.value);
    let ports = ports(config).await.map_err(UnpackError::from)?;
    Ok(Engine::new(ports, &config.namespace.value, settings)?)
}

/// Returns the ports of the configured engine, with layers that are written in this process.
pub(crate) async fn ports(config: &Config) -> resnap_core::Result<Ports> {
    if let Some(root) = &config.local {
        let Some(pending) = &config.pending else {
            let store = Local::open_existing(root).await?;
            return Ok(store.ports(config.applier.clone()));
        };
        let mut ports = pending.store().ports(config.applier.clone());
        pending.add_to(&mut ports);
        return Ok(ports);
    }
    let mut ports = Client::connect(&config.address.value).await?.ports();
    ports.applier = Arc::new(InProcessApplier::new(&ports, config.applier.clone()));
    Ok(ports)
}

/// Returns a server of the differ service of the configured containerd.
pub(crate) async fn diff_server(
    config: &Config,
    writer: Arc<dyn LayerWriter>,
) -> Result<DiffServer> {
    let client = Client::connect(&config.address.value).await;
    Ok(client.map_err(UnpackError::from)?.diff_server(writer))
}

/// Returns the sources of missing content, in order.
fn sources(config: &Config, credentials: &PullCredentials) -> Vec<Source> {
    let sources = config.sources.value.iter().filter_map(|name| match name {
        SourceName::Archive => {
            let source = ArchiveSource::new(&config.archives.value);
            Some(Source::Blobs(Arc::new(source)))
        }
        SourceName::Registry => {
            let source = registry(config, credentials.clone());
            Some(Source::Blobs(Arc::new(source)))
        }
        SourceName::Sibling => match config.sibling.value {
            SiblingWord::Never => None,
            word => Some(Source::Sibling {
                always: word == SiblingWord::Always,
            }),
        },
    });
    sources.collect()
}

/// Returns the registries, with the credentials of pulls.
pub(crate) fn registry(config: &Config, credentials: PullCredentials) -> RegistrySource {
    RegistrySource::new(registry_settings(config), credentials)
}

pub(crate) fn registry_settings(config: &Config) -> RegistrySettings {
    RegistrySettings {
        host_directories: config.hosts_dir.value.clone(),
        ..RegistrySettings::default()
    }
}

/// Returns the version of the configured containerd.
pub(crate) async fn version(config: &Config) -> Result<String> {
    let connected = Client::connect(&config.address.value).await;
    let client = connected.map_err(UnpackError::from)?;
    Ok(client.version().await.map_err(UnpackError::from)?)
}

/// Returns the differs of the configured containerd that are other programs.
pub(crate) async fn diff_plugins(config: &Config) -> resnap_core::Result<Vec<DiffPlugin>> {
    let client = Client::connect(&config.address.value).await?;
    client.diff_plugins().await
}

/// Returns the names of the differs that work in the configured containerd.
pub(crate) async fn differs(config: &Config) -> Result<Vec<String>> {
    let connected = Client::connect(&config.address.value).await;
    let client = connected.map_err(UnpackError::from)?;
    Ok(client.differs().await.map_err(UnpackError::from)?)
}

/// Returns the preference by which this containerd chooses manifests for containers.
pub(crate) async fn manifest_preference(config: &Config) -> Result<ManifestPreference> {
    Ok(ManifestPreference::by_containerd(&version(config).await?))
}

/// Returns a request to evict images, with what the configuration and containerd say of pods, and a
/// warning to show before pods need the images again.
pub(crate) async fn evict_request(
    config: &Config,
    images: Vec<String>,
    snapshotter: &str,
) -> Result<(EvictRequest, Option<String>)> {
    let mut request = EvictRequest::new(images, snapshotter);
    let version = version(config).await?;
    request.pick = ManifestPreference::by_containerd(&version);
    let proxy = proxy(config, engine(config).await?, None, None);
    let facts = proxy.facts().await.unwrap_or_else(|error| {
        // The configuration may have them.
        tracing::warn!(error, "containerd's CRI does not say what it needs");
        Vec::new()
    });
    let fact = |name: &str| {
        let fact = facts.iter().find(|fact| fact.name == name)?;
        fact.value.as_ref().map(|sourced| sourced.value.clone())
    };
    let sandbox_image = fact("sandbox_image").or_else(|| config.sandbox_image.clone());
    request.sandbox_images = sandbox_image.into_iter().collect();
    let default = fact("default_snapshotter").or_else(|| config.default_snapshotter.clone());
    let is_default = default.as_deref().unwrap_or("overlayfs") == snapshotter;
    // Handlers with a snapshotter of their own are always prepared.
    request.is_prepared = config.always.value || !is_default;
    let warning = (!request.is_prepared && unpacks_without_parents(&version)).then(|| {
        format!(
            "containerd {version} unpacks evicted images again for the next pod on {snapshotter}, without the layers' parents: directories may get wrong owners and modes; [cri] always = true lets `resnap serve` unpack them"
        )
    });
    Ok((request, warning))
}

/// Returns the proxy in front of the configured containerd, with `engine` as its unpack service. It puts
/// the credentials of pulls into `credentials`.
pub(crate) fn proxy(
    config: &Config,
    engine: Engine,
    observer: Option<Arc<dyn ProxyObserver>>,
    credentials: Option<PullCredentials>,
) -> Proxy {
    let mut settings = ProxySettings::default();
    settings.profiles = config.profiles.clone();
    settings.always = config.always.value;
    settings.unlabelled = config.unlabelled.value;
    settings.steer_pulls = config.steer_pulls.value;
    settings.image_status = config.image_status.value;
    settings.kubelet_root.clone_from(&config.kubelet_root.value);
    settings.default_snapshotter = config.default_snapshotter.clone();
    settings.sandbox_image = config.sandbox_image.clone();
    settings.handlers = config.handlers.clone();
    settings.credentials = credentials;
    Proxy::new(config.backend(), Arc::new(engine), settings, observer)
}
