// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Signals that stop a command.

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::exit_status::ExitStatus;

/// Listens for signals. The first cancels the returned token, so that running work is stopped and cleaned
/// up. The second ends the process without waiting for that.
pub(super) fn listen() -> Result<(JoinHandle<()>, CancellationToken)> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let listening = tokio::spawn(async move {
        for is_first in [true, false] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if !is_first {
                std::process::exit(ExitStatus::Cancelled as i32);
            }
            stop.cancel();
        }
    });
    Ok((listening, stopped))
}

/// Returns the result of the work, or `None` if a signal stopped it. The second signal ends the process without
/// waiting until the work has cleaned up.
pub(super) async fn until_stopped<T>(work: impl Future<Output = T>) -> Result<Option<T>> {
    let (signals, stop) = listen()?;
    let done = tokio::select! {
        done = work => Some(done),
        () = stop.cancelled() => None,
    };
    signals.abort();
    Ok(done)
}
