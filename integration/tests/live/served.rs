// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap serve`, as a process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Result, ensure};
use resnap_integration::dm_verity::with_dm_verity;
use rustix::process::{Pid, Signal, kill_process};

use crate::node::{Node, differ_config, unique};

/// A running `resnap serve`, ended with the value.
pub(crate) struct Served {
    pub(crate) process: Child,
    /// Its runtime directory.
    pub(crate) dir: PathBuf,
    /// The socket of the CRI.
    pub(crate) socket: PathBuf,
}

impl Served {
    pub(crate) fn start(node: &Node) -> Result<Self> {
        Self::before(node, node.containerd.socket())
    }

    /// Starts it in front of a containerd, or of a tap, which sees every layer.
    pub(crate) fn before(node: &Node, backend: &Path) -> Result<Self> {
        let config = match backend == node.containerd.socket() {
            true => String::new(),
            false => differ_config("containerd"),
        };
        Self::configured(node, backend, &config)
    }

    /// Starts it with this configuration file.
    pub(crate) fn configured(node: &Node, backend: &Path, config: &str) -> Result<Self> {
        let dir = node.containerd.socket().with_file_name(unique("p"));
        fs::create_dir(&dir)?;
        fs::write(dir.join("config.toml"), config)?;
        Self::in_dir(node, backend, &dir)
    }

    /// Starts the next one in the same directory.
    pub(crate) fn again(&self, node: &Node, backend: &Path) -> Result<Self> {
        Self::in_dir(node, backend, &self.dir)
    }

    fn in_dir(node: &Node, backend: &Path, dir: &Path) -> Result<Self> {
        let mut command = node.resnap_command()?;
        command.env("RESNAP_CONFIG", dir.join("config.toml"));
        command.arg("--address").arg(backend).arg("serve");
        Self::begin(&mut command, dir)
    }

    /// Starts it with this configuration file, where the kernel seems to have dm-verity.
    pub(crate) fn with_dm_verity(node: &Node, config: &str) -> Result<Self> {
        let socket = node.containerd.socket();
        let dir = socket.with_file_name(unique("p"));
        fs::create_dir(&dir)?;
        let mut command = node.configured_command(config)?;
        command.arg("--address").arg(socket).arg("serve");
        Self::begin(&mut with_dm_verity(&command), &dir)
    }

    /// Starts it by this command with this runtime directory.
    pub(crate) fn begin(command: &mut Command, dir: &Path) -> Result<Self> {
        let process = command.env("RESNAP_RUNTIME_DIR", dir).spawn()?;
        Ok(Self {
            process,
            dir: dir.to_owned(),
            socket: dir.join("cri.sock"),
        })
    }

    /// Kills it, as a crash does.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Terminates it, as systemd does, and checks that its socket is removed.
    pub(crate) fn stop(self) -> Result<()> {
        let socket = self.socket.clone();
        self.terminate()?;
        ensure!(!socket.exists(), "its socket is left");
        Ok(())
    }

    /// Terminates it; the socket may stay.
    pub(crate) fn terminate(mut self) -> Result<()> {
        let pid = i32::try_from(self.process.id())?;
        if let Some(pid) = Pid::from_raw(pid) {
            kill_process(pid, Signal::TERM)?;
        }
        let status = self.process.wait()?;
        ensure!(status.success(), "resnap serve ended with {status}");
        Ok(())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
