// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! SIGKILL.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::tap::Point::{After, Before, During};
use resnap_integration::tap::{Action, Method, Point, Side};

use super::{Setup, start, until_said, wait_for_exit};
use crate::command::run_to_end;
use crate::node::Node;
use crate::suite::live_tests;

live_tests! {
    Containerd: crash_anywhere_and_the_next_run_goes_on,
    Containerd: crash_of_one_process_and_the_other_goes_on,
}

/// The point of the kill, the numbers of active and committed snapshots then, and the snapshotter.
type Case = (Method, u64, Point, (usize, usize), &'static str);

const POINTS: [Case; 16] = [
    (Method::LEASE_CREATE, 1, After, (0, 0), "native"),
    (Method::LEASE_ADD, 1, After, (0, 0), "overlayfs"),
    (Method::PREPARE, 1, After, (1, 0), "overlayfs"),
    (Method::PREPARE, 2, Before, (0, 1), "native"),
    (Method::PREPARE, 2, After, (1, 1), "native"),
    (Method::PREPARE, 3, After, (1, 2), "overlayfs"),
    (Method::APPLY, 1, During, (1, 0), "overlayfs"),
    (Method::APPLY, 2, During, (1, 1), "native"),
    (Method::COMMIT, 1, Before, (1, 0), "native"),
    (Method::COMMIT, 1, After, (0, 1), "overlayfs"),
    (Method::COMMIT, 2, Before, (1, 1), "overlayfs"),
    (Method::COMMIT, 2, After, (0, 2), "native"),
    (Method::COMMIT, 3, After, (0, 3), "native"),
    (Method::CONTENT_UPDATE, 1, Before, (0, 3), "overlayfs"),
    (Method::CONTENT_UPDATE, 1, After, (0, 3), "native"),
    (Method::LEASE_DELETE, 1, Before, (0, 3), "overlayfs"),
];

fn crash_anywhere_and_the_next_run_goes_on(node: &Node) -> Result<()> {
    for case in POINTS {
        let (method, nth, point, _, snapshotter) = case;
        killed_at(node, case)
            .with_context(|| format!("killed on {snapshotter} {point:?} {nth} of {method}"))?;
    }
    Ok(())
}

fn killed_at(node: &Node, case: Case) -> Result<()> {
    let (method, nth, point, (active, committed), snapshotter) = case;
    let setup = Setup::new(node)?;
    setup.tap.on(method, nth, point, Action::Kill(Side::Client));
    let killed = run_to_end(&mut setup.tapped(snapshotter)?)?;
    ensure!(killed.code.is_none(), "{killed:#?} instead of a kill");
    // The lease keeps the layers of the killed run.
    setup.node.collect_garbage()?;
    setup.has(active, committed, snapshotter)?;
    setup.goes_on_from(committed, snapshotter)?;
    setup.tap.finish()
}

fn crash_of_one_process_and_the_other_goes_on(node: &Node) -> Result<()> {
    let setup = Setup::new(node)?;
    let held = setup.tap.hold(Method::APPLY, 2, During);
    let mut first = start(&mut setup.tapped("native")?)?;
    held.wait()?;
    let other = setup.node.containerd.tap()?;
    let image = &setup.image.reference;
    let mut second = setup
        .resnap(&["unpack", "--snapshotter", "native", image])?
        .env("CONTAINERD_ADDRESS", other.socket())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = second.stderr.as_mut().context("no stderr")?;
    until_said(stderr, &format!("waiting for process {}", first.id()))?;
    ensure!(other.count(Method::PREPARE) == 0, "it does not wait");
    first.kill()?;
    ensure!(first.wait()?.signal() == Some(9));
    ensure!(wait_for_exit(&mut second)?.success());
    // Every layer was written once, save the one that was torn.
    let applies = [&setup.tap, &other].map(|tap| tap.count(Method::APPLY));
    ensure!(applies == [2, 2], "{applies:?}");
    setup.is_whole("native")?;
    other.finish()?;
    drop(held);
    setup.tap.finish()
}
