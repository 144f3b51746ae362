// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Facts that are known when they are needed, since containerd was asked for them ahead.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;

use super::messages::{container, pod};
use super::node::{CREATE_CONTAINER, DEADLINE, IMAGE_STATUS, Node, RUN_POD_SANDBOX, call};
use super::service::{Answer, Service};
use crate::grpc::encode;
use crate::messages::{
    ClientImageSpec, ClientSandboxConfig, ImageStatusRequest, PodSandboxMetadata,
    RunPodSandboxRequest,
};

/// A service on whose `erofs` all images are still ready.
fn ready() -> Service {
    let service = Service::answering([Answer::Ready]);
    service.still_ready.lock().unwrap().push("erofs");
    service
}

async fn wait_for(node: &Node, method: &str, count: usize) {
    let start = Instant::now();
    while node.containerd.count(method) < count {
        assert!(start.elapsed() < DEADLINE, "{method}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn seen() -> HashMap<String, String> {
    [("kubernetes.io/config.seen".to_owned(), "2026".to_owned())].into()
}

/// Encodes what kubelet sends to start a pod.
fn pod_of_kubelet(name: &str) -> Bytes {
    let request = RunPodSandboxRequest {
        config: Some(ClientSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                ..PodSandboxMetadata::default()
            }),
            annotations: seen(),
        }),
        runtime_handler: "erofs".to_owned(),
    };
    encode(&request).unwrap()
}

/// Encodes what kubelet sends to look up an image for the pod.
fn lookup() -> Bytes {
    let request = ImageStatusRequest {
        image: Some(ClientImageSpec {
            image: "some:1".to_owned(),
            annotations: seen(),
            ..ClientImageSpec::default()
        }),
    };
    encode(&request).unwrap()
}

#[tokio::test]
async fn a_sandbox_is_looked_at_before_its_containers_come() {
    let node = Node::start(ready());
    let client = node.client().await;
    let (outcome, _) = call(&client, RUN_POD_SANDBOX, pod("erofs", 0)).await;
    assert_eq!(outcome, Ok(()));
    wait_for(&node, "PodSandboxStatus", 1).await;
    let (outcome, _) = call(&client, CREATE_CONTAINER, container("erofs", 10)).await;
    assert_eq!(outcome, Ok(()));
    assert_eq!(node.containerd.count("PodSandboxStatus"), 1);
    assert_eq!(node.service.asked(), []);
}

#[tokio::test]
async fn a_sandbox_that_was_not_created_is_not_looked_at() {
    let node = Node::start(ready());
    let client = node.client().await;
    let status = crate::grpc::Status::new(resnap_core::Kind::Internal, "no");
    node.containerd.fail("RunPodSandbox", status);
    let (outcome, _) = call(&client, RUN_POD_SANDBOX, pod("erofs", 0)).await;
    assert!(outcome.is_err());
    let (outcome, _) = call(&client, RUN_POD_SANDBOX, pod("erofs", 0)).await;
    assert_eq!(outcome, Ok(()));
    wait_for(&node, "PodSandboxStatus", 1).await;
    assert_eq!(node.containerd.count("PodSandboxStatus"), 1);
}

#[tokio::test]
async fn the_pod_of_an_image_status_is_known_by_its_sandbox() {
    // With two pods of the same time, containerd is asked.
    for (pods, lists) in [(vec!["a", "a"], 0), (vec!["a", "b"], 1)] {
        let node = Node::start(ready());
        let client = node.client().await;
        for pod in &pods {
            let (outcome, _) = call(&client, RUN_POD_SANDBOX, pod_of_kubelet(pod)).await;
            assert_eq!(outcome, Ok(()));
        }
        let (outcome, _) = call(&client, IMAGE_STATUS, lookup()).await;
        assert_eq!(outcome, Ok(()));
        assert_eq!(node.containerd.count("ListPodSandbox"), lists, "{pods:?}");
        assert_eq!(node.containerd.count("ImageStatus"), 1);
        assert_eq!(node.service.asked(), []);
    }
}

/// Starts a pod, and returns how often containerd was asked for its handlers so far.
async fn started(node: &Node, client: &SendRequest<Bytes>) -> usize {
    let (outcome, _) = call(client, RUN_POD_SANDBOX, pod("erofs", 0)).await;
    assert_eq!(outcome, Ok(()));
    node.containerd.count("Status")
}

#[tokio::test]
async fn clients_share_what_is_known_until_containerd_may_have_changed() {
    let mut node = Node::start(ready());
    let first = node.client().await;
    assert_eq!(started(&node, &first).await, 1);
    let second = node.client().await;
    assert_eq!(started(&node, &second).await, 1);
    node.stop_containerd().await;
    node.start_containerd();
    assert_eq!(started(&node, &second).await, 2);
    // While nobody is connected, nobody would notice a restart.
    drop((first, second));
    let start = Instant::now();
    while started(&node, &node.client().await).await == 2 {
        assert!(start.elapsed() < DEADLINE);
    }
}
