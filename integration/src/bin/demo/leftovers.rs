// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Checks that the demo leaves nothing behind.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// Checks that the directory and all mounts below it are gone.
pub(crate) fn no_folder(dir: &Path) -> Result<()> {
    ensure!(!dir.exists(), "{dir:?} is left");
    let dir = dir.to_string_lossy();
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the mount table")?;
    match mounts.lines().find(|line| line.contains(&*dir)) {
        Some(mount) => bail!("a mount is left: {mount}"),
        None => Ok(()),
    }
}

/// Checks that only this program and its PID 1 are left in their namespace.
pub(crate) fn no_processes() -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let others: Vec<String> = fs::read_dir("/proc")
            .context("list /proc")?
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| {
                name.parse()
                    .is_ok_and(|pid: u32| pid != 1 && pid != std::process::id())
            })
            .map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or(pid))
            .collect();
        if others.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "processes are left: {others:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
