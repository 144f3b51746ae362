// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Runs that are stopped, and the report of their leases.

use std::process::Child;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::tap::Point::{Before, During};
use resnap_integration::tap::{Action, Method, Side};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{Setup, start, wait_for_exit};
use crate::command::run_to_end;
use crate::node::Node;
use crate::suite::live_tests;

live_tests! {
    Containerd: crash_leaves_a_lease_that_is_listed_as_orphaned,
    Containerd: crash_one_signal_stops_in_order,
    Containerd: crash_two_signals_stop_at_once,
}

/// One job runs on one snapshotter; another was killed on another snapshotter.
fn crash_leaves_a_lease_that_is_listed_as_orphaned(node: &Node) -> Result<()> {
    let setup = Setup::new(node)?;
    setup
        .tap
        .on(Method::COMMIT, 2, Before, Action::Kill(Side::Client));
    let killed = run_to_end(&mut setup.tapped("overlayfs")?)?;
    ensure!(killed.code.is_none(), "{killed:#?} instead of a kill");
    let held = setup.tap.hold(Method::APPLY, 2, During);
    let mut living = start(&mut setup.tapped("native")?)?;
    held.wait()?;

    let who = format!("process {}", living.id());
    let table = run_to_end(&mut setup.resnap(&["leases"])?)?.ok()?;
    let row = |word: &str| table.lines().find(|line| line.contains(word));
    let (dead, alive) = (row("overlayfs"), row("native"));
    ensure!(
        dead.is_some_and(|row| row.contains(" orphaned ") && row.contains(&setup.image.reference)),
        "{table}"
    );
    ensure!(
        alive.is_some_and(|row| row.contains(&format!("alive: {who} "))),
        "{table}"
    );
    let list = || run_to_end(&mut setup.resnap(&["leases", "--json"])?)?.json();
    let leases = list()?;
    let of = |snapshotter: &str| -> Result<Value> {
        let leases = leases.as_array().into_iter().flatten();
        let mut of = leases.filter(|lease| lease["snapshotter"] == snapshotter);
        of.next().cloned().context("it has no lease")
    };
    let (dead, alive) = (of("overlayfs")?, of("native")?);
    ensure!(dead["owner"] == "orphaned", "{dead}");
    ensure!(dead["chain_id"] == json!(setup.image.chain_id()), "{dead}");
    let owner = alive["owner"]["alive"].as_str();
    ensure!(
        owner.is_some_and(|owner| owner.starts_with(&who)),
        "{alive}"
    );

    let swept = run_to_end(&mut setup.resnap(&["leases", "--sweep", "--json"])?)?.json()?;
    ensure!(swept == json!([dead]), "{swept}");
    ensure!(list()? == json!([alive]), "another lease is gone, or none");
    setup.node.assert_no_active_snapshot("overlayfs")?;
    setup.node.collect_garbage()?;
    setup.has(0, 0, "overlayfs")?;
    let again = run_to_end(&mut setup.resnap(&["leases", "--sweep"])?)?.ok()?;
    ensure!(again.contains("0 orphaned leases deleted"), "{again}");
    setup.has(1, 1, "native")?;

    held.release();
    ensure!(wait_for_exit(&mut living)?.success());
    setup.is_whole("native")?;
    setup.tap.finish()
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(child.id().try_into()?).context("0 is no process")?;
    Ok(kill_process(pid, signal)?)
}

fn crash_one_signal_stops_in_order(node: &Node) -> Result<()> {
    for (number, snapshotter) in [(Signal::INT, "native"), (Signal::TERM, "overlayfs")] {
        let setup = Setup::new(node)?;
        let held = setup.tap.hold(Method::APPLY, 2, During);
        let mut resnap = start(&mut setup.tapped(snapshotter)?)?;
        held.wait()?;
        setup.has(1, 1, snapshotter)?;
        signal(&resnap, number)?;
        let status = wait_for_exit(&mut resnap)?;
        ensure!(status.code() == Some(130), "{number:?}: {status}");
        setup.node.collect_garbage()?;
        setup.has(0, 1, snapshotter)?;
        let leases = setup.node.leases()?;
        ensure!(leases.len() == 1, "{leases:?}");
        setup.goes_on_from(1, snapshotter)?;
        drop(held);
        setup.tap.finish()?;
    }
    Ok(())
}

fn crash_two_signals_stop_at_once(node: &Node) -> Result<()> {
    let setup = Setup::new(node)?;
    let applying = setup.tap.hold(Method::APPLY, 2, During);
    let removing = setup.tap.hold(Method::REMOVE, 1, Before);
    let mut resnap = start(&mut setup.tapped("native")?)?;
    applying.wait()?;
    signal(&resnap, Signal::TERM)?;
    removing.wait()?;
    ensure!(resnap.try_wait()?.is_none(), "it does not wait for that");
    signal(&resnap, Signal::INT)?;
    let status = wait_for_exit(&mut resnap)?;
    ensure!(status.code() == Some(130), "{status}");
    setup.has(1, 1, "native")?;
    setup.goes_on_from(1, "native")?;
    drop((applying, removing));
    setup.tap.finish()
}
