// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A command that meets a fault, up to its end.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use resnap_integration::tap::{Side, Tap};
use rustix::process::{Pid, Signal, kill_process};

use super::fault::{CallFault, Fault};
use super::syscalls;
use crate::node::unique;

/// The time that a command has to end after its fault, cleanup and containerd's restart included.
const LIMIT: Duration = Duration::from_secs(60);

/// The time after which a command whose call hangs is told to stop.
const PATIENCE: Duration = Duration::from_millis(200);

/// The message of tokio when its own descriptor fails.
const NO_WAKE: &str = "failed to wake I/O driver";

const POLL: Duration = Duration::from_millis(3);

/// The actions of the harness at the moment of a fault.
pub(crate) trait Helper {
    /// Returns whether containerd is dead.
    fn is_dead(&self) -> bool;
    /// Starts containerd again, which was killed.
    fn restart(&self) -> Result<()>;
    /// Deletes all leases, and collects the garbage.
    fn expire(&self) -> Result<()>;
}

/// The end of a command.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    pub(crate) process: u32,
    status: ExitStatus,
    pub(crate) stdout: String,
    stderr: String,
    /// Whether the fault happened.
    pub(crate) happened: bool,
}

impl Ended {
    pub(crate) fn is_success(&self) -> bool {
        self.status.success()
    }

    /// Returns whether it ended by the signal, with nothing to clean up.
    pub(crate) fn is_terminated(&self) -> bool {
        self.status.signal() == Some(Signal::TERM.as_raw())
    }

    fn says_why(&self) -> bool {
        let keys = ["\"problem\": \"", "\"refusal\": \""];
        !self.stderr.is_empty() || keys.iter().any(|key| self.stdout.contains(key))
    }

    /// Checks that it ended as a program that met this fault may: well, with an error that it told, or
    /// stopped.
    pub(crate) fn is_orderly(&self, fault: &Fault) -> Result<()> {
        ensure!(!self.stderr.contains("panicked"), "{self:#?}");
        let is_killed = fault.kills_resnap() && self.status.signal() == Some(9);
        let orderly = match self.status.code() {
            Some(0) => true,
            Some(2) => self.says_why(),
            Some(130) => fault.is(CallFault::Hang),
            // Not even the libraries could be loaded.
            Some(127) => self.stderr.contains("shared libraries"),
            _ => is_killed || fault.is(CallFault::Hang) && self.is_terminated(),
        };
        ensure!(orderly, "{self:#?}");
        Ok(())
    }
}

/// Runs a command that meets a fault.
pub(crate) fn run(
    command: Command,
    tap: &Tap,
    fault: &Fault,
    scratch: &Path,
    helper: &dyn Helper,
) -> Result<Ended> {
    let log = scratch.join(unique("strace"));
    let command = match fault {
        Fault::Call { .. } => command,
        Fault::Syscall { call, effect } => syscalls::faulty(&command, &log, call, *effect),
    };
    fault.arm(tap);
    let mut met = Instant::now();
    let mut helped = false;
    let ended = supervise(command, scratch, |child| {
        if helped || tap.pending() > 0 {
            met = Instant::now();
        } else if fault.is(CallFault::Kill(Side::Backend)) {
            // Not at once if it is to answer before.
            if helper.is_dead() {
                helper.restart()?;
                helped = true;
            }
        } else if fault.is(CallFault::Expire) {
            helper.expire()?;
            helped = true;
        } else if fault.is(CallFault::Hang) && met.elapsed() > PATIENCE {
            // The second ends it at once: a call has a minute. Two may come as one.
            terminate(child)?;
            met = Instant::now();
        }
        Ok(())
    });
    let mut ended = match (ended, fault) {
        (Err(error), Fault::Syscall { .. }) => {
            // Its threads cannot wake each other any more: an error that no such file has.
            let other = error.to_string().contains(NO_WAKE);
            return match other {
                true => Ok(Ended::default()),
                false => Err(error),
            };
        }
        (ended, _) => ended?,
    };
    ended.happened = match fault {
        Fault::Call { .. } => tap.pending() == 0,
        Fault::Syscall { effect, .. } => {
            let injected = syscalls::injected(&log, ended.process, *effect)?;
            fs::remove_file(&log)?;
            injected == Some(true)
        }
    };
    if !helped && ended.happened && fault.is(CallFault::Kill(Side::Backend)) {
        helper.restart()?;
    }
    Ok(ended)
}

/// Runs a command to its end, and calls `look` until then.
pub(crate) fn supervise(
    mut command: Command,
    scratch: &Path,
    mut look: impl FnMut(&Child) -> Result<()>,
) -> Result<Ended> {
    let [out, err] = ["out", "err"].map(|name| scratch.join(unique(name)));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(File::create(&out)?)
        .stderr(File::create(&err)?)
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begin.elapsed() > LIMIT {
            child.kill()?;
            child.wait()?;
            let stderr = fs::read_to_string(&err)?;
            bail!("{command:?} does not end: {stderr}");
        }
        look(&child)?;
        thread::sleep(POLL);
    };
    let read = |path: &Path| {
        let bytes = fs::read(path)?;
        fs::remove_file(path)?;
        anyhow::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(Ended {
        process: child.id(),
        status,
        stdout: read(&out)?,
        stderr: read(&err)?,
        happened: false,
    })
}

fn terminate(child: &Child) -> Result<()> {
    let pid = Pid::from_raw(child.id().try_into()?).context("0 is no process")?;
    // It may have ended just now.
    let _ = kill_process(pid, Signal::TERM);
    Ok(())
}
