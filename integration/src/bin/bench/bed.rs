// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The containerd that all is measured on, and the programs that are.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use resnap_integration::cri::Cri;
use resnap_integration::daemon::{Containerd, Options};
use resnap_integration::debian::{output, provision};
use resnap_integration::image::Built;

/// A containerd of its own, and the release build of resnap.
pub(crate) struct Bed {
    pub(crate) containerd: Containerd,
    resnap: PathBuf,
}

impl Bed {
    pub(crate) fn start() -> Result<Self> {
        let exe = std::env::current_exe()?;
        let target = exe.ancestors().nth(2).context("no target directory")?;
        let resnap = target.join("release").join("resnap");
        ensure!(
            resnap.is_file(),
            "{resnap:?} is not built: run `make bench`"
        );
        let containerd = Containerd::start(provision()?.newest()?, Options::default())?;
        println!(
            "{} on {} cores; resnap is a release build.",
            containerd.name(),
            std::thread::available_parallelism()?
        );
        Ok(Self { containerd, resnap })
    }

    /// One beside it, with another containerd of the same version.
    pub(crate) fn another(&self, options: Options) -> Result<Self> {
        Ok(Self {
            containerd: Containerd::start(self.containerd.dist(), options)?,
            resnap: self.resnap.clone(),
        })
    }

    pub(crate) fn stop(self) -> Result<()> {
        self.containerd.stop()
    }

    /// Those of containerd that layers are unpacked for.
    pub(crate) fn snapshotters(&self) -> &'static [&'static str] {
        match self.containerd.has_erofs() {
            true => &["overlayfs", "erofs"],
            false => &["overlayfs"],
        }
    }

    /// What cold unpacks are for: erofs where there is one.
    pub(crate) fn lazy(&self) -> &'static str {
        self.snapshotters().last().unwrap_or(&"overlayfs")
    }

    /// Puts the image on the node as a pull does that unpacks nothing.
    pub(crate) fn import(&self, namespace: &str, image: &Built) -> Result<()> {
        let archive = image.archive.to_string_lossy();
        self.ctr(namespace, &["images", "import", "--no-unpack", &archive])
    }

    /// Removes the image and, before this ends, all that was made of it.
    pub(crate) fn remove(&self, namespace: &str, image: &Built) -> Result<()> {
        self.ctr(namespace, &["images", "rm", "--sync", &image.reference])
    }

    pub(crate) fn ctr(&self, namespace: &str, arguments: &[&str]) -> Result<()> {
        output(self.containerd.ctr(namespace).args(arguments)).map(drop)
    }

    /// As `resnap check` finds it on the snapshotter of cold unpacks.
    pub(crate) fn is_ready(&self, namespace: &str, image: &Built) -> Result<bool> {
        let checked = Command::new(&self.resnap)
            .arg("--address")
            .arg(self.containerd.socket())
            .args(["--namespace", namespace, "check", &image.reference])
            .args(["--snapshotter", self.lazy()])
            .stdout(Stdio::null())
            .status()?;
        ensure!(matches!(checked.code(), Some(0 | 1)), "check: {checked}");
        Ok(checked.success())
    }

    /// `resnap serve` in front of containerd.
    pub(crate) fn serve(&self) -> Result<Served> {
        let socket = self.containerd.socket().with_file_name("proxy.sock");
        let process = Command::new(&self.resnap)
            .arg("--address")
            .arg(self.containerd.socket())
            .args(["serve", "--cri-socket"])
            .arg(&socket)
            .spawn()
            .context("start resnap serve")?;
        let served = Served { process, socket };
        // Until it serves.
        Cri::connect(&served.socket, &self.containerd.scratch())?;
        Ok(served)
    }

    /// `resnap unpack`, by containerd's socket or a tap's.
    pub(crate) fn unpack(
        &self,
        socket: &Path,
        namespace: &str,
        snapshotter: &str,
        image: &Built,
    ) -> Command {
        let mut command = Command::new(&self.resnap);
        command
            .arg("--address")
            .arg(socket)
            .args(["--namespace", namespace, "unpack", &image.reference])
            .args(["--snapshotter", snapshotter])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }
}

/// A running `resnap serve`, killed with the value.
pub(crate) struct Served {
    process: Child,
    pub(crate) socket: PathBuf,
}

impl Served {
    /// A figure of the process in KiB, as its status names it.
    pub(crate) fn memory(&self, name: &str) -> Result<u64> {
        memory(self.process.id(), name)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A figure of a process in KiB, as its status names it.
pub(crate) fn memory(process: u32, name: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let mut lines = status.lines();
    let figure = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let figure = figure.and_then(|figure| figure.trim().strip_suffix(" kB"));
    let figure = figure.with_context(|| format!("no {name} in the status"))?;
    Ok(figure.parse()?)
}

/// The time that one process takes, from its start to its good end.
pub(crate) fn time(command: &mut Command) -> Result<Duration> {
    time_all(std::slice::from_mut(command))
}

/// The time until the last of these has ended well, all of them started at once.
pub(crate) fn time_all(commands: &mut [Command]) -> Result<Duration> {
    let start = Instant::now();
    let children: Result<Vec<Child>> = commands
        .iter_mut()
        .map(|command| command.spawn().context("start a program"))
        .collect();
    let ended: Vec<_> = children?
        .into_iter()
        .map(|mut child| child.wait())
        .collect();
    let time = start.elapsed();
    for (status, command) in ended.into_iter().zip(commands) {
        let status = status?;
        ensure!(status.success(), "{command:?}: {status}");
    }
    Ok(time)
}
