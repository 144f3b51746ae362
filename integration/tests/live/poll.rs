// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Waiting for a condition.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// How long a condition may take that needs no waiting of its own.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

const INTERVAL: Duration = Duration::from_millis(20);

/// Polls until `is_so` returns `true`.
///
/// # Errors
/// If that takes longer than `deadline`, with `what` as the condition that was not met; or the error of
/// `is_so`.
pub(crate) fn eventually(
    what: &str,
    deadline: Duration,
    mut is_so: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let start = Instant::now();
    while !is_so()? {
        ensure!(
            start.elapsed() < deadline,
            "{what}: not within {deadline:?}"
        );
        thread::sleep(INTERVAL);
    }
    Ok(())
}
