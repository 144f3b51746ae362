// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The settings of the source.

use std::path::PathBuf;
use std::time::Duration;

/// The settings of a [`RegistrySource`](crate::RegistrySource). The defaults are those of a node with
/// kubelet and containerd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The directories with a directory for each registry, as containerd's `config_path` has them. The
    /// first one with a directory for the registry, or with `_default`, counts.
    pub host_directories: Vec<PathBuf>,
    /// Docker's config files with credentials. A file that does not exist is skipped.
    pub docker_configs: Vec<PathBuf>,
    /// The directories with the credential helpers (`docker-credential-NAME`); none means those of the
    /// environment variable `PATH`.
    pub helper_directories: Vec<PathBuf>,
    /// The time without one byte from a server after which a transfer has stalled.
    pub stall: Duration,
    /// The limit on the time to connect, unless `hosts.toml` has one (`dial_timeout`).
    pub connect: Duration,
    /// The wait after a first failure. It doubles with each further failure without progress.
    pub backoff: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            host_directories: vec![
                "/etc/containerd/certs.d".into(),
                "/etc/docker/certs.d".into(),
            ],
            docker_configs: vec![
                "/var/lib/kubelet/config.json".into(),
                "/root/.docker/config.json".into(),
            ],
            helper_directories: Vec::new(),
            stall: Duration::from_secs(30),
            connect: Duration::from_secs(10),
            backoff: Duration::from_millis(500),
        }
    }
}
