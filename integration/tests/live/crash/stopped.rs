// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Runs that are stopped, and what is told of their leases.

use std::process::Child;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::tap::Point::{Before, During};
use resnap_integration::tap::{Action, Method, Side};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{Scene, ended, start};
use crate::command::run_to_end;
use crate::node::Node;
use crate::suite::live_tests;

live_tests! {
    Containerd: crash_leaves_a_lease_that_is_told_dead,
    Containerd: crash_by_signal_is_orderly,
    Containerd: crash_by_two_signals_is_at_once,
}

/// One job lives on one snapshotter, one was killed on another.
fn crash_leaves_a_lease_that_is_told_dead(node: &Node) -> Result<()> {
    let scene = Scene::new(node)?;
    scene
        .tap
        .on(Method::COMMIT, 2, Before, Action::Kill(Side::Client));
    let killed = run_to_end(&mut scene.tapped("overlayfs")?)?;
    ensure!(killed.code.is_none(), "{killed:#?} instead of a kill");
    let held = scene.tap.hold(Method::APPLY, 2, During);
    let mut living = start(&mut scene.tapped("native")?)?;
    held.wait()?;

    let who = format!("process {}", living.id());
    let table = run_to_end(&mut scene.resnap(&["leases"])?)?.ok()?;
    let row = |word: &str| table.lines().find(|line| line.contains(word));
    let (dead, alive) = (row("overlayfs"), row("native"));
    ensure!(
        dead.is_some_and(|row| row.contains(" dead ") && row.contains(&scene.image.reference)),
        "{table}"
    );
    ensure!(
        alive.is_some_and(|row| row.contains(&format!("alive: {who} "))),
        "{table}"
    );
    let list = || run_to_end(&mut scene.resnap(&["leases", "--json"])?)?.json();
    let leases = list()?;
    let of = |snapshotter: &str| -> Result<Value> {
        let leases = leases.as_array().into_iter().flatten();
        let mut of = leases.filter(|lease| lease["snapshotter"] == snapshotter);
        of.next().cloned().context("it has no lease")
    };
    let (dead, alive) = (of("overlayfs")?, of("native")?);
    ensure!(dead["owner"] == "dead", "{dead}");
    ensure!(dead["chain_id"] == json!(scene.image.chain_id()), "{dead}");
    let owner = alive["owner"]["alive"].as_str();
    ensure!(
        owner.is_some_and(|owner| owner.starts_with(&who)),
        "{alive}"
    );

    let swept = run_to_end(&mut scene.resnap(&["leases", "--sweep", "--json"])?)?.json()?;
    ensure!(swept == json!([dead]), "{swept}");
    ensure!(list()? == json!([alive]), "another lease is gone, or none");
    scene.node.assert_no_active_snapshot("overlayfs")?;
    scene.node.collect_garbage()?;
    scene.has(0, 0, "overlayfs")?;
    let again = run_to_end(&mut scene.resnap(&["leases", "--sweep"])?)?.ok()?;
    ensure!(again.contains("0 leases of the dead ended"), "{again}");
    scene.has(1, 1, "native")?;

    held.release();
    ensure!(ended(&mut living)?.success());
    scene.is_whole("native")?;
    scene.tap.finish()
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(child.id().try_into()?).context("0 is no process")?;
    Ok(kill_process(pid, signal)?)
}

fn crash_by_signal_is_orderly(node: &Node) -> Result<()> {
    for (number, snapshotter) in [(Signal::INT, "native"), (Signal::TERM, "overlayfs")] {
        let scene = Scene::new(node)?;
        let held = scene.tap.hold(Method::APPLY, 2, During);
        let mut resnap = start(&mut scene.tapped(snapshotter)?)?;
        held.wait()?;
        scene.has(1, 1, snapshotter)?;
        signal(&resnap, number)?;
        let status = ended(&mut resnap)?;
        ensure!(status.code() == Some(130), "{number:?}: {status}");
        scene.node.collect_garbage()?;
        scene.has(0, 1, snapshotter)?;
        let leases = scene.node.leases()?;
        ensure!(leases.len() == 1, "{leases:?}");
        scene.goes_on_from(1, snapshotter)?;
        drop(held);
        scene.tap.finish()?;
    }
    Ok(())
}

fn crash_by_two_signals_is_at_once(node: &Node) -> Result<()> {
    let scene = Scene::new(node)?;
    let applying = scene.tap.hold(Method::APPLY, 2, During);
    let removing = scene.tap.hold(Method::REMOVE, 1, Before);
    let mut resnap = start(&mut scene.tapped("native")?)?;
    applying.wait()?;
    signal(&resnap, Signal::TERM)?;
    removing.wait()?;
    ensure!(resnap.try_wait()?.is_none(), "it does not wait for that");
    signal(&resnap, Signal::INT)?;
    let status = ended(&mut resnap)?;
    ensure!(status.code() == Some(130), "{status}");
    scene.has(1, 1, "native")?;
    scene.goes_on_from(1, "native")?;
    drop((applying, removing));
    scene.tap.finish()
}
