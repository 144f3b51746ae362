// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Namespaces of its own for a test binary or the demo.
//!
//! ```text
//! the binary, as it was called      holds the lock of its run folder
//! └ setpriv --pdeathsig KILL        ends with it, also by Ctrl-C
//!   └ unshare --mount --pid ...
//!     └ sh                          PID 1: reaps what shims leave
//!       └ the binary, again         /run is an empty tmpfs, the run folder has a short path
//! ```
//!
//! When the binary ends in whatever way, the kernel ends every daemon and drops
//! every mount; only files below the run folder can stay, and the next run
//! removes them.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, mount, mount_bind};
use rustix::process::Pid;

use super::process;
use crate::debian;

/// The directory of all sockets: a path of a socket has at most 107 bytes, and a target directory may be deep.
pub(super) const SOCKETS: &str = "/run/resnap-test";

/// Names the run folder for the second incarnation of the binary.
const RUN: &str = "RESNAP_TEST_RUN";

/// Called first in `main`: returns in namespaces of its own, with this run's
/// folder in place.
///
/// The call starts the program again and ends this first incarnation with the
/// exit code of the second. Without root it fails and says how to run it.
pub fn in_private_namespaces() -> Result<()> {
    if std::env::var_os(RUN).is_some() {
        return prepare_run();
    }
    let exe = std::env::current_exe().context("find this program's own path")?;
    if !rustix::process::geteuid().is_root() {
        bail!(
            "real daemons need root; run `sudo make test` (or `sudo make demo`), or this program alone by `sudo {}`",
            exe.display()
        );
    }
    let (dir, lock) = claim_run_dir()?;
    let status = Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .args(["unshare", "--mount", "--pid", "--fork"])
        .args(["--kill-child", "--mount-proc"])
        // A shell stays as PID 1, since that one has to reap orphans.
        .args(["sh", "-c", "\"$@\"; exit $?", "sh"])
        .arg(exe)
        .args(std::env::args_os().skip(1))
        .env(RUN, &dir)
        .status()
        .context("start setpriv and unshare (package util-linux)")?;
    // A failed removal must not hide the result; the next run tries again.
    let _ = remove_run(&dir);
    drop(lock);
    exit(status.code().unwrap_or(1))
}

/// The path of this run's folder, below which every daemon has its own: all options of a mount
/// have room for 4096 bytes, and the longest stack of the tests has dozens of paths in them.
const SHORT: &str = "/run/resnap-data";

/// Returns the folder of this run, by its short path.
pub(crate) fn run_dir() -> Result<PathBuf> {
    claimed().map(|_| SHORT.into())
}

/// Returns a name of this run that no other one has.
pub(crate) fn run_name() -> Result<String> {
    let run = claimed()?;
    Ok(run.file_name().unwrap_or_default().display().to_string())
}

/// Returns the folder of this run where it lies.
fn claimed() -> Result<PathBuf> {
    std::env::var_os(RUN).map(PathBuf::from).with_context(|| {
        "daemons are started in private namespaces only: call in_private_namespaces() first in main"
    })
}

/// Returns a folder that no other run uses, and the lock that says so.
fn claim_run_dir() -> Result<(PathBuf, File)> {
    let runs = debian::target_dir().join("run");
    let _lock = debian::lock(&runs)?;
    remove_leftovers(&runs)?;
    let dir = runs.join(std::process::id().to_string());
    let lock = debian::lock(&dir)?;
    Ok((dir, lock))
}

/// Removes what runs left behind that were killed; the others hold a lock.
fn remove_leftovers(runs: &Path) -> Result<()> {
    for entry in fs::read_dir(runs).with_context(|| format!("list {runs:?}"))? {
        let dir = entry?.path();
        if !dir.is_dir() {
            continue;
        }
        if let Ok(file) = File::open(dir.join(".lock"))
            && let Err(TryLockError::WouldBlock) = file.try_lock()
        {
            continue;
        }
        remove_run(&dir)?;
    }
    Ok(())
}

/// Removes a run's folder, and what its daemons left elsewhere; none is alive.
fn remove_run(dir: &Path) -> Result<()> {
    for daemon in process::list(dir) {
        process::forget_tasks(&daemon);
    }
    fs::remove_dir_all(dir).with_context(|| format!("remove the ended run's {dir:?}"))
}

/// An empty `/run`: shims keep their sockets in `/run/containerd`, whoever
/// started them, and a containerd of this machine must not see them.
fn prepare_run() -> Result<()> {
    if Path::new(SOCKETS).exists() {
        // A program of the suite that was started by another one.
        return Ok(());
    }
    // The machine's own /run must never be hidden.
    if rustix::process::getppid() != Some(Pid::INIT) {
        bail!("{RUN} is set, but this is not in namespaces of the suite; unset it");
    }
    // Downloads need it, and on many machines it is a link into /run.
    let resolv = fs::canonicalize("/etc/resolv.conf").ok();
    let resolv = resolv.and_then(|path| fs::read(&path).ok().map(|text| (path, text)));
    mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), c"mode=755")
        .context("mount a tmpfs on /run")?;
    if let Some((path, text)) = resolv
        && path.starts_with("/run")
    {
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/run")))
            .and_then(|()| fs::write(&path, text))
            .with_context(|| format!("put {path:?} back"))?;
    }
    let run = claimed()?;
    fs::create_dir(SHORT).with_context(|| format!("create {SHORT}"))?;
    mount_bind(&run, SHORT).with_context(|| format!("mount {run:?} at {SHORT}"))?;
    fs::create_dir(SOCKETS).with_context(|| format!("create {}", SOCKETS))
}
