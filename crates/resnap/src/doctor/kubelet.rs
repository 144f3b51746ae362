// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Checks of kubelet.

use std::time::Duration;

use super::finding::{Findings, Severity};
use super::look::Look;
use super::look::daemon::Daemon;
use crate::config::is_same_file;

/// kubelet's own default. With less, a container whose image is unpacked needs many attempts.
const TIMEOUT: Duration = Duration::from_secs(120);

pub(crate) fn check(look: &Look<'_>, findings: &mut Findings) {
    let kubelet = match &look.kubelet {
        Ok(Some(kubelet)) => kubelet,
        // Nothing runs pods.
        Ok(None) => return,
        Err(error) => return findings.unknown("kubelet", format!("kubelet: {error}")),
    };
    let root = &look.config.kubelet_root.value;
    let subject = match kubelet.is_running {
        true => "kubelet".to_owned(),
        false => format!(
            "kubelet of {}, which does not run on the host",
            root.display()
        ),
    };
    let (endpoint, own) = (&kubelet.endpoint, &look.config.cri_socket.value);
    let is_own = is_same_file(endpoint, own);
    let is_served = matches!(look.daemon, Daemon::Running { .. });
    let way = format!(
        "set --container-runtime-endpoint=unix://{} (examples/systemd/10-resnap.conf), and restart kubelet",
        own.display()
    );
    if is_own && !is_served {
        findings.add(
            Severity::Fault,
            "kubelet.endpoint",
            &subject,
            format!(
                "it talks to resnap at {}, which does not serve: no pod starts",
                own.display()
            ),
            format!("{}, or let kubelet talk to containerd again", look.start()),
        );
    } else if !is_own && is_served {
        findings.add(
            Severity::Warning,
            "kubelet.endpoint",
            &subject,
            format!(
                "it talks to {}, past resnap: no image is made ready for its pods",
                endpoint.display()
            ),
            way,
        );
    }
    if kubelet.timeout < TIMEOUT {
        findings.add(
            Severity::Warning,
            "kubelet.timeout",
            &subject,
            format!(
                "its runtimeRequestTimeout is {}: a container whose image takes longer to unpack starts only after \
                 several attempts, and by containerd alone never",
                humantime::format_duration(kubelet.timeout)
            ),
            "leave runtimeRequestTimeout at 2m or set more, and restart kubelet",
        );
    }
}
