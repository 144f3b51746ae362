// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! That nothing changes on its way through the proxy: a tap on each side of it sees the same.

mod bed;
mod requests;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use h2::{Reason, RecvStream};
use resnap_integration::cri::Cri;
use resnap_integration::image::pause;
use resnap_integration::tap::{Answer, End, Method, Point};
use resnap_integration::wire::frame;
use tonic::codegen::http::{HeaderMap, HeaderValue};

use crate::blob::ingest;
use crate::node::Node;
use crate::suite::live_tests;
use bed::{Bed, in_time};

live_tests! {
    Containerd: transparent_for_every_method,
    Containerd: transparent_for_large_messages,
    Containerd: transparent_for_answers_of_all_kinds,
    Containerd: transparent_for_clients_that_cancel,
    Containerd: transparent_for_streams_both_ways,
    Alone: transparent_for_endless_streams,
}

const VERSION: &str = "/runtime.v1.RuntimeService/Version";
const CREATE_CONTAINER: &str = "/runtime.v1.RuntimeService/CreateContainer";
const EVENTS: &str = "/runtime.v1.RuntimeService/GetContainerEvents";

const RESOURCE_EXHAUSTED: u16 = 8;
const UNIMPLEMENTED: u16 = 12;

/// What containerd takes and gives in one message.
const LIMIT: usize = 16 << 20;

fn transparent_for_every_method(node: &Node) -> Result<()> {
    let bed = Bed::start(node)?;
    let mut implemented = 0;
    for (path, message) in requests::all() {
        // An endless one, which has a test of its own.
        if path == EVENTS && node.containerd.version() >= (1, 7, 0) {
            continue;
        }
        let reply = bed.call(&path, frame(&message))?;
        let status = reply.status();
        implemented += u32::from(status.context("no status")? != UNIMPLEMENTED);
    }
    // Those of the oldest API that is served.
    ensure!(implemented >= 28, "only {implemented} methods did anything");
    for path in [
        "/runtime.v1.RuntimeService/NoSuchMethod",
        "/runtime.v9.RuntimeService/Version",
        "/no.such.Service/Method",
    ] {
        let reply = bed.call(path, frame(&requests::large(100)))?;
        ensure!(reply.status() == Some(UNIMPLEMENTED), "{reply:?}");
    }
    for path in [VERSION, CREATE_CONTAINER] {
        // No message at all, half of one, what says it is compressed, and two.
        let whole = frame(&requests::create_container());
        let mut compressed = whole.to_vec();
        compressed[0] = 1;
        for body in [
            Bytes::new(),
            whole.slice(..whole.len() / 2),
            compressed.into(),
            [&whole[..], &whole[..]].concat().into(),
        ] {
            bed.call(path, body)?;
        }
    }
    bed.finish()
}

fn transparent_for_large_messages(node: &Node) -> Result<()> {
    let bed = Bed::start(node)?;
    let fits = bed.call(VERSION, frame(&requests::large(LIMIT)))?;
    ensure!(fits.status() == Some(0), "{:?}", fits.trailers);
    for path in [VERSION, CREATE_CONTAINER] {
        let fits = bed.call(path, frame(&requests::large(LIMIT)))?;
        ensure!(fits.status() != Some(RESOURCE_EXHAUSTED), "{fits:?}");
        let over = bed.call_cut_short(path, frame(&requests::large(LIMIT + 1)))?;
        ensure!(over.status() == Some(RESOURCE_EXHAUSTED), "{over:?}");
        // The other way containerd has nothing as large.
        let answer = Answer {
            headers: headers(&[("content-type", "application/grpc")])?,
            body: frame(&requests::large(LIMIT)),
            trailers: headers(&[("grpc-status", "0")])?,
            reset: None,
        };
        let reply = bed.answered(path, answer)??;
        ensure!(reply.body.len() == LIMIT + 5 && reply.status() == Some(0));
    }
    bed.finish()
}

/// What containerd would answer one day, or on a bad one.
fn transparent_for_answers_of_all_kinds(node: &Node) -> Result<()> {
    let bed = Bed::start(node)?;
    let error = headers(&[
        ("grpc-status", "9"),
        ("grpc-message", "50%25 of %C3%BC%0A are there"),
        ("grpc-status-details-bin", "CAkSA2hleQ"),
        ("x-strange", "one"),
        ("x-strange", "two"),
        ("x-strange-bin", "AAH/"),
    ])?;
    let begun = headers(&[
        ("content-type", "application/grpc+proto"),
        ("grpc-encoding", "identity"),
        ("x-early", "b"),
        ("x-early", "a"),
    ])?;
    for path in [VERSION, CREATE_CONTAINER] {
        let alone = Answer {
            headers: error.clone(),
            ..Answer::default()
        };
        let reply = bed.answered(path, alone)??;
        ensure!(reply.headers.get_all("x-strange").iter().count() == 2);
        let whole = Answer {
            headers: begun.clone(),
            body: [frame(b"one"), frame(b""), frame(b"three")].concat().into(),
            trailers: error.clone(),
            reset: None,
        };
        let reply = bed.answered(path, whole.clone())??;
        ensure!(reply.trailers == error, "{reply:?}");
        let empty = Answer {
            body: Bytes::new(),
            ..whole.clone()
        };
        bed.answered(path, empty)??;
        // Broken off after some data, and before any.
        for headers in [begun.clone(), HeaderMap::new()] {
            let broken = Answer {
                headers,
                reset: Some(Reason::REFUSED_STREAM),
                ..whole.clone()
            };
            let error = bed.answered(path, broken)?.err();
            let reason = error.context("it was answered")?.reason();
            ensure!(reason == Some(Reason::REFUSED_STREAM), "{reason:?}");
        }
    }
    bed.finish()
}

/// Before there is an answer.
fn transparent_for_clients_that_cancel(node: &Node) -> Result<()> {
    let bed = Bed::start(node)?;
    for path in [VERSION, CREATE_CONTAINER] {
        let held = bed.back.hold(Method::new(path), 1, Point::Before);
        let asked = bed.open(path, frame(&requests::create_container()))?;
        held.wait()?;
        drop(asked);
        bed.taken_back()?;
        held.release();
    }
    bed.finish()
}

/// A blob of many windows goes to containerd and comes back, by containerd's own API.
fn transparent_for_streams_both_ways(node: &Node) -> Result<()> {
    let bed = Bed::start(node)?;
    let blob: Vec<u8> = (0..2_u32 << 20)
        .flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let ctr = || {
        let mut command = node.containerd.ctr(&node.namespace);
        command.arg("--address").arg(bed.front.socket());
        command
    };
    let digest = ingest(node, ctr, &blob)?;
    let read = ctr().args(["content", "get", &digest]).output()?;
    ensure!(read.status.success() && read.stdout == blob);
    bed.finish()
}

/// Events come as they happen, and the client's leaving comes through.
fn transparent_for_endless_streams(node: &Node) -> Result<()> {
    node.import(&pause()?)?;
    let bed = Bed::start(node)?;
    let asked = bed.open(EVENTS, frame(&[]))?;
    if node.containerd.version() < (1, 7, 0) {
        let call = bed.last_pair(|pair| pair.1.reply.end.is_some())?;
        ensure!(call.0 == call.1 && call.1.reply.end == Some(End::Headers));
        drop(asked);
        return bed.finish();
    }
    let (head, request) = asked;
    let cri = Cri::connect(node.containerd.socket(), &node.containerd.scratch())?;
    let mut events = {
        let mut head = head;
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut number = 0;
        // The headers come with the first event after containerd has subscribed; when that is, it
        // does not say.
        loop {
            ensure!(Instant::now() < deadline, "no event comes");
            number += 1;
            // It may not have heard of the image yet.
            let sandbox = cri.run_pod_sandbox("", &format!("pod-{number}"));
            let wait = async { tokio::time::timeout(Duration::from_millis(500), &mut head).await };
            match bed.runtime.block_on(wait) {
                Ok(reply) => break reply?.into_body(),
                Err(_) => drop(sandbox),
            }
        }
    };
    let second = cri.run_pod_sandbox("", "second")?;
    let more = until(&mut events, second.id());
    bed.runtime.block_on(in_time(more))?;
    drop((events, request));
    bed.taken_back()?;
    cri.remove_all()?;
    bed.finish()
}

/// Reads events until one names this.
async fn until(events: &mut RecvStream, name: &str) -> Result<()> {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(name) {
        let event = events.data().await.context("the stream has ended")??;
        events.flow_control().release_capacity(event.len())?;
        seen.extend(event);
    }
    Ok(())
}

fn headers(pairs: &[(&'static str, &'static str)]) -> Result<HeaderMap> {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(*name, HeaderValue::from_static(value));
    }
    Ok(map)
}
