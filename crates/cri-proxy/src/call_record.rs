// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Reports each call to the observer once, when it ends.

use std::cell::Cell;
use std::sync::Arc;

use resnap_core::Kind;

use crate::grpc::Outcome;
use crate::observe::{ProxyEvent, ProxyObserver};

/// The name for methods that are not in the CRI.
const OTHER: &str = "other";

/// The methods of both services of the CRI, as of Kubernetes 1.36.
const METHODS: [&str; 41] = [
    "Attach",
    "CheckpointContainer",
    "ContainerStats",
    "ContainerStatus",
    "CreateContainer",
    "Exec",
    "ExecSync",
    "GetContainerEvents",
    "ImageFsInfo",
    "ImageStatus",
    "ListContainerStats",
    "ListContainers",
    "ListImages",
    "ListMetricDescriptors",
    "ListPodSandbox",
    "ListPodSandboxMetrics",
    "ListPodSandboxStats",
    "PodSandboxStats",
    "PodSandboxStatus",
    "PortForward",
    "PullImage",
    "RemoveContainer",
    "RemoveImage",
    "RemovePodSandbox",
    "ReopenContainerLog",
    "RunPodSandbox",
    "RuntimeConfig",
    "StartContainer",
    "Status",
    "StopContainer",
    "StopPodSandbox",
    "StreamContainerStats",
    "StreamContainers",
    "StreamImages",
    "StreamPodSandboxMetrics",
    "StreamPodSandboxStats",
    "StreamPodSandboxes",
    "UpdateContainerResources",
    "UpdatePodSandboxResources",
    "UpdateRuntimeConfig",
    "Version",
];

/// Returns the name of a method of the CRI, or [`OTHER`]: callers must not add names to metrics.
fn method(path: &str) -> &'static str {
    let services = ["/runtime.v1.RuntimeService/", "/runtime.v1.ImageService/"];
    let mut names = services.iter().filter_map(|of| path.strip_prefix(of));
    let known = names.next().and_then(|name| {
        let index = METHODS.binary_search(&name).ok()?;
        METHODS.get(index).copied()
    });
    known.unwrap_or(OTHER)
}

/// A call that is reported when the value is dropped, by default as cancelled.
pub(crate) struct CallRecord {
    observer: Option<Arc<dyn ProxyObserver>>,
    method: &'static str,
    outcome: Cell<Outcome>,
}

impl CallRecord {
    /// Starts the record of a call.
    pub(crate) fn start(observer: Option<&Arc<dyn ProxyObserver>>, path: &str) -> Self {
        Self {
            observer: observer.cloned(),
            method: observer.map_or(OTHER, |_| method(path)),
            outcome: Cell::new(Err(Kind::Cancelled)),
        }
    }

    /// Sets how the call ended.
    pub(crate) fn set_outcome(&self, outcome: Outcome) {
        self.outcome.set(outcome);
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        if let Some(observer) = &self.observer {
            observer.on_event(&ProxyEvent::Answered {
                method: self.method,
                outcome: self.outcome.get(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_methods_of_the_cri_have_names() {
        assert!(METHODS.is_sorted());
        for (path, name) in [
            (
                "/runtime.v1.RuntimeService/CreateContainer",
                "CreateContainer",
            ),
            ("/runtime.v1.ImageService/PullImage", "PullImage"),
            ("/runtime.v1.RuntimeService/MadeUp", OTHER),
            ("/runtime.v1alpha2.RuntimeService/Version", OTHER),
            ("/containerd.services.images.v1.Images/List", OTHER),
            ("", OTHER),
        ] {
            assert_eq!(method(path), name, "{path}");
        }
    }
}
