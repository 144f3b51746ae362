// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Calls, told of when they have ended.

use std::cell::Cell;
use std::sync::Arc;

use crate::grpc::CANCELLED;
use crate::observe::{ProxyEvent, ProxyObserver};

/// Any method that is none of the CRI's.
const OTHER: &str = "other";

/// The methods of both services, as of Kubernetes 1.36.
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

/// The CRI's own name of a method, so that callers cannot make up new ones.
fn method(path: &str) -> &'static str {
    let services = ["/runtime.v1.RuntimeService/", "/runtime.v1.ImageService/"];
    let mut names = services.iter().filter_map(|of| path.strip_prefix(of));
    let known = names.next().and_then(|name| {
        let index = METHODS.binary_search(&name).ok()?;
        METHODS.get(index).copied()
    });
    known.unwrap_or(OTHER)
}

/// A call that is told of once, when it has ended. One that is dropped before was cancelled.
pub(crate) struct CallRecord {
    observer: Option<Arc<dyn ProxyObserver>>,
    method: &'static str,
    code: Cell<u16>,
}

impl CallRecord {
    /// A call that begins now.
    pub(crate) fn begin(observer: Option<&Arc<dyn ProxyObserver>>, path: &str) -> Self {
        Self {
            observer: observer.cloned(),
            method: observer.map_or(OTHER, |_| method(path)),
            code: Cell::new(CANCELLED),
        }
    }

    /// Notes the code that it ends with.
    pub(crate) fn ends_with(&self, code: u16) {
        self.code.set(code);
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        if let Some(observer) = &self.observer {
            observer.on_event(&ProxyEvent::Answered {
                method: self.method,
                code: self.code.get(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_those_of_the_cri() {
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
