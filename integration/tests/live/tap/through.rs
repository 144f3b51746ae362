// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Calls that pass a tap unchanged.

use std::cell::Cell;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use prost::Message;
use resnap_integration::tap::{Method, Point, Tap};
use tonic::Code;

use super::raw::Raw;
use crate::blob::ingest;
use crate::node::{Node, unique};
use crate::poll::{DEADLINE, eventually};
use crate::suite::live_tests;

live_tests! {
    One: tap_passes_streams,
    Containerd: tap_passes_events,
    One: tap_passes_resets,
    Containerd: tap_passes_any_method_and_size,
}

const WRITE: &str = "/containerd.services.content.v1.Content/Write";
const SUBSCRIBE: Method = Method::new("/containerd.services.events.v1.Events/Subscribe");

/// The part of containerd's `WriteContentRequest` that is needed to open a blob.
#[derive(Clone, PartialEq, Message)]
struct Write {
    #[prost(string, tag = "2")]
    name: String,
}

/// Bytes that the receiver takes for a field of a later version of its own.
#[derive(Clone, PartialEq, Message)]
struct Large {
    #[prost(bytes = "vec", tag = "1000")]
    bytes: Vec<u8>,
}

/// `ctr` on the node and namespace, through the tap.
fn ctr(node: &Node, tap: &Tap) -> Command {
    let mut command = node.containerd.ctr(&node.namespace);
    command.arg("--address").arg(tap.socket());
    command
}

/// A blob of many windows goes to containerd and comes back.
fn tap_passes_streams(node: &Node) -> Result<()> {
    let tap = node.containerd.tap()?;
    let blob: Vec<u8> = (0..4_u32 << 20)
        .flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let ingests = Cell::new(0);
    let through = || {
        ingests.set(ingests.get() + 1);
        ctr(node, &tap)
    };
    let digest = ingest(node, through, &blob)?;
    for mut ctr in [node.containerd.ctr(&node.namespace), ctr(node, &tap)] {
        let read = ctr.args(["content", "get", &digest]).output()?;
        ensure!(read.status.success() && read.stdout == blob, "{ctr:?}");
    }
    ensure!(tap.count(Method::new(WRITE)) == ingests.get());
    ensure!(tap.count(Method::CONTENT_READ) > 0);
    tap.finish()
}

/// An event of containerd comes at once.
fn tap_passes_events(node: &Node) -> Result<()> {
    let tap = node.containerd.tap()?;
    let held = tap.hold(SUBSCRIBE, 1, Point::During);
    let mut events = ctr(node, &tap)
        .arg("events")
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = events.stdout.take().context("ctr has no stdout")?;
    held.wait()?;
    held.release();
    let (send, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(stdout).lines().map_while(Result::ok);
        lines.for_each(|line| drop(send.send(line)));
    });
    let stem = unique("event");
    eventually("an event comes", DEADLINE, || {
        // containerd may still be about to subscribe when the first ones happen.
        node.ctr(&["namespaces", "create", &unique(&stem)])?;
        let line = lines.recv_timeout(Duration::from_millis(50));
        Ok(line.is_ok_and(|line| line.contains(&stem)))
    })?;
    ensure!(events.try_wait()?.is_none(), "ctr events has ended");
    events.kill()?;
    events.wait()?;
    tap.finish()
}

/// A call that its client takes back is taken back from containerd, and only this one.
fn tap_passes_resets(node: &Node) -> Result<()> {
    let tap = node.containerd.tap()?;
    let client = Raw::connect(tap.socket())?;
    // A stream that writes a blob and does not go on locks the blob's name.
    let first = |name: &String| Write { name: name.clone() };
    let write = |name: &String| client.begin(WRITE, &node.namespace, &first(name));
    let locked = |name: &String| {
        let error = write(name).err().context("two write one blob")?;
        ensure!(error.message().contains("locked"), "{error:?}");
        anyhow::Ok(())
    };
    let until_free =
        |name: &String| eventually("the reset arrives", DEADLINE, || Ok(write(name).is_ok()));
    let (name, other) = (unique("write"), unique("write"));
    let (answered, kept) = (write(&name)?, write(&other)?);
    locked(&name)?;
    drop(answered);
    until_free(&name)?;

    // The same before there is a reply to the client.
    let name = unique("write");
    let held = tap.hold(Method::new(WRITE), 1, Point::After);
    let asked = client.ask(WRITE, &node.namespace, &first(&name))?;
    held.wait()?;
    locked(&name)?;
    drop(asked);
    until_free(&name)?;
    held.release();

    // One stream is reset and no other.
    locked(&other)?;
    drop(kept);
    tap.finish()
}

/// Methods that the tap does not know, and messages as large as containerd takes.
fn tap_passes_any_method_and_size(node: &Node) -> Result<()> {
    let tap = node.containerd.tap()?;
    let client = Raw::connect(tap.socket())?;
    let unknown = client.call("/no.such.Service/Method", &()).err();
    let unknown = unknown.context("it was answered")?;
    ensure!(
        unknown.code() == Code::Unimplemented && unknown.message().contains("no.such.Service"),
        "{unknown:?}"
    );
    let limit = 16 << 20;
    let empty = Large {
        bytes: vec![7; limit / 2],
    };
    let around = empty.encoded_len() - empty.bytes.len();
    for (size, code) in [(limit, Code::Ok), (limit + 1, Code::ResourceExhausted)] {
        let message = Large {
            bytes: vec![7; size - around],
        };
        ensure!(message.encoded_len() == size);
        let answer = client.call("/containerd.services.version.v1.Version/Version", &message);
        let answer = answer.map_or_else(|status| status.code(), |()| Code::Ok);
        ensure!(answer == code, "{answer:?} for {size} bytes");
    }
    let kept: Vec<usize> = tap.calls().iter().map(|call| call.message.len()).collect();
    ensure!(
        kept[0] == 0 && (60_000..100_000).contains(&kept[1]),
        "{kept:?}"
    );
    tap.finish()
}
