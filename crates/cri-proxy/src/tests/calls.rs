// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Calls from a client through the proxy to containerd and back.

use std::time::Duration;

use bytes::Bytes;
use resnap_core::{Error, Kind, NotReady};

use super::messages::{container, pod};
use super::node::{CREATE_CONTAINER, DEADLINE, Node, RUN_POD_SANDBOX, VERSION, begin, call, ended};
use super::service::{Answer, Service};
use crate::grpc::Status;

const EVENTS: &str = "/runtime.v1.RuntimeService/GetContainerEvents";

fn unpack_failed(cause: &str) -> Status {
    Status::new(Kind::NotFound, format!("error unpacking image: {cause}"))
}

#[tokio::test]
async fn after_a_failed_unpack_the_request_is_sent_once_more() {
    let ready = || Answer::Ready;
    let failed = || {
        let error = Error::new(Kind::DataLoss, "unpack", "some:1");
        Answer::NotReady(NotReady::Failed(error))
    };
    // The errors of containerd, the second answer of the service, and the result.
    for (errors, second, message, calls) in [
        (vec!["first"], ready(), "", 2),
        (
            vec!["first", "second"],
            ready(),
            "error unpacking image: second",
            2,
        ),
        (vec!["first"], failed(), "unpack some:1", 1),
    ] {
        let node = Node::start(Service::answering([ready(), second]));
        for cause in errors {
            node.containerd
                .fail("CreateContainer", unpack_failed(cause));
        }
        let client = node.client().await;
        let (outcome, text) = call(&client, CREATE_CONTAINER, container("nydus", 10)).await;
        assert_eq!(text, message);
        assert_eq!(outcome.is_ok(), message.is_empty());
        assert_eq!(node.containerd.count("CreateContainer"), calls, "{message}");
    }
}

#[tokio::test]
async fn calls_that_do_not_end_get_an_error_when_the_proxy_stops() {
    // Streams are ended after two seconds, and the rest after three.
    let node = Node::with_grace(Service::default(), Duration::from_secs(6));
    let client = node.client().await;
    // One waits for its image, one for the end of a stream.
    let (waiting, _to) = begin(&client, CREATE_CONTAINER, container("nydus", 10), true).await;
    let (stream, _to) = begin(&client, EVENTS, container("", 0), true).await;
    node.asked(1).await;
    node.stop.cancel();
    for response in [waiting, stream] {
        let (outcome, _) = ended(response).await;
        assert_eq!(outcome, Err(Kind::Unavailable));
    }
    let served = tokio::time::timeout(DEADLINE, node.served).await;
    served.unwrap().unwrap().unwrap();
    assert_eq!(node.containerd.count("CreateContainer"), 0);
}

#[tokio::test]
async fn a_call_that_ends_in_the_grace_period_gets_its_response() {
    let node = Node::start(Service::answering([Answer::After(Duration::from_millis(
        1500,
    ))]));
    let client = node.client().await;
    let (response, _to) = begin(&client, CREATE_CONTAINER, container("nydus", 10), true).await;
    node.asked(1).await;
    node.stop.cancel();
    assert_eq!(ended(response).await, (Ok(()), String::new()));
    let served = tokio::time::timeout(DEADLINE / 2, node.served).await;
    served.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_restarted_containerd_is_asked_for_its_handlers_again() {
    let mut node = Node::start(Service::answering([Answer::Ready]));
    *node.containerd.handlers.lock().unwrap() = vec!["nydus"];
    let client = node.client().await;
    for _ in 0..2 {
        let started = call(&client, RUN_POD_SANDBOX, pod("stargz", 0)).await;
        assert_eq!(started.0, Ok(()));
    }
    assert_eq!(node.containerd.count("Status"), 1);
    assert_eq!(node.service.asked(), []);

    node.stop_containerd().await;
    let (outcome, text) = call(&client, VERSION, Bytes::new()).await;
    assert_eq!(outcome, Err(Kind::Unavailable));
    assert!(text.contains("does not answer"), "{text}");

    *node.containerd.handlers.lock().unwrap() = vec!["nydus", "stargz"];
    node.start_containerd();
    let started = call(&client, RUN_POD_SANDBOX, pod("stargz", 0)).await;
    assert_eq!(started.0, Ok(()));
    assert_eq!(node.containerd.count("Status"), 2);
    assert_eq!(node.service.asked().len(), 1);
}
