// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The configuration: flags, then the environment, then a file, then the defaults.

mod file;
mod setting;
mod trust;
mod words;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::ArgMatches;
use resnap_applier::{ApplierSettings, Differ, MEMORY, STALL};
use resnap_containerd::DEFAULT_ADDRESS;
use resnap_core::{ErofsMode, Profiles};
use resnap_cri_proxy::{KUBELET_ROOT, Unlabelled, When};
use resnap_local::Local;
use resnap_unpacker::Configuration;

use crate::args::{Common, EngineWord, ServeArguments};
use crate::pending_images::PendingImages;

pub(crate) use file::Rule;
use file::{File, UnpackSection};
use setting::Overrides;
pub(crate) use setting::{Setting, Source};
pub(crate) use trust::trust;
pub(crate) use words::{KeepWord, SiblingWord, SourceName};

/// The default directory of archives.
const ARCHIVES: &str = "/var/lib/resnap/archives";

/// The configuration.
#[derive(Debug)]
pub(crate) struct Config {
    /// The path of the configuration file, if there is one.
    pub(crate) file: Setting<Option<PathBuf>>,
    /// The directory of the local engine; `None` for containerd.
    pub(crate) local: Option<PathBuf>,
    /// The images that the local engine is to record.
    pub(crate) pending: Option<PendingImages>,
    pub(crate) address: Setting<String>,
    pub(crate) namespace: Setting<String>,
    pub(crate) runtime_dir: Setting<PathBuf>,
    pub(crate) cri_socket: Setting<PathBuf>,
    pub(crate) api_socket: Setting<PathBuf>,
    /// `None` if containerd asks for no layers.
    pub(crate) diff_socket: Setting<Option<PathBuf>>,
    /// `None` if metrics are not served.
    pub(crate) metrics_address: Setting<Option<SocketAddr>>,
    pub(crate) always: Setting<bool>,
    /// See [`resnap_cri_proxy::ProxySettings::unlabelled`].
    pub(crate) unlabelled: Setting<Option<Unlabelled>>,
    /// See [`resnap_cri_proxy::ProxySettings::steer_pulls`].
    pub(crate) steer_pulls: Setting<When>,
    /// See [`resnap_cri_proxy::ProxySettings::image_status`].
    pub(crate) image_status: Setting<When>,
    /// The directory of kubelet, with its records of pulls.
    pub(crate) kubelet_root: Setting<PathBuf>,
    pub(crate) default_snapshotter: Option<String>,
    pub(crate) sandbox_image: Option<String>,
    pub(crate) handlers: BTreeMap<String, String>,
    pub(crate) prewarm: Vec<Rule>,
    pub(crate) prewarm_jobs: Setting<usize>,
    pub(crate) unpack: Setting<Vec<Configuration>>,
    pub(crate) max_layer_bytes: Setting<Option<u64>>,
    pub(crate) memory: Setting<u64>,
    pub(crate) stall: Setting<Duration>,
    /// The three settings above and the differs of the snapshotters.
    pub(crate) applier: ApplierSettings,
    pub(crate) profiles: Profiles,
    /// The sources of missing content, in order.
    pub(crate) sources: Setting<Vec<SourceName>>,
    pub(crate) sibling: Setting<SiblingWord>,
    pub(crate) keep_fetched: Setting<KeepWord>,
    /// The directories with the configurations of registries.
    pub(crate) hosts_dir: Setting<Vec<PathBuf>>,
    pub(crate) authorities: Setting<Vec<PathBuf>>,
    pub(crate) signers: Setting<Vec<PathBuf>>,
    /// Archives and OCI layouts, and directories of them.
    pub(crate) archives: Setting<Vec<PathBuf>>,
    /// The names of the profiles that the file changes.
    changed_profiles: Vec<String>,
}

impl Config {
    /// Loads the configuration from the arguments and the file.
    ///
    /// # Errors
    /// The file cannot be read, it has an unknown key or a wrong value, or the metrics address is not a
    /// loopback address.
    pub(crate) fn load(
        common: &Common,
        serve: Option<&ServeArguments>,
        matches: &ArgMatches,
    ) -> Result<Self> {
        let (path, file) = File::load(common.config.as_deref())?;
        let given = Overrides(matches);
        let local = local(common)?;
        let runtime_dir = match &local {
            Some(root) => Setting::of_file(None, Local::runtime_dir(root)),
            None => given.resolve(
                "runtime_dir",
                common.runtime_dir.clone(),
                file.runtime_dir,
                "/run/resnap".into(),
            ),
        };
        let in_runtime_dir = |name| runtime_dir.value.join(name);
        let cri_socket = serve.and_then(|serve| serve.cri_socket.clone());
        let cri_socket_default = in_runtime_dir("cri.sock");
        let max_layer_bytes = Setting::of_file(file.max_layer_bytes.map(Some), None);
        let memory = Setting::of_file(file.memory.map(|memory| memory.0), MEMORY);
        let stall = Setting::of_file(file.stall.map(|stall| stall.0), STALL);
        let mut applier = ApplierSettings::default();
        applier.max_layer_bytes = max_layer_bytes.value;
        (applier.memory, applier.stall) = (memory.value, stall.value);
        let authorities = Setting::of_file(file.integrity.authorities, Vec::new());
        let signers = Setting::of_file(file.integrity.signers, Vec::new());
        applier.trust = trust(&authorities.value, &signers.value)?.map(Arc::new);
        let changed_profiles = file.snapshotters.keys().cloned().collect();
        let mut profiles = Profiles::default();
        for (name, section) in file.snapshotters {
            let differ = section.differ.map(Differ::from);
            let differ = differ.map(|differ| (name.clone(), differ));
            applier.differs.extend(differ);
            let mode = section.erofs_mode.map(ErofsMode::from);
            let mode = mode.map(|mode| (name.clone(), mode));
            applier.erofs_modes.extend(mode);
            section.apply(profiles.entry(&name));
        }
        // What any user can have, and containerd's word for what its pods use does not hold there.
        let default_snapshotter = match local {
            Some(_) => Some("erofs".to_owned()),
            None => file.cri.default_snapshotter,
        };
        let namespace = match local {
            Some(_) => Setting::of_file(None, Local::NAMESPACE.to_owned()),
            None => given.resolve(
                "namespace",
                common.namespace.clone(),
                file.namespace,
                "k8s.io".to_owned(),
            ),
        };
        Ok(Self {
            local,
            pending: None,
            namespace,
            address: given.resolve(
                "address",
                common.address.clone(),
                file.address,
                DEFAULT_ADDRESS.to_owned(),
            ),
            cri_socket: given.resolve(
                "cri_socket",
                cri_socket,
                file.cri.socket,
                cri_socket_default,
            ),
            api_socket: Setting::of_file(file.api.socket, in_runtime_dir("api.sock")),
            diff_socket: Setting::of_file(file.diff.socket.map(Some), None),
            metrics_address: metrics_address(&given, serve, file.metrics.address)?,
            always: Setting::of_file(file.cri.always, false),
            unlabelled: Setting::of_file(file.cri.unlabelled.map(|word| Some(word.into())), None),
            steer_pulls: Setting::of_file(file.cri.steer_pulls.map(When::from), When::Safe),
            image_status: Setting::of_file(file.cri.image_status.map(When::from), When::Safe),
            kubelet_root: Setting::of_file(file.cri.kubelet_root, KUBELET_ROOT.into()),
            unpack: unpack(file.unpack, default_snapshotter.as_deref())?,
            file: given.resolve("config", common.config.clone().map(Some), None, path),
            sandbox_image: file.cri.sandbox_image,
            handlers: file.cri.handlers,
            prewarm: file.prewarm,
            prewarm_jobs: Setting::of_file(file.prewarm_jobs.map(NonZeroUsize::get), 1),
            runtime_dir,
            default_snapshotter,
            max_layer_bytes,
            memory,
            stall,
            applier,
            profiles,
            sources: Setting::of_file(
                file.sources.order,
                vec![
                    SourceName::Archive,
                    SourceName::Sibling,
                    SourceName::Registry,
                ],
            ),
            sibling: Setting::of_file(file.sources.sibling, SiblingWord::WhenMissing),
            keep_fetched: Setting::of_file(file.sources.keep_fetched, KeepWord::Auto),
            authorities,
            signers,
            hosts_dir: Setting::of_file(
                file.sources.hosts_dir,
                resnap_registry::Settings::default().host_directories,
            ),
            archives: Setting::of_file(file.sources.archives, vec![ARCHIVES.into()]),
            changed_profiles,
        })
    }

    /// Sets the local engine with the store in a directory.
    pub(crate) fn use_store(&mut self, root: &Path) {
        self.local = Some(root.to_owned());
        self.runtime_dir = Setting::of_file(None, Local::runtime_dir(root));
        self.namespace = Setting::of_file(None, Local::NAMESPACE.to_owned());
        self.default_snapshotter = Some("erofs".to_owned());
    }

    /// Makes these archives the first source of missing layers.
    ///
    /// # Errors
    /// One of them does not exist.
    pub(crate) fn prepend_archives(&mut self, paths: &[PathBuf]) -> Result<()> {
        for path in paths {
            path.metadata()
                .with_context(|| format!("--from {path:?}"))?;
        }
        let archives = &mut self.archives.value;
        archives.splice(0..0, paths.iter().cloned());
        let sources = &mut self.sources.value;
        sources.retain(|source| *source != SourceName::Archive);
        sources.insert(0, SourceName::Archive);
        Ok(())
    }

    /// Returns the path of containerd's socket.
    pub(crate) fn backend(&self) -> &Path {
        Path::new(self.address.value.trim_start_matches("unix://"))
    }

    /// Returns the source of the profile of a snapshotter.
    pub(crate) fn profile_source(&self, snapshotter: &str) -> Source {
        let mut changed = self.changed_profiles.iter();
        match changed.any(|changed| changed == snapshotter) {
            true => Source::File,
            false => Source::Default,
        }
    }
}

/// Returns the directory of the local engine, if that is the engine.
fn local(common: &Common) -> Result<Option<PathBuf>> {
    match (common.engine, &common.root) {
        (EngineWord::Containerd, None) => Ok(None),
        (EngineWord::Local, Some(root)) => Ok(Some(std::path::absolute(root)?)),
        (EngineWord::Local, None) => {
            bail!("--engine local needs --root DIR, the directory of its images and snapshots")
        }
        (EngineWord::Containerd, Some(root)) => {
            bail!("--root {root:?} is of the local engine: say --engine local, too")
        }
    }
}

/// Returns the metrics address. Metrics have no authentication, so only loopback addresses are accepted.
fn metrics_address(
    given: &Overrides<'_>,
    serve: Option<&ServeArguments>,
    file: Option<SocketAddr>,
) -> Result<Setting<Option<SocketAddr>>> {
    let flag = serve.and_then(|serve| serve.metrics_address);
    let setting = given.resolve("metrics_address", flag.map(Some), file.map(Some), None);
    if let Some(address) = setting.value
        && !address.ip().is_loopback()
    {
        bail!("metrics address {address} is not on the loopback device; use 127.0.0.1 or ::1");
    }
    Ok(setting)
}

fn unpack(
    file: Option<Vec<UnpackSection>>,
    default_snapshotter: Option<&str>,
) -> Result<Setting<Vec<Configuration>>> {
    let sections = file.map(|sections| sections.into_iter().map(UnpackSection::configuration));
    let file = sections.map(Iterator::collect::<Result<_>>).transpose()?;
    let defaults = Configuration::defaults(default_snapshotter.unwrap_or("overlayfs"));
    Ok(Setting::of_file(file, defaults))
}

/// Returns whether two paths lead to one file, or are equal if there is none.
pub(crate) fn is_same_file(left: &Path, right: &Path) -> bool {
    let canonical = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    canonical(left) == canonical(right)
}

#[cfg(test)]
mod tests;
