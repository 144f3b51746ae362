// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A containerd that stops and starts again.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use resnap_core::Kind;
use resnap_integration::tap::Method;
use resnap_integration::tap::Point::During;

use super::{Setup, runtime, start, wait_for_exit};
use crate::node::Node;
use crate::poll::{DEADLINE, eventually};
use crate::suite::live_tests;

live_tests! {
    Alone: crash_of_containerd_under_a_run,
    Alone: crash_of_containerd_and_an_engine_cleans_up,
}

/// The time that a run may take after containerd has returned.
const RETURN: Duration = Duration::from_secs(30);

/// A crash during an Apply, and an orderly restart during a Commit.
fn crash_of_containerd_under_a_run(node: &Node) -> Result<()> {
    for (method, crash, snapshotter) in [
        (Method::APPLY, true, "native"),
        (Method::COMMIT, false, "overlayfs"),
    ] {
        let setup = Setup::new(node)?;
        let held = setup.tap.hold(method, 2, During);
        let mut resnap = start(&mut setup.tapped(snapshotter)?)?;
        held.wait()?;
        if crash {
            node.containerd.kill()?;
        }
        node.containerd.restart()?;
        let back = Instant::now();
        let status = wait_for_exit(&mut resnap)?;
        ensure!(back.elapsed() < RETURN);
        ensure!(matches!(status.code(), Some(0 | 2)), "{status}");
        let (_, committed) = setup.node.kinds(snapshotter)?;
        // The Commit that was held may have been done.
        ensure!((1..=3).contains(&committed), "{committed} layers are there");
        setup.goes_on_from(committed, snapshotter)?;
        drop(held);
        setup.tap.finish()?;
    }
    Ok(())
}

/// An engine that lives on removes what it could not remove while containerd was away.
fn crash_of_containerd_and_an_engine_cleans_up(node: &Node) -> Result<()> {
    let setup = Setup::new(node)?;
    let held = setup.tap.hold(Method::APPLY, 2, During);
    let runtime = runtime()?;
    let (engine, request) = runtime.block_on(setup.engine("native", None, None))?;
    let job = runtime.block_on(async { engine.unpack(request) });
    held.wait()?;
    node.containerd.kill()?;
    let error = runtime.block_on(job.report());
    let error = error.err().context("it went well")?;
    ensure!(error.kind() == Kind::Unavailable, "{error:?}");
    node.containerd.restart()?;
    eventually("its active snapshot is removed", DEADLINE, || {
        Ok(setup.node.kinds("native")? == (0, 1))
    })?;
    setup.goes_on_from(1, "native")?;
    drop(held);
    setup.tap.finish()
}
