// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Clients that share a proxy.

use std::io;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use resnap_core::{Integrity, Kind};
use tokio::net::UnixStream;

use super::messages::{container, pod};
use super::node::{CREATE_CONTAINER, DEADLINE, Node, RUN_POD_SANDBOX, VERSION, begin, call, ended};
use super::service::Service;
use crate::settings::ProxySettings;

/// Begins a CreateContainer on nydus, whose request has this many bytes and waits for its image.
async fn create(client: &SendRequest<Bytes>, bytes: usize) -> (ResponseFuture, SendStream<Bytes>) {
    begin(client, CREATE_CONTAINER, container("nydus", bytes), true).await
}

#[tokio::test]
async fn pods_start_while_large_requests_wait_for_their_images() {
    let node = Node::start(Service::default());
    let client = node.client().await;
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.push(create(&client, 1_048_000).await);
    }
    node.asked(4).await;
    for (path, body) in [
        (CREATE_CONTAINER, container("overlayfs", 5_000)),
        (CREATE_CONTAINER, container("overlayfs", 1_500_000)),
        (RUN_POD_SANDBOX, pod("", 5_000)),
        (RUN_POD_SANDBOX, pod("", 300_000)),
    ] {
        assert_eq!(call(&client, path, body).await.0, Ok(()), "{path}");
    }
    // A fifth one is held as well.
    waiting.push(create(&client, 1_048_000).await);
    node.asked(5).await;
    assert_eq!(node.containerd.count("CreateContainer"), 2);
}

#[tokio::test]
async fn past_the_limit_the_largest_is_answered_early() {
    let node = Node::start(Service::default());
    let client = node.client().await;
    let largest = container("nydus", 4_100_000);
    let (largest, _to) = begin(&client, CREATE_CONTAINER, largest, true).await;
    node.asked(1).await;
    let mut waiting = Vec::new();
    for count in 2..18 {
        waiting.push(create(&client, 4_000_000).await);
        node.asked(count).await;
    }
    let (outcome, text) = ended(largest).await;
    assert_eq!(outcome, Err(Kind::DeadlineExceeded));
    assert!(text.starts_with("unpacking some:1 for nydus: "), "{text}");
    assert!(text.ends_with("still running"), "{text}");
    assert_eq!(node.containerd.count("CreateContainer"), 0);
    // The others wait on.
    for (response, _to) in waiting {
        let early = tokio::time::timeout(Duration::ZERO, response).await;
        assert!(early.is_err());
    }
}

#[tokio::test]
async fn without_budget_only_requests_that_must_be_inspected_are_refused() {
    let node = Node::start(Service::default());
    let client = node.client().await;
    // It uses all of the budget, and its message does not end in the time that it has.
    let stalled = container("nydus", 4_190_000).slice(..100_000);
    let (mut stalled, _to) = begin(&client, CREATE_CONTAINER, stalled, false).await;
    tokio::time::timeout(Duration::from_millis(300), &mut stalled)
        .await
        .unwrap_err();
    let large = 200_000;
    let (refused, small, on_erofs, plain, any) = tokio::join!(
        call(&client, CREATE_CONTAINER, container("nydus", large)),
        async {
            let small = create(&client, 20_000).await;
            node.asked(1).await;
            small
        },
        call(&client, CREATE_CONTAINER, container("erofs", large)),
        call(&client, CREATE_CONTAINER, container("overlayfs", large)),
        call(&client, RUN_POD_SANDBOX, pod("nydus", large)),
    );
    assert_eq!(refused.0, Err(Kind::ResourceExhausted), "{}", refused.1);
    drop(small);
    assert_eq!((on_erofs.0, plain.0), (Ok(()), Ok(())));
    // Its handler is encoded last, and the images of some handlers need labels.
    assert_eq!(any.0, Err(Kind::ResourceExhausted), "{}", any.1);
    assert_eq!(node.containerd.count("CreateContainer"), 2);
    assert_eq!(node.containerd.count("RunPodSandbox"), 0);
    let (outcome, text) = ended(stalled).await;
    assert_eq!(outcome, Err(Kind::DeadlineExceeded));
    assert!(text.contains("did not arrive"), "{text}");
}

#[tokio::test]
async fn requests_that_cannot_be_read_are_refused_where_layers_need_a_proof() {
    let mut settings = ProxySettings::default();
    settings.profiles.entry("erofs").integrity = Integrity::Signed;
    let node = Node::with_settings(Service::default(), settings);
    let client = node.client().await;
    let large = 5 << 20;
    let (other, unread) = tokio::join!(
        call(&client, CREATE_CONTAINER, container("overlayfs", large)),
        call(&client, CREATE_CONTAINER, container("erofs", large)),
    );
    assert_eq!(other.0, Ok(()), "{}", other.1);
    assert_eq!(unread.0, Err(Kind::ResourceExhausted), "{}", unread.1);
    assert!(unread.1.contains("need a proof"), "{}", unread.1);
    // Compressed, and with a field that is cut off.
    for body in [&b"\x01\0\0\0\x02\x0a\0"[..], b"\0\0\0\0\x02\x12\x05"] {
        let body = Bytes::from_static(body);
        let (outcome, text) = call(&client, CREATE_CONTAINER, body).await;
        assert_eq!(outcome, Err(Kind::ResourceExhausted), "{text}");
    }
    // All that is left of the budget.
    let stalled = container("erofs", 4_190_000).slice(..100_000);
    let (mut stalled, _to) = begin(&client, CREATE_CONTAINER, stalled, false).await;
    tokio::time::timeout(Duration::from_millis(300), &mut stalled)
        .await
        .unwrap_err();
    let refused = call(&client, CREATE_CONTAINER, container("erofs", 200_000)).await;
    assert_eq!(refused.0, Err(Kind::ResourceExhausted), "{}", refused.1);
    assert_eq!(node.containerd.count("CreateContainer"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_connects_while_calls_end_is_served() {
    let node = Node::start(Service {
        planning: Some(Barrier::new(2)),
        ..Service::default()
    });
    let client = node.client().await;
    let (response, _to) = create(&client, 10).await;
    node.asked(1).await;
    node.stop.cancel();
    // At once, and also after the thread of the first clients has stopped accepting.
    for wait in [0, 1500] {
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let version = call(&node.client().await, VERSION, container("", 0)).await;
        assert_eq!(version.0, Ok(()));
    }
    let service = Arc::clone(&node.service);
    let planned = move || service.planning.as_ref().unwrap().wait();
    tokio::task::spawn_blocking(planned).await.unwrap();
    assert_eq!(ended(response).await.0, Ok(()));
    let socket = node.socket();
    let served = tokio::time::timeout(DEADLINE / 2, node.served).await;
    served.unwrap().unwrap().unwrap();
    let late = UnixStream::connect(socket).await;
    assert_eq!(late.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planning_delays_no_other_call() {
    let node = Node::start(Service {
        planning: Some(Barrier::new(2)),
        ..Service::default()
    });
    let client = node.client().await;
    let (response, _to) = create(&client, 10).await;
    node.asked(1).await;
    let version = call(&node.client().await, VERSION, container("", 0)).await;
    assert_eq!(version.0, Ok(()));
    let service = Arc::clone(&node.service);
    let planned = move || service.planning.as_ref().unwrap().wait();
    tokio::task::spawn_blocking(planned).await.unwrap();
    assert_eq!(ended(response).await.0, Ok(()));
}

#[tokio::test]
async fn a_proxy_that_hangs_is_not_alive() {
    let node = Node::start(Service::default());
    let client = node.client().await;
    assert_eq!(call(&client, VERSION, Bytes::new()).await.0, Ok(()));
    let alive = || tokio::time::timeout(Duration::from_millis(200), node.proxy.alive());
    tokio::time::timeout(DEADLINE, node.proxy.alive())
        .await
        .unwrap();

    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let thread = node.proxy.state().client_thread.get().unwrap();
    let hung = thread.spawn(async move { wait.recv() });
    assert!(alive().await.is_err());
    go_on.send(()).unwrap();
    hung.await.unwrap().unwrap();
    tokio::time::timeout(DEADLINE, node.proxy.alive())
        .await
        .unwrap();

    // Without clients it does not count as hanging.
    drop(client);
    node.stop.cancel();
    node.served.await.unwrap().unwrap();
    tokio::time::timeout(DEADLINE, node.proxy.alive())
        .await
        .unwrap();
}
