// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Clients that break the protocol, are slow or send nothing, and their effect on others.

mod raw;

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::cri::Cri;
use resnap_integration::wire::{Wire, frame};

use crate::blob::ingest;
use crate::node::Node;
use crate::served::Served;
use crate::suite::live_tests;
use raw::{DEADLINE, Frames, connect, ends};

live_tests! {
    One: proxy_survives_misbehaving_clients,
}

const VERSION: &str = "/runtime.v1.RuntimeService/Version";
const CREATE_CONTAINER: &str = "/runtime.v1.RuntimeService/CreateContainer";
const READ: &str = "/containerd.services.content.v1.Content/Read";

/// The memory that the proxy may take for all of them.
const MEMORY: u64 = 64 << 10;

const IDLE: usize = 2000;
const MANY: usize = 32;

fn proxy_survives_misbehaving_clients(node: &Node) -> Result<()> {
    let large = vec![7; (16 << 20) - 5];
    let blob = request(node, &large)?;
    let served = Served::start(node)?;
    let polite = Cri::connect(&served.socket, &node.containerd.scratch())?;
    let idle = memory(&served)?;
    let connect = || connect(&served.socket);

    for garbage in raw::GARBAGE {
        let mut client = connect()?;
        client.write_all(garbage)?;
        ends(client).with_context(|| format!("no answer to {garbage:02x?}"))?;
    }
    // The proxy inspects these requests, so they have a time limit.
    let looked_at = &large[..(4 << 20) - 5];
    halves(&served, looked_at)?;
    let more = memory(&served)?.saturating_sub(idle);
    ensure!(more < MEMORY, "{more} KiB more than the {idle} of before");
    let mut kept: Vec<UnixStream> = Vec::new();
    for number in 0..IDLE {
        let mut client = connect()?;
        let beginning = Frames::begin();
        // Some have not even said all of that, or nothing.
        let count = [beginning.len(), beginning.len(), 10, 0][number % 4];
        client.write_all(&beginning.bytes()[..count])?;
        kept.push(client);
    }
    for _ in 0..MANY {
        // Headers that do not end, and a message that does not.
        let mut client = connect()?;
        client.write_all(Frames::begin().endless_headers(1, VERSION).bytes())?;
        kept.push(client);
        let mut client = connect()?;
        let begun = &frame(looked_at)[..60 << 10];
        let half = Frames::begin().headers(1, CREATE_CONTAINER, &node.namespace);
        client.write_all(half.data(1, begun, false).bytes())?;
        kept.push(client);
        // An answer that is asked for and not read, whatever its reader says it takes.
        for eager in [false, true] {
            let mut client = connect()?;
            let frames = match eager {
                true => Frames::begin_eagerly(),
                false => Frames::begin(),
            };
            let frames = frames.headers(1, READ, &node.namespace);
            client.write_all(frames.data(1, &frame(&blob), true).bytes())?;
            kept.push(client);
        }
    }
    for _ in 0..200 {
        polite.status()?;
    }
    // Data in transit has to arrive first.
    std::thread::sleep(Duration::from_millis(500));
    let more = memory(&served)?.saturating_sub(idle);
    ensure!(more < MEMORY, "{more} KiB more than the {idle} of before");

    drop(polite);

    // They keep nobody from ending.
    served.stop()?;
    drop(kept);
    Ok(())
}

/// Messages of which there is more than there is room for, and no end: no handler here goes wrong
/// without a look, so another's call passes to containerd, which says that it is no message.
fn halves(served: &Served, message: &[u8]) -> Result<()> {
    let begun = frame(message).slice(..1 << 20);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut kept = Vec::new();
        for _ in 0..MANY {
            let wire = Wire::connect(&served.socket).await?;
            let (reply, mut request) = wire.open(Wire::to(CREATE_CONTAINER).body(())?).await?;
            request.send_data(begun.clone(), false)?;
            kept.push((wire, reply, request));
        }
        let wire = Wire::connect(&served.socket).await?;
        let request = Wire::to(CREATE_CONTAINER).body(())?;
        let call = wire.call(request, frame(&message[..message.len() / 2]));
        let reply = tokio::time::timeout(DEADLINE, call).await??;
        ensure!(reply.status() == Some(13), "{reply:?}");
        drop(kept);
        Ok(())
    })
}

/// Puts a blob on the node, and gives the request to read it.
fn request(node: &Node, blob: &[u8]) -> Result<Vec<u8>> {
    let digest = ingest(node, || node.containerd.ctr(&node.namespace), blob)?;
    let mut request = Vec::new();
    prost::encoding::string::encode(1, &digest, &mut request);
    Ok(request)
}

/// Resident, in KiB.
fn memory(served: &Served) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.process.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let figure = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(figure.context("no VmRSS in the status")?.parse()?)
}
