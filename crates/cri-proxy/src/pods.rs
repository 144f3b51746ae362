// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The pods for which images are pulled and looked up. kubelet starts a pod's sandbox before it looks for
//! the images of its containers.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use resnap_core::PodId;

use crate::backend::Backend;
use crate::expiring::ExpiringMap;
use crate::grpc::Status;
use crate::messages::{
    ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox, PodSandboxFilter,
    PodSandboxMetadata, PodSandboxStateValue, RunPodSandboxRequest,
};

/// The annotation with the time at which kubelet first saw a pod, to the nanosecond. It is in the
/// sandbox and in the annotations of the pod's ImageStatus requests.
const CONFIG_SEEN: &str = "kubernetes.io/config.seen";

/// The time for which a pod is new. kubelet asks for its images as soon as the sandbox is there.
const NEW: Duration = Duration::from_secs(120);

/// The longest text of such a time, and the longest names of a pod and its handler together, that are remembered.
const MAX_SEEN: usize = 64;
const MAX_POD: usize = 1024;

/// A pod with a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pod {
    /// `None` if it may be one of several.
    pub(crate) id: Option<PodId>,
    pub(crate) handler: String,
}

/// Removes the annotations of a pod that are not read here: decoded, they can take many times their size.
pub(crate) fn keep_only_config_seen(request: &mut RunPodSandboxRequest) {
    if let Some(config) = &mut request.config {
        let seen = config.annotations.remove_entry(CONFIG_SEEN);
        config.annotations = seen.into_iter().collect();
    }
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

/// The pods of the sandboxes that were created lately, by the time at which kubelet first saw each.
#[derive(Debug)]
pub(crate) struct NewPods(ExpiringMap<String, Option<Pod>>);

impl Default for NewPods {
    fn default() -> Self {
        Self(ExpiringMap::new(NEW))
    }
}

impl NewPods {
    /// Records that the sandbox was created that this request asked for.
    pub(crate) fn record(&self, request: &RunPodSandboxRequest) {
        let Some(config) = &request.config else {
            return;
        };
        let Some(seen) = config.annotations.get(CONFIG_SEEN) else {
            return;
        };
        let pod = Pod {
            id: config.metadata.as_ref().map(PodSandboxMetadata::pod),
            handler: request.runtime_handler.clone(),
        };
        let size = pod.handler.len() + pod.id.as_ref().map_or(0, |id| id.name.len() + id.uid.len());
        if (1..=MAX_SEEN).contains(&seen.len()) && size <= MAX_POD {
            // If others have the same time, containerd is asked.
            let is_only = self
                .0
                .get(seen)
                .is_none_or(|known| known.as_ref() == Some(&pod));
            self.0.insert(seen.clone(), is_only.then_some(pod));
        }
    }
}

/// Returns the pod with these annotations, in the same way.
///
/// # Errors
/// The error of containerd, if it does not answer.
pub(crate) async fn with_annotations(
    backend: &Backend,
    new: &NewPods,
    annotations: &HashMap<String, String>,
) -> Result<Option<Pod>, Status> {
    let Some(seen) = annotations.get(CONFIG_SEEN).filter(|seen| !seen.is_empty()) else {
        return Ok(None);
    };
    if let Some(Some(pod)) = new.0.get(seen) {
        return Ok(Some(pod));
    }
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
    use crate::messages::ClientSandboxConfig;

    #[test]
    fn of_the_annotations_of_a_sandbox_only_the_time_is_kept() {
        let annotations = [(CONFIG_SEEN, "2026"), ("a", "b")];
        let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut request = RunPodSandboxRequest {
            config: Some(ClientSandboxConfig {
                annotations: annotations.clone().into(),
                ..ClientSandboxConfig::default()
            }),
            ..RunPodSandboxRequest::default()
        };
        keep_only_config_seen(&mut request);
        let [seen, _] = annotations;
        assert_eq!(request.config.unwrap().annotations, [seen].into());
    }

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
