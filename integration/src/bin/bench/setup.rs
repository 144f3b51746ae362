// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The containerd that all is measured on, and the programs that are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use resnap_integration::cri::Cri;
use resnap_integration::daemon::{Containerd, Options};
use resnap_integration::debian::{Dist, output, provision};
use resnap_integration::image::{Built, large_files, small_files, web};

use crate::process;

/// Names the program of another build, to be measured in the same run.
const OTHER: &str = "RESNAP_BENCH_BINARY";

/// Returns the images whose layers are written, with their names in the tables.
pub(crate) fn images() -> Result<[(&'static str, Built); 3]> {
    Ok([
        ("small files", small_files()?),
        ("large files", large_files()?),
        ("web", web()?),
    ])
}

/// A containerd of its own, and builds of resnap.
pub(crate) struct Setup {
    pub(crate) containerd: Containerd,
    pub(crate) resnap: Resnap,
    /// The build to compare with.
    pub(crate) other: Option<Resnap>,
}

/// A build of resnap.
#[derive(Clone)]
pub(crate) struct Resnap {
    program: PathBuf,
    /// The suffix of its rows in the tables, if two builds are compared.
    suffix: &'static str,
}

impl Setup {
    pub(crate) fn start() -> Result<Self> {
        let exe = std::env::current_exe()?;
        let target = exe.ancestors().nth(2).context("no target directory")?;
        let program = target.join("release").join("resnap");
        ensure!(
            program.is_file(),
            "{program:?} is not built: run `make bench`"
        );
        let suffix = "";
        let resnap = Resnap { program, suffix };
        let other = Resnap::other()?;
        let containerd = Containerd::start(provision()?.newest()?, Options::default())?;
        println!(
            "{} on {} cores; resnap is a release build.",
            containerd.name(),
            std::thread::available_parallelism()?
        );
        if let Some(other) = &other {
            println!("(other) is {:?}.", other.program);
        }
        Ok(Self {
            containerd,
            resnap,
            other,
        })
    }

    /// This build, and the other one if there is one.
    pub(crate) fn resnaps(&self) -> impl Iterator<Item = &Resnap> {
        [&self.resnap].into_iter().chain(&self.other)
    }

    /// One beside it, with another containerd of the same version.
    pub(crate) fn another(&self, options: Options) -> Result<Self> {
        self.of(self.containerd.dist(), options)
    }

    /// One beside it, with this containerd.
    pub(crate) fn of(&self, dist: &Dist, options: Options) -> Result<Self> {
        Ok(Self {
            containerd: Containerd::start(dist, options)?,
            resnap: self.resnap.clone(),
            other: self.other.clone(),
        })
    }

    pub(crate) fn stop(self) -> Result<()> {
        self.containerd.stop()
    }

    /// Returns the snapshotters that layers are unpacked for.
    pub(crate) fn snapshotters(&self) -> &'static [&'static str] {
        match self.containerd.has_erofs() {
            true => &["overlayfs", "erofs"],
            false => &["overlayfs"],
        }
    }

    /// Returns the snapshotter of cold unpacks: erofs where there is one.
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

    /// Removes the image's snapshots, and leaves the image.
    pub(crate) fn remove_snapshots(
        &self,
        namespace: &str,
        snapshotter: &str,
        image: &Built,
    ) -> Result<()> {
        let on = ["snapshots", "--snapshotter", snapshotter];
        let mut removed = Ok(());
        // After the top is removed, garbage collection may remove others first.
        for _ in 0..=image.layers.len() {
            let table = output(self.containerd.ctr(namespace).args(on).arg("ls"))?;
            let keys: BTreeSet<&str> = table.split_whitespace().collect();
            let chains = image.layers.iter().rev().map(|layer| &*layer.chain_id);
            let left: Vec<&str> = chains.filter(|chain| keys.contains(chain)).collect();
            if left.is_empty() {
                return Ok(());
            }
            removed = self.ctr(namespace, &[&on[..], &["rm"], &left].concat());
        }
        removed
    }

    pub(crate) fn ctr(&self, namespace: &str, arguments: &[&str]) -> Result<()> {
        output(self.containerd.ctr(namespace).args(arguments)).map(drop)
    }

    /// As `resnap check` finds it on the snapshotter of cold unpacks.
    pub(crate) fn is_ready(&self, namespace: &str, image: &Built) -> Result<bool> {
        let checked = self
            .resnap
            .on(self.containerd.socket())
            .args(["--namespace", namespace, "check", &image.reference])
            .args(["--snapshotter", self.lazy()])
            .stdout(Stdio::null())
            .status()?;
        ensure!(matches!(checked.code(), Some(0 | 1)), "check: {checked}");
        Ok(checked.success())
    }

    /// `resnap serve` in front of containerd.
    pub(crate) fn serve(&self) -> Result<Served> {
        let address = self.containerd.socket();
        let mut command = self.resnap.on(address);
        Served::begin(command.arg("serve"), address.with_file_name("proxy.sock"))
    }

    /// `resnap serve` of each build in front of containerd, with its name.
    pub(crate) fn serve_all(&self) -> Result<Vec<(String, Served)>> {
        let serve = |resnap: &Resnap| {
            let name = resnap.row("resnap serve");
            let dir = self.containerd.scratch().join(name.replace(' ', "-"));
            let mut command = resnap.on(self.containerd.socket());
            command.arg("serve").arg("--runtime-dir").arg(&dir);
            let socket = dir.with_extension("sock");
            anyhow::Ok((name, Served::begin(&mut command, socket)?))
        };
        self.resnaps().map(serve).collect()
    }

    /// `resnap unpack`, by containerd's socket or a tap's.
    pub(crate) fn unpack(
        &self,
        socket: &Path,
        namespace: &str,
        snapshotter: &str,
        image: &Built,
    ) -> Command {
        self.resnap.unpack(socket, namespace, snapshotter, image)
    }
}

impl Resnap {
    fn other() -> Result<Option<Self>> {
        let Some(program) = std::env::var_os(OTHER) else {
            return Ok(None);
        };
        let program = std::path::absolute(program)?;
        ensure!(program.is_file(), "{OTHER}: there is no {program:?}");
        let suffix = " (other)";
        Ok(Some(Self { program, suffix }))
    }

    /// Returns the name of a row of it.
    pub(crate) fn row(&self, variant: &str) -> String {
        format!("{variant}{}", self.suffix)
    }

    /// Returns whether it is the build to compare with.
    pub(crate) fn is_other(&self) -> bool {
        !self.suffix.is_empty()
    }

    /// It with containerd at this address.
    pub(crate) fn on(&self, address: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--address").arg(address);
        command
    }

    /// `resnap unpack`, by containerd's socket or a tap's.
    pub(crate) fn unpack(
        &self,
        socket: &Path,
        namespace: &str,
        snapshotter: &str,
        image: &Built,
    ) -> Command {
        let mut command = self.on(socket);
        command
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
    /// Starts `command`, a `resnap serve`, and waits until it serves the CRI on this socket.
    pub(crate) fn begin(command: &mut Command, socket: PathBuf) -> Result<Self> {
        let command = command.arg("--cri-socket").arg(&socket);
        let process = command.spawn().context("start resnap serve")?;
        let served = Served { process, socket };
        // Nothing is run that writes logs.
        Cri::connect(&served.socket, Path::new("/dev/null"))?;
        Ok(served)
    }

    /// Returns a figure of the process in KiB, as its status names it.
    pub(crate) fn memory(&self, name: &str) -> Result<u64> {
        process::memory(self.process.id(), name)
    }

    /// Returns the CPU seconds that it has taken.
    pub(crate) fn cpu(&self) -> Result<f64> {
        Ok(process::cpu(self.process.id())?.0)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the time that one process takes, from its start to its good end.
pub(crate) fn time(command: &mut Command) -> Result<Duration> {
    time_all(std::slice::from_mut(command))
}

/// Returns the time until the last of these has ended well, all of them started at once.
pub(crate) fn time_all(commands: &mut [Command]) -> Result<Duration> {
    let start = Instant::now();
    let children: Result<Vec<Child>> = commands
        .iter_mut()
        .map(|command| command.spawn().context("start a program"))
        .collect();
    let statuses: Vec<_> = children?
        .into_iter()
        .map(|mut child| child.wait())
        .collect();
    let time = start.elapsed();
    for (status, command) in statuses.into_iter().zip(commands) {
        let status = status?;
        ensure!(status.success(), "{command:?}: {status}");
    }
    Ok(time)
}
