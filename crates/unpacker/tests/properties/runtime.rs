// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Paused time.

use tokio::runtime::Runtime;

/// Returns a runtime whose clock jumps to the next timer when all tasks wait.
pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}
