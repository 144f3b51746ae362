// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The pods for which images are pulled and looked up. kubelet starts a pod's sandbox before it looks for
//! the images of its containers.

use std::collections::{BTreeSet, HashMap};

use resnap_core::PodId;

use crate::backend::Backend;
use crate::grpc::Status;
use crate::messages::{
    ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox, PodSandboxFilter,
    PodSandboxMetadata, PodSandboxStateValue,
};

/// The annotation with the time at which kubelet first saw a pod, to the nanosecond. It is in the
/// sandbox and in the annotations of the pod's ImageStatus requests.
const CONFIG_SEEN: &str = "kubernetes.io/config.seen";

/// A pod with a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pod {
    /// `None` if it may be one of several.
    pub(crate) id: Option<PodId>,
    pub(crate) handler: String,
}

/// Returns the pod whose sandbox has this metadata; `None` if there is none, or the handler is
/// ambiguous.
///
/// # Errors
/// The error of containerd, if it does not answer.
pub(crate) async fn with_metadata(
    backend: &Backend,
    metadata: &PodSandboxMetadata,
) -> Result<Option<Pod>, Status> {
    let is_wanted = |sandbox: &PodSandbox| sandbox.metadata.as_ref() == Some(metadata);
    find(backend, is_wanted).await
}

/// Returns the pod with these annotations, in the same way.
///
/// # Errors
/// The error of containerd, if it does not answer.
pub(crate) async fn with_annotations(
    backend: &Backend,
    annotations: &HashMap<String, String>,
) -> Result<Option<Pod>, Status> {
    let Some(seen) = annotations.get(CONFIG_SEEN).filter(|seen| !seen.is_empty()) else {
        return Ok(None);
    };
    let is_wanted = |sandbox: &PodSandbox| sandbox.annotations.get(CONFIG_SEEN) == Some(seen);
    find(backend, is_wanted).await
}

/// Returns all pods with a sandbox.
///
/// # Errors
/// The error of containerd, if it does not answer.
pub(crate) async fn all(backend: &Backend) -> Result<BTreeSet<PodId>, Status> {
    let sandboxes = list(backend, None).await?;
    let metadata = sandboxes
        .iter()
        .filter_map(|sandbox| sandbox.metadata.as_ref());
    Ok(metadata.map(PodSandboxMetadata::pod).collect())
}

async fn find(
    backend: &Backend,
    is_wanted: impl Fn(&PodSandbox) -> bool,
) -> Result<Option<Pod>, Status> {
    // Ready is zero.
    let state = Some(PodSandboxStateValue { state: 0 });
    let ready = list(backend, Some(PodSandboxFilter { state })).await?;
    Ok(only(ready.into_iter().filter(is_wanted)))
}

async fn list(
    backend: &Backend,
    filter: Option<PodSandboxFilter>,
) -> Result<Vec<PodSandbox>, Status> {
    let path = "/runtime.v1.RuntimeService/ListPodSandbox";
    let request = ListPodSandboxRequest { filter };
    let response: ListPodSandboxResponse = backend.unary(path, &request).await?;
    Ok(response.items)
}

/// Returns what these sandboxes have in common; `None` if that is not even the handler.
fn only(sandboxes: impl Iterator<Item = PodSandbox>) -> Option<Pod> {
    let mut pods = sandboxes.map(|sandbox| Pod {
        id: sandbox.metadata.as_ref().map(PodSandboxMetadata::pod),
        handler: sandbox.runtime_handler,
    });
    let mut pod = pods.next()?;
    for other in pods {
        if other.handler != pod.handler {
            return None;
        }
        pod.id = pod.id.filter(|id| other.id.as_ref() == Some(id));
    }
    Some(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_told_unless_sandboxes_contradict_each_other() {
        let sandbox = |name: &str, handler: &str| PodSandbox {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                namespace: "shop".to_owned(),
                ..PodSandboxMetadata::default()
            }),
            runtime_handler: handler.to_owned(),
            ..PodSandbox::default()
        };
        let pod = |name: Option<&str>, handler: &str| {
            Some(Pod {
                id: name.map(|name| PodId::new(name, "")),
                handler: handler.to_owned(),
            })
        };
        for (sandboxes, expected) in [
            (vec![], None),
            (vec![sandbox("a", "kata")], pod(Some("shop/a"), "kata")),
            // A sandbox was replaced, and both are ready for a moment.
            (
                vec![sandbox("a", "kata"), sandbox("a", "kata")],
                pod(Some("shop/a"), "kata"),
            ),
            (
                vec![sandbox("a", "kata"), sandbox("b", "kata")],
                pod(None, "kata"),
            ),
            (vec![sandbox("a", "kata"), sandbox("a", "")], None),
        ] {
            assert_eq!(only(sandboxes.into_iter()), expected);
        }
    }
}
