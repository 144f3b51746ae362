// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Machines: Debian 12's systemd as the first process of namespaces, on files of its own, with a containerd and what
//! stands for kubelet as its services.
//!
//! ```text
//! unshare                    the process that a test holds; the machine ends with it
//! └ systemd                  PID 1 of the machine: / is an overlay on Debian's packages, /run is empty
//!   ├ containerd.service     one of the suite's, with its data on a tmpfs
//!   └ kubelet.service        a script with kubelet's flags
//! ```

mod boot;
mod files;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mount::{UnmountFlags, unmount};

pub use files::Files;

use crate::daemon::{run_dir, run_name};
use crate::debian::{Dist, output};

/// The time that a machine has to start.
const START: Duration = Duration::from_secs(30);

/// The path of the program under test in a machine.
pub const PROGRAM: &str = "/opt/resnap";

static NEXT: AtomicU32 = AtomicU32::new(1);

/// A running machine, ended with the value.
#[derive(Debug)]
pub struct Machine {
    unshare: Child,
    /// The process ID of its systemd here.
    pid: u32,
    /// Its files here, and what is mounted into it at the same path.
    dir: PathBuf,
    cgroup: PathBuf,
}

impl Machine {
    /// Starts a machine with this containerd, and waits until its services run.
    pub fn start(dist: &Dist, program: &Path) -> Result<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = run_dir()?.join(format!("machine-{number}"));
        fs::create_dir_all(dir.join("shared"))?;
        boot::write_files(&dir, dist)?;
        // Unlike files, control groups are seen by all runs.
        let group = format!("resnap-{}-{number}", run_name()?);
        let (cgroup, unshare) = boot::spawn(&dir, &group, dist, program)?;
        let mut this = Self {
            unshare,
            pid: 0,
            dir,
            cgroup,
        };
        this.wait_until_up()
            .with_context(|| format!("start a machine; it says: {}", this.console()))?;
        Ok(this)
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            self.pid = child_of(self.unshare.id()).unwrap_or_default();
            let active =
                "systemctl is-active containerd.service && systemctl is-active kubelet.service";
            let error = match self.pid {
                0 => anyhow::anyhow!("there is no first process"),
                _ => match self.run(active) {
                    Ok(_) => return Ok(()),
                    Err(error) => error,
                },
            };
            if let Some(status) = self.unshare.try_wait()? {
                return Err(error.context(format!("it ended: {status}")));
            }
            if Instant::now() > deadline {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn console(&self) -> String {
        fs::read_to_string(self.dir.join("console")).unwrap_or_default()
    }

    /// A directory that is here and in the machine at the same path, for logs of pods.
    pub fn shared(&self) -> PathBuf {
        self.dir.join("shared")
    }

    /// Returns where a path of the machine is here.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }

    /// Returns the files that an installation could leave.
    pub fn files(&self) -> Result<Files> {
        files::read(&self.path("/"))
    }

    /// A command line in the machine, for its shell.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.pid.to_string()])
            .args(["--mount", "--pid", "--uts", "--ipc", "--cgroup", "--wd=/"])
            .args(["env", "-i", boot::PATH, "sh", "-c", line]);
        command
    }

    /// Runs a command line in the machine, and returns what it wrote to stdout.
    pub fn run(&self, line: &str) -> Result<String> {
        output(&mut self.command(line))
    }

    /// Returns a property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        let value = self.run(&format!("systemctl show {unit} --property={name} --value"))?;
        Ok(value.trim().to_owned())
    }

    /// Ends the machine.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if !self.cgroup.exists() {
            // It was ended before.
            return Ok(());
        }
        // The first process ends with it, and with that one all others.
        self.unshare.kill().context("end a machine")?;
        self.unshare.wait()?;
        let deadline = Instant::now() + START;
        while let Err(error) = remove_cgroup(&self.cgroup) {
            if Instant::now() > deadline {
                bail!("the control group of a machine cannot be removed: {error}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        unmount(self.dir.join(boot::CGROUPS), UnmountFlags::DETACH)
            .context("unmount the control groups")?;
        fs::remove_dir_all(&self.dir).with_context(|| format!("remove {:?}", self.dir))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A test that wants to know calls stop().
        let _ = self.end();
    }
}

/// Returns the child of a process that has one.
fn child_of(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Removes a control group and those below it.
fn remove_cgroup(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}
