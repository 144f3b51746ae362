// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Calls that get no answer within their limit.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use resnap_core::Kind;
use resnap_integration::tap::Point::{After, Before};
use resnap_integration::tap::{Action, Method, Point};

use super::{Setup, runtime};
use crate::node::Node;
use crate::poll::{DEADLINE, eventually};
use crate::suite::live_tests;

live_tests! {
    Containerd: crash_calls_that_hang,
}

/// The limit to a call: what a busy machine needs for one, and not more.
const LIMIT: Duration = Duration::from_secs(2);

/// The call that hangs, whether the run ends well all the same, and how many layers are there then.
const HANGS: [(Method, u64, Point, bool, usize); 6] = [
    (Method::LEASE_CREATE, 1, After, false, 0),
    (Method::PREPARE, 2, Before, false, 1),
    (Method::PREPARE, 2, After, false, 1),
    (Method::COMMIT, 2, Before, false, 1),
    (Method::COMMIT, 2, After, true, 3),
    (Method::LEASE_DELETE, 1, Before, true, 3),
];

fn crash_calls_that_hang(node: &Node) -> Result<()> {
    // Side by side, as each waits for most of its time.
    thread::scope(|scope| {
        let cases = HANGS.map(|case| scope.spawn(move || hangs(node, case)));
        for ((method, nth, point, ..), case) in HANGS.iter().zip(cases) {
            let result = case.join().map_err(|_| anyhow!("it panicked"));
            result
                .flatten()
                .with_context(|| format!("hang {point:?} {nth} of {method}"))?;
        }
        Ok(())
    })
}

fn hangs(
    node: &Node,
    (method, nth, point, ends_well, existed): (Method, u64, Point, bool, usize),
) -> Result<()> {
    let setup = Setup::new(node)?;
    setup.tap.on(method, nth, point, Action::Hang);
    let runtime = runtime()?;
    let (result, took) = runtime.block_on(async {
        let (engine, request) = setup.engine("native", Some(LIMIT), None).await?;
        let begun = Instant::now();
        let result = engine.unpack(request).report().await;
        anyhow::Ok((result, begun.elapsed()))
    })?;
    ensure!(took < LIMIT + Duration::from_secs(10), "it took {took:?}");
    if ends_well {
        result?;
    } else {
        let error = result.err().context("it went well")?;
        ensure!(error.kind() == Kind::DeadlineExceeded, "{error:?}");
        ensure!(error.to_string().contains(&setup.image.reference));
    }
    setup.has(0, existed, "native")?;
    if ends_well {
        // The engine lives, and does what it could not do then.
        eventually("the lease is gone", DEADLINE, || {
            Ok(setup.node.leases()?.is_empty())
        })?;
    }
    setup.goes_on_from(existed, "native")?;
    setup.tap.finish()
}
