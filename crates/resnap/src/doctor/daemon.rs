// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Checks of the daemon against this program and the configuration file.

use std::path::{Path, PathBuf};

use super::containerd_config::changed_since;
use super::finding::{Findings, Severity, quoted};
use super::look::Look;
use super::look::daemon::{CHANGED, Daemon, RESTART, config_file};
use crate::config::is_same_file;

pub(crate) fn check(look: &Look<'_>, findings: &mut Findings) {
    let config = look.config;
    let socket = config.api_socket.value.display().to_string();
    let (info, process) = match &look.daemon {
        Daemon::Absent => return absent(look, &socket, findings),
        Daemon::Silent(why) => {
            return findings.add(
                Severity::Fault,
                "daemon.api",
                socket,
                format!("the socket of the daemon is there, and nothing answers: {why}"),
                look.start(),
            );
        }
        Daemon::Running { info, process } => (info, process),
    };
    let (address, namespace) = (&info.containerd_address, &info.containerd_namespace);
    let is_same =
        *namespace == config.namespace.value && is_same_file(Path::new(address), config.backend());
    if !is_same {
        return findings.add(
            Severity::Warning,
            "daemon.target",
            socket,
            format!("the daemon serves namespace {namespace} of the containerd at {address}"),
            format!(
                "run `resnap --address {} --namespace {} doctor`",
                quoted(address),
                quoted(namespace)
            ),
        );
    }
    let own = env!("CARGO_PKG_VERSION");
    if info.version != own {
        findings.add(
            Severity::Warning,
            "daemon.version",
            &socket,
            format!(
                "the daemon is resnap {}, and this program is {own}",
                info.version
            ),
            RESTART,
        );
    }
    match &look.cri_socket {
        Ok(version) if *version == look.version => {}
        Ok(version) => findings.add(
            Severity::Warning,
            "daemon.cri",
            config.cri_socket.value.display().to_string(),
            format!(
                "it leads to containerd {version}, and the one at {} is {}",
                config.address.value, look.version
            ),
            RESTART,
        ),
        Err(why) => findings.add(
            Severity::Fault,
            "daemon.cri",
            config.cri_socket.value.display().to_string(),
            format!("containerd does not answer at kubelet's socket: {why}"),
            RESTART,
        ),
    }
    let process = match process {
        Ok(process) => process,
        Err(error) => {
            return findings.unknown("daemon.config-changed", format!("the daemon: {error}"));
        }
    };
    let own = config.file.value.as_deref();
    let file = config_file(process, own);
    let changed = |file: &&PathBuf| changed_since(file, process.started);
    if let Some(file) = file.as_ref().filter(changed) {
        findings.add(
            Severity::Warning,
            "daemon.config-changed",
            file.display().to_string(),
            CHANGED,
            RESTART,
        );
    }
    if let (Some(file), Some(own)) = (file, own)
        && !is_same_file(&file, own)
    {
        findings.add(
            Severity::Note,
            "daemon.config",
            file.display().to_string(),
            format!(
                "the daemon goes by this file, and this look by {}",
                own.display()
            ),
            format!(
                "run `resnap --config {} doctor`",
                quoted(&file.to_string_lossy())
            ),
        );
    }
}

/// Finds nodes whose handlers need a daemon.
fn absent(look: &Look<'_>, socket: &str, findings: &mut Findings) {
    let cri = look.cri.as_ref();
    let handlers: Vec<&str> = cri
        .map(|cri| cri.others().map(|(handler, _)| handler).collect())
        .unwrap_or_default();
    if !handlers.is_empty() {
        findings.add(
            Severity::Warning,
            "daemon.api",
            socket,
            format!(
                "no daemon runs: no image is made ready for pods of the handlers {} before they need it",
                handlers.join(", ")
            ),
            look.start(),
        );
    }
}
