// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The tap itself: that it counts right, does what it is asked to, and otherwise changes nothing.

mod raw;
pub(crate) mod through;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use resnap_integration::image::{Built, hello};
use resnap_integration::tap::{Action, Method, Point, Side, Tap};
use tonic::{Code, Status};

use crate::command::{CommandOutput, run_to_end};
use crate::node::Node;
use crate::poll::{DEADLINE, eventually};
use crate::suite::live_tests;
use raw::Raw;

live_tests! {
    Containerd: tap_counts_every_call,
    Containerd: tap_fails_a_call,
    Containerd: tap_holds_and_delays_a_call,
    Containerd: tap_loses_a_reply,
    Containerd: tap_cuts_a_connection,
    Containerd: tap_lets_a_call_hang,
    Containerd: tap_kills_the_client,
    Alone: tap_kills_containerd,
    Containerd: tap_reports_actions_that_never_happened,
}

/// The error of resnap when a connection is missing or lost.
const UNAVAILABLE: &str = "is containerd running";

/// The part of containerd's `PrepareSnapshotRequest` that is looked at.
#[derive(Clone, PartialEq, prost::Message)]
struct PrepareRequest {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "3")]
    parent: String,
    #[prost(map = "string, string", tag = "4")]
    labels: std::collections::HashMap<String, String>,
}

/// Returns a node with an image, and a tap in front of its containerd.
fn tapped(node: &Node) -> Result<(Built, Tap)> {
    let image = hello()?;
    node.import(&image)?;
    Ok((image, node.containerd.tap()?))
}

/// `resnap unpack` of the image on `native` through the tap.
fn unpack(node: &Node, tap: &Tap, image: &Built) -> Result<Command> {
    let mut command = node.tapped_command(tap)?;
    command.args(["unpack", &image.reference, "--snapshotter", "native"]);
    Ok(command)
}

fn start(command: &mut Command) -> Result<Child> {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("start {command:?}"))
}

fn failed_with(output: &CommandOutput, text: &str) -> Result<()> {
    ensure!(
        output.code == Some(2) && output.stderr.contains(text),
        "want code 2 and {text:?}: {output:#?}"
    );
    Ok(())
}

fn has(node: &Node, active: usize, committed: usize) -> Result<()> {
    let have = node.kinds("native")?;
    ensure!(
        have == (active, committed),
        "{have:?} snapshots are active and committed, want {:?}",
        (active, committed)
    );
    Ok(())
}

fn tap_counts_every_call(node: &Node) -> Result<()> {
    let (image, tap) = tapped(node)?;
    run_to_end(&mut unpack(node, &tap, &image)?)?.ok()?;
    for (method, count) in [
        (Method::PREPARE, 3),
        (Method::APPLY, 3),
        (Method::COMMIT, 3),
        (Method::REMOVE, 0),
        (Method::CONTENT_UPDATE, 1),
        (Method::LEASE_CREATE, 1),
        (Method::LEASE_ADD, 1),
        (Method::LEASE_DELETE, 1),
    ] {
        let have = tap.count(method);
        ensure!(have == count, "{have} of {method}, want {count}");
    }
    let sum: u64 = tap.counts().values().sum();
    ensure!(sum == tap.count(Method::ANY) && sum == tap.calls().len() as u64);

    let calls = tap.calls().into_iter();
    let prepares = calls.filter(|call| call.path.ends_with("Snapshots/Prepare"));
    let mut parent = "";
    for (call, layer) in prepares.zip(&image.layers) {
        let request: PrepareRequest = call.decode()?;
        ensure!(call.status() == Some(Code::Ok), "{call:?}");
        ensure!(request.snapshotter == "native" && request.parent == parent);
        let chain_id = request.labels.get("containerd.io/snapshot.ref");
        ensure!(chain_id == Some(&layer.chain_id), "{request:?}");
        parent = &layer.chain_id;
    }
    ensure!(
        tap.calls()
            .iter()
            .any(|call| call.path.ends_with("Snapshots/Stat")
                && call.status() == Some(Code::NotFound)),
        "a status without a reply is noted too"
    );

    // The second time there is nothing to do.
    tap.reset();
    ensure!(tap.counts() == BTreeMap::new());
    run_to_end(&mut unpack(node, &tap, &image)?)?.ok()?;
    ensure!(tap.count(Method::STAT) > 0 && tap.count(Method::PREPARE) == 0);
    tap.finish()
}

fn tap_fails_a_call(node: &Node) -> Result<()> {
    let (image, tap) = tapped(node)?;
    let full = || Action::Fail(Status::resource_exhausted("no space: 100 % full\n(a tap)"));
    tap.on(Method::PREPARE, 2, Point::Before, full());
    let output = run_to_end(&mut unpack(node, &tap, &image)?)?;
    failed_with(&output, "no space: 100 % full")?;
    has(node, 0, 1)?;
    let calls = tap.calls();
    let mut prepares = calls
        .iter()
        .filter(|call| call.path.ends_with("Snapshots/Prepare"));
    ensure!(prepares.next_back().and_then(|call| call.status()) == Some(Code::ResourceExhausted));

    // In place of a reply: containerd has done it.
    tap.on(Method::PREPARE, 1, Point::After, full());
    let removing = tap.hold(Method::REMOVE, 1, Point::Before);
    let mut command = unpack(node, &tap, &image)?;
    let mut resnap = start(&mut command)?;
    removing.wait()?;
    has(node, 1, 1)?;
    removing.release();
    ensure!(resnap.wait()?.code() == Some(2));
    has(node, 0, 1)?;
    tap.finish()
}

fn tap_holds_and_delays_a_call(node: &Node) -> Result<()> {
    let (image, tap) = tapped(node)?;
    let during = tap.hold(Method::PREPARE, 1, Point::During);
    let before = tap.hold(Method::COMMIT, 2, Point::Before);
    let after = tap.hold(Method::COMMIT, 2, Point::After);
    let delay = Duration::from_millis(300);
    tap.on(Method::LEASE_DELETE, 1, Point::Before, Action::Delay(delay));
    let mut resnap = start(&mut unpack(node, &tap, &image)?)?;
    during.wait()?;
    eventually("containerd has prepared it", DEADLINE, || {
        Ok(node.kinds("native")? == (1, 0))
    })?;
    ensure!(tap.count(Method::APPLY) == 0, "the reply has passed");
    during.release();
    let call = before.wait()?;
    ensure!(call.path.ends_with("Snapshots/Commit") && call.status().is_none());
    has(node, 1, 1)?;
    ensure!(resnap.try_wait()?.is_none() && tap.count(Method::COMMIT) == 2);
    before.release();
    after.wait()?;
    has(node, 0, 2)?;
    ensure!(resnap.try_wait()?.is_none() && tap.count(Method::PREPARE) == 2);
    let released = Instant::now();
    after.release();
    ensure!(resnap.wait()?.success());
    ensure!(released.elapsed() >= delay, "the delay was left out");
    has(node, 0, 3)?;
    tap.finish()
}

fn tap_loses_a_reply(node: &Node) -> Result<()> {
    let (image, tap) = tapped(node)?;
    tap.on(Method::CONTENT_UPDATE, 1, Point::After, Action::Cut);
    let output = run_to_end(&mut unpack(node, &tap, &image)?)?;
    failed_with(&output, UNAVAILABLE)?;
    let calls = tap.calls();
    let update = calls
        .iter()
        .rfind(|call| call.path.ends_with("Content/Update"))
        .context("no Update")?;
    ensure!(update.status().is_none(), "{update:?}");
    let root = node.ctr(&["content", "ls"])?;
    ensure!(root.contains("gc.ref.snapshot.native"), "{root}");
    tap.finish()
}

fn tap_cuts_a_connection(node: &Node) -> Result<()> {
    let (image, tap) = tapped(node)?;
    tap.on(Method::LEASE_CREATE, 1, Point::Before, Action::Cut);
    let output = run_to_end(&mut unpack(node, &tap, &image)?)?;
    failed_with(&output, UNAVAILABLE)?;
    ensure!(node.leases()?.is_empty());

    // After a cut in the middle the client comes again to clean up.
    tap.on(Method::APPLY, 1, Point::During, Action::Cut);
    let output = run_to_end(&mut unpack(node, &tap, &image)?)?;
    failed_with(&output, UNAVAILABLE)?;
    ensure!(tap.count(Method::REMOVE) == 1);
    has(node, 0, 0)?;
    run_to_end(&mut unpack(node, &tap, &image)?)?.ok()?;
    tap.finish()
}

fn tap_lets_a_call_hang(node: &Node) -> Result<()> {
    let (image, tap) = tapped(node)?;
    let held = tap.hold(Method::COMMIT, 1, Point::After);
    tap.on(Method::COMMIT, 1, Point::After, Action::Hang);
    let mut resnap = start(&mut unpack(node, &tap, &image)?)?;
    held.wait()?;
    held.release();
    // The tap still serves others while this one hangs.
    has(node, 0, 1)?;
    run_to_end(&mut unpack(node, &tap, &image)?)?.ok()?;
    ensure!(resnap.try_wait()?.is_none(), "it was answered");
    resnap.kill()?;
    resnap.wait()?;
    tap.finish()
}

fn tap_kills_the_client(node: &Node) -> Result<()> {
    let (image, tap) = tapped(node)?;
    tap.on(Method::PREPARE, 2, Point::After, Action::Kill(Side::Client));
    let status = start(&mut unpack(node, &tap, &image)?)?.wait()?;
    ensure!(status.signal() == Some(9), "{status} instead of a kill");
    has(node, 1, 1)?;
    run_to_end(&mut unpack(node, &tap, &image)?)?.ok()?;
    has(node, 0, 3)?;
    tap.finish()
}

fn tap_kills_containerd(node: &Node) -> Result<()> {
    let (image, tap) = tapped(node)?;
    // Not during the call: containerd's native snapshotter renames a directory before it commits the
    // record, and fails for ever if it is killed between the two.
    tap.on(
        Method::PREPARE,
        2,
        Point::Before,
        Action::Kill(Side::Backend),
    );
    let output = run_to_end(&mut unpack(node, &tap, &image)?)?;
    failed_with(&output, UNAVAILABLE)?;
    // Nobody is there for the next one.
    let output = run_to_end(&mut unpack(node, &tap, &image)?)?;
    failed_with(&output, UNAVAILABLE)?;
    node.containerd.restart()?;
    run_to_end(&mut unpack(node, &tap, &image)?)?.ok()?;
    tap.finish()
}

fn tap_reports_actions_that_never_happened(node: &Node) -> Result<()> {
    let (image, tap) = tapped(node)?;
    tap.on(Method::PREPARE, 5, Point::During, Action::Hang);
    run_to_end(&mut unpack(node, &tap, &image)?)?.ok()?;
    let socket = tap.socket().to_owned();
    let error = tap.finish().err().context("nothing is told")?.to_string();
    ensure!(
        error.contains("During") && error.contains("waits for 2 more"),
        "{error}"
    );
    ensure!(!socket.exists(), "the socket is left");

    let tap = node.containerd.tap()?;
    tap.on(
        Method::PLUGINS,
        1,
        Point::Before,
        Action::Kill(Side::Client),
    );
    let plugins = "/containerd.services.introspection.v1.Introspection/Plugins";
    let answer = Raw::connect(tap.socket())?.call(plugins, &());
    let status = answer.err().context("it was answered")?;
    ensure!(status.code() == Code::Unavailable, "{status:?}");
    let error = tap.finish().err().context("nothing is told")?.to_string();
    ensure!(error.contains("the Client can't be killed"), "{error}");
    Ok(())
}
