// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Errors of files, and work in threads that can be stopped.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use resnap_core::{Error, Kind, Result};
use tokio::task::spawn_blocking;

/// Adds to an error of a file what was done to it.
pub(crate) trait IoContext<T> {
    fn during(self, operation: &'static str, path: &Path) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn during(self, operation: &'static str, path: &Path) -> Result<T> {
        self.map_err(|error| {
            let kind = Kind::of_io(&error);
            Error::new(kind, operation, path.display().to_string()).with_source(error)
        })
    }
}

/// Whether work is to stop.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

/// The error of work that was stopped.
#[derive(Debug, thiserror::Error)]
#[error("it was stopped")]
pub(crate) struct Stopped;

impl Stop {
    pub(crate) fn check(&self) -> std::result::Result<(), Stopped> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(Stopped),
            false => Ok(()),
        }
    }

    /// Checks before the result of the work is put in its place.
    pub(crate) fn check_before_end(&self) -> Result<()> {
        self.check()
            .map_err(|stopped| Error::new(Kind::Cancelled, "write", "files").with_source(stopped))
    }
}

/// Stops work on drop.
struct StopOnDrop(Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Does work on files in a thread. Dropping the future has it stop.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce(&Stop) -> Result<T> + Send + 'static,
) -> Result<T> {
    let stop = Stop::default();
    let _on_drop = StopOnDrop(stop.clone());
    let done = spawn_blocking(move || work(&stop)).await;
    done.map_err(|error| Error::new(Kind::Internal, "work on", "files").with_source(error))?
}
