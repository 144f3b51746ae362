// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Faults of servers and bodies.

use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use resnap_core::{BlobSource, Kind, media_type};

use crate::bed::{BLOB, Bed, missing, target};
use crate::server::{End, Reply, Request, Server};

#[tokio::test]
async fn a_blob_comes_without_credentials() {
    let server = Server::start(|request, _| Reply::range(request, BLOB)).await;
    let bed = Bed::new();
    assert_eq!(bed.fetch(&missing(&server.address)).await.unwrap(), BLOB);
    assert_eq!(
        bed.fetch_from(&missing(&server.address), 30).await.unwrap(),
        &BLOB[30..]
    );
    let end = BLOB.len() as u64;
    assert!(
        bed.fetch_from(&missing(&server.address), end)
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(server.targets(), [target(), target()]);
    assert_eq!(server.authorizations(), [None, None]);
    let error = bed
        .fetch_from(&missing(&server.address), end + 1)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
}

#[tokio::test]
async fn a_manifest_comes_from_its_own_address() {
    let server = Server::start(|_, _| Reply::new(200, BLOB)).await;
    let mut blob = missing(&server.address);
    blob.descriptor.media_type = media_type::OCI_MANIFEST.to_owned();
    assert_eq!(Bed::new().fetch(&blob).await.unwrap(), BLOB);
    let request = &server.requests()[0];
    assert_eq!(request.target, target().replace("blobs", "manifests"));
    assert_eq!(request.header("accept"), Some(media_type::OCI_MANIFEST));
}

#[tokio::test]
async fn a_cut_body_is_resumed_by_ranges() {
    let server = Server::start(|request, _| {
        let left = BLOB.len() - request.start().unwrap_or(0);
        Reply::range(request, BLOB).end(End::Cut(left.min(5)))
    })
    .await;
    assert_eq!(
        Bed::new().fetch(&missing(&server.address)).await.unwrap(),
        BLOB
    );
    let starts: Vec<_> = server.requests().iter().map(Request::start).collect();
    assert!(
        starts.len() >= 8,
        "more attempts than without progress: {starts:?}"
    );
    assert_eq!(starts[..3], [None, Some(5), Some(10)]);
}

#[tokio::test]
async fn a_server_without_ranges_resumes_too() {
    let server = Server::start(|_, number| {
        let end = if number < 2 {
            End::Cut(10 * (number + 1))
        } else {
            End::Complete
        };
        Reply::new(200, BLOB).end(end)
    })
    .await;
    let bed = Bed::new();
    assert_eq!(bed.fetch(&missing(&server.address)).await.unwrap(), BLOB);
    assert_eq!(
        bed.fetch_from(&missing(&server.address), 3).await.unwrap(),
        &BLOB[3..]
    );
}

#[tokio::test]
async fn attempts_without_progress_end() {
    let server = Server::start(|request, _| {
        let sent = if request.start().is_none() { 5 } else { 0 };
        Reply::range(request, BLOB).end(End::Cut(sent))
    })
    .await;
    let (kind, text) = Bed::new().failure(&missing(&server.address)).await;
    assert_eq!(kind, Kind::Unavailable);
    assert!(text.contains("the body broke at byte 5"), "{text}");
    assert_eq!(server.requests().len(), 5);
}

#[tokio::test]
async fn a_stall_ends_the_stream_at_once() {
    let server = Server::start(|request, _| Reply::range(request, BLOB).end(End::Stall(5))).await;
    let bed = Bed::new();
    let blob = missing(&server.address);
    let mut stream = bed.source().open(&blob, 0).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), &BLOB[..5]);
    let error = stream.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    assert!(stream.next().await.is_none());
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_silent_server_is_left_for_another() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = silent
        .local_addr()
        .map(|address| (address, silent))
        .unwrap();
    let server = Server::start(|request, _| Reply::range(request, BLOB)).await;
    let bed = Bed::new();
    let mirrors = format!(
        "server = 'http://{}'\n[host.'http://{}']",
        server.address, silent.0
    );
    bed.hosts("up.stream", &mirrors);
    assert_eq!(bed.fetch(&missing("up.stream")).await.unwrap(), BLOB);
}

#[tokio::test]
async fn a_server_that_asks_to_wait_is_asked_again_then() {
    let server = Server::start(|request, number| match number {
        0 => Reply::new(429, "").with("retry-after", "1"),
        _ => Reply::range(request, BLOB),
    })
    .await;
    let start = Instant::now();
    assert_eq!(
        Bed::new().fetch(&missing(&server.address)).await.unwrap(),
        BLOB
    );
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn busy_servers_are_asked_five_times() {
    for (status, kind) in [
        (429, Kind::ResourceExhausted),
        (500, Kind::Unavailable),
        (502, Kind::Unavailable),
        (503, Kind::Unavailable),
        (504, Kind::Unavailable),
    ] {
        let server = Server::start(move |_, _| Reply::new(status, "busy")).await;
        let (found, text) = Bed::new().failure(&missing(&server.address)).await;
        assert_eq!(found, kind, "{status}");
        assert!(
            text.contains(&server.address) && text.contains(&status.to_string()),
            "{text}"
        );
        assert_eq!(server.requests().len(), 5, "{status}");
    }
    let server = Server::start(|request, number| match number {
        0..4 => Reply::new(503, ""),
        _ => Reply::range(request, BLOB),
    })
    .await;
    assert_eq!(
        Bed::new().fetch(&missing(&server.address)).await.unwrap(),
        BLOB
    );
}

#[tokio::test]
async fn other_statuses_are_final() {
    for (status, kind) in [
        (401, Kind::Unauthenticated),
        (403, Kind::PermissionDenied),
        (404, Kind::NotFound),
        (400, Kind::Unavailable),
        (501, Kind::Unavailable),
    ] {
        let body = r#"{"errors":[{"code":"WHY","message":"because"}]}"#;
        let server = Server::start(move |_, _| Reply::new(status, body)).await;
        let (found, text) = Bed::new().failure(&missing(&server.address)).await;
        assert_eq!(found, kind, "{status}");
        assert!(text.contains("(WHY because)"), "{text}");
        assert_eq!(server.requests().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    let server = Server::start(|_, _| Reply::new(200, "")).await;
    let address = server.address.clone();
    drop(server);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let (kind, text) = Bed::new().failure(&missing(&address)).await;
    assert_eq!(kind, Kind::Unavailable);
    assert!(
        text.contains(&address) && text.contains("refused"),
        "{text}"
    );
}

#[tokio::test]
async fn more_bytes_than_the_descriptor_says_are_never_delivered() {
    let mut long = BLOB.to_vec();
    long.push(b'!');
    let server = Server::start(move |_, _| Reply::new(200, &long)).await;
    let (kind, text) = Bed::new().failure(&missing(&server.address)).await;
    assert_eq!(kind, Kind::DataLoss);
    assert!(
        text.contains("has 37 bytes, the descriptor says 36"),
        "{text}"
    );
    let endless = Server::start(|_, _| Reply::new(200, [b'x'; 9999]).end(End::Unsized)).await;
    let (kind, text) = Bed::new().failure(&missing(&endless.address)).await;
    assert_eq!(kind, Kind::DataLoss);
    assert!(text.contains("more bytes than the 36"), "{text}");
}

#[tokio::test]
async fn ranges_that_do_not_fit_are_refused() {
    for (range, status) in [
        (Some("bytes 20-35/36"), 206),
        (Some("bytes 10-39/40"), 206),
        (Some("10"), 206),
        (None, 206),
        (None, 416),
    ] {
        let server = Server::start(move |_, _| {
            let reply = Reply::new(status, &BLOB[10..]);
            range.map_or(reply.clone(), |range| reply.with("content-range", range))
        })
        .await;
        let fetched = Bed::new().fetch_from(&missing(&server.address), 10).await;
        assert_eq!(fetched.unwrap_err().kind(), Kind::DataLoss, "{range:?}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_goes_on_at_another_host() {
    let broken = Server::start(|request, number| match number {
        0 => Reply::range(request, BLOB).end(End::Cut(7)),
        _ => Reply::new(404, ""),
    })
    .await;
    let server = Server::start(|request, _| Reply::range(request, BLOB)).await;
    let bed = Bed::new();
    let mirrors = format!(
        "server = 'http://{}'\n[host.'http://{}']",
        server.address, broken.address
    );
    bed.hosts("up.stream", &mirrors);
    assert_eq!(bed.fetch(&missing("up.stream")).await.unwrap(), BLOB);
    assert_eq!(server.requests()[0].start(), Some(7));
}

#[tokio::test]
async fn dropping_ends_the_waits() {
    let server = Server::start(|_, _| Reply::new(429, "").with("retry-after", "1")).await;
    let bed = Bed::new();
    let blob = missing(&server.address);
    let waiting = tokio::time::timeout(Duration::from_millis(300), bed.fetch(&blob));
    assert!(waiting.await.is_err());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_rejected_mirror_is_asked_last() {
    let wrong = [b'?'; BLOB.len()];
    for end in [End::Stall(5), End::Complete] {
        let last = end;
        let mirror = Server::start(move |_, _| Reply::new(200, wrong).end(last)).await;
        let server = Server::start(|request, _| Reply::range(request, BLOB)).await;
        let bed = Bed::new();
        let (server, mirror) = (&server.address, &mirror.address);
        let mirrors = format!("server = 'http://{server}'\n[host.'http://{mirror}']");
        bed.hosts("up.stream", &mirrors);
        let (blob, source) = (missing("up.stream"), bed.source());
        let fetch = async || {
            let stream = source.open(&blob, 0).await?;
            stream.try_collect::<Vec<_>>().await
        };
        let first = fetch().await.map(|pieces| pieces.concat());
        assert_ne!(first.ok().as_deref(), Some(BLOB), "{end:?}");
        assert!(source.reject(&blob));
        assert_eq!(fetch().await.unwrap().concat(), BLOB, "{end:?}");
        assert!(source.reject(&blob));
        assert!(!source.reject(&blob), "both were rejected");
    }
}
