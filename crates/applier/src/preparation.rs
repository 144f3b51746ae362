// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The preparation of a snapshot, by which it is told from those of other containerds: a containerd in a container
//! reports paths of its own, which may belong to another one here.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::mountinfo::is_same_directory;

/// The most that timestamps of files may be behind the clock.
const CLOCK_SLACK: Duration = Duration::from_secs(1);

/// The preparation of a snapshot.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Preparation {
    /// By the engine, after this time.
    Since(SystemTime),
    /// By a client of the backend, at any time. The backend is the process with this number.
    ByBackend(u32),
}

impl Preparation {
    /// Returns whether a directory may be of a snapshot that was prepared so: it is new, or the one that the
    /// backend sees at its path.
    pub(crate) fn is_of(self, directory: &Path) -> io::Result<bool> {
        match self {
            Self::Since(since) => Ok(changed(directory)? + CLOCK_SLACK >= since),
            Self::ByBackend(process) => is_same_directory(process, directory),
        }
    }
}

/// Returns the time when a directory was changed.
fn changed(directory: &Path) -> io::Result<SystemTime> {
    let metadata = directory.metadata()?;
    let seconds = Duration::from_secs(u64::try_from(metadata.ctime()).unwrap_or_default());
    let nanoseconds =
        Duration::from_nanos(u64::try_from(metadata.ctime_nsec()).unwrap_or_default());
    Ok(UNIX_EPOCH + seconds + nanoseconds)
}
