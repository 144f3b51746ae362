// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A lease that would expire under a long unpack.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use resnap_integration::tap::Method;
use resnap_integration::tap::Point::During;

use super::{Setup, runtime};
use crate::node::Node;
use crate::poll::{DEADLINE, eventually};
use crate::suite::live_tests;

live_tests! {
    One: crash_leases_are_renewed_before_expiry,
}

/// A lease's life, cut to whole seconds; it is succeeded after a third of it.
const LIFETIME: Duration = Duration::from_secs(4);

fn crash_leases_are_renewed_before_expiry(node: &Node) -> Result<()> {
    let setup = Setup::new(node)?;
    let held = setup.tap.hold(Method::APPLY, 2, During);
    let runtime = runtime()?;
    let begun = Instant::now();
    let (engine, request) = runtime.block_on(setup.engine("native", None, Some(LIFETIME)))?;
    let job = runtime.block_on(async { engine.unpack(request) });
    held.wait()?;
    let mut names = Vec::new();
    eventually(
        "a third lease, and the end of the first's life",
        DEADLINE,
        || {
            setup.node.collect_garbage()?;
            setup.has(1, 1, "native")?;
            for name in setup.node.leases()? {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            Ok(names.len() > 2 && begun.elapsed() > LIFETIME)
        },
    )?;
    held.release();
    let report = runtime.block_on(job.report())?;
    ensure!(report.count(resnap_unpacker::LayerOutcome::Applied) == 3);
    setup.is_whole("native")?;
    setup.tap.finish()
}
