// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Errors of files, and of work in threads.

use std::io;
use std::path::Path;

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

/// Does work on files in a thread.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = spawn_blocking(work).await;
    done.map_err(|error| Error::new(Kind::Internal, "work on", "files").with_source(error))?
}
