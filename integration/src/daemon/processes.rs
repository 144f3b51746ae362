// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The processes of a containerd and its nydus, from start to end.

use std::collections::BTreeSet;
use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::mount::{MountFlags, mount};

use super::config::Plan;
use super::options::Options;
use super::{mount_helper, process};
use crate::debian::{Dist, output};

/// The time that a daemon has to answer after its start.
const START: Duration = Duration::from_secs(30);

/// The processes of a containerd, with their files.
#[derive(Debug)]
pub(super) struct Processes {
    pub(super) dist: Dist,
    /// The directory on disk.
    pub(super) root: PathBuf,
    /// The directory for sockets, whose paths have to be short.
    pub(super) sockets: PathBuf,
    /// The socket of containerd and its CRI.
    pub(super) socket: PathBuf,
    containerd: Mutex<Option<Child>>,
    nydus: Option<Child>,
}

impl Processes {
    /// Returns the processes of `dist` with their files below `root` and `sockets`; none is started.
    pub(super) fn new(dist: &Dist, root: PathBuf, sockets: PathBuf) -> Self {
        Self {
            dist: dist.clone(),
            root,
            socket: sockets.join("c.sock"),
            sockets,
            containerd: Mutex::default(),
            nydus: None,
        }
    }

    pub(super) fn scratch(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(super) fn guest_root(&self) -> PathBuf {
        self.root.join("guest")
    }

    pub(super) fn pid(&self) -> Option<u32> {
        let lock = self.containerd.lock();
        let child = lock.unwrap_or_else(PoisonError::into_inner);
        child.as_ref().map(Child::id)
    }

    pub(super) fn ctr(&self, namespace: &str) -> Command {
        let mut command = Command::new(self.dist.bin().join("ctr"));
        command
            .env("PATH", self.path())
            .env("TMPDIR", self.scratch())
            .arg("--address")
            .arg(&self.socket)
            .args(["--namespace", namespace]);
        command
    }

    /// The daemon's own `mount.fuse` comes first; the system's mount comes last.
    fn path(&self) -> OsString {
        let dirs = [
            self.root.join("bin"),
            self.dist.bin().into(),
            self.dist.tools().into(),
        ];
        let mut path = OsString::new();
        for dir in dirs {
            path.push(dir);
            path.push(":");
        }
        path.push("/usr/sbin:/usr/bin:/sbin:/bin");
        path
    }

    pub(super) fn log(&self) -> String {
        self.read_log("containerd") + &self.read_log("nydus")
    }

    pub(super) fn read_log(&self, name: &str) -> String {
        // A daemon that was not started has none.
        let log = fs::read(self.root.join(format!("{name}.log"))).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Returns the process of containerd, of which the caller is in charge then.
    pub(super) fn take(&self) -> Option<Child> {
        let lock = self.containerd.lock();
        lock.unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn lay_out(&self, options: &Options) -> Result<()> {
        if let Some(size) = options.tmpfs {
            fs::create_dir_all(&self.root).with_context(|| format!("create {:?}", self.root))?;
            let data = CString::new(format!("mode=755,size={size}"))?;
            mount("tmpfs", &self.root, "tmpfs", MountFlags::empty(), &*data)
                .with_context(|| format!("mount a tmpfs on {:?}", self.root))?;
        }
        for dir in ["bin", "calls", "cni", "tmp"] {
            let dir = self.root.join(dir);
            fs::create_dir_all(&dir).with_context(|| format!("create {dir:?}"))?;
        }
        fs::create_dir_all(&self.sockets).with_context(|| format!("create {:?}", self.sockets))?;
        let plan = Plan {
            version: self.dist.version(),
            options,
            root: &self.root,
            sockets: &self.sockets,
            tools: self.dist.tools(),
        };
        for (file, text) in [
            ("containerd.toml", plan.containerd()),
            ("nydus.toml", plan.nydus()),
        ] {
            let path = self.root.join(file);
            fs::write(&path, text).with_context(|| format!("write {path:?}"))?;
        }
        let guest = self.guest_root();
        mount_helper::make_guest(&guest, &self.dist.tools().join("busybox"))?;
        let bin = self.root.join("bin");
        mount_helper::write(&bin, &self.root.join("calls"), &guest)?;
        if options.nydus && self.dist.version() < (1, 7, 0) {
            // In 1.6's own shim the reaper races with the one that waits for
            // mount.fuse; it tries again on ECHILD, and gives up at times.
            let shim = "containerd-shim-runc-v2";
            symlink(self.dist.tools().join(shim), bin.join(shim))
                .with_context(|| format!("link {shim} into {bin:?}"))?;
        }
        Ok(())
    }

    pub(super) fn start_nydus(&mut self) -> Result<()> {
        let mut child = self.spawn("containerd-nydus-grpc", "nydus")?;
        let socket = self.sockets.join("nydus.sock");
        let ready = self.wait_for(&mut child, "nydus", || {
            Ok(UnixStream::connect(&socket).map(drop)?)
        });
        self.nydus = Some(child);
        ready
    }

    /// Starts containerd and returns its working snapshotters.
    pub(super) fn start_containerd(&self) -> Result<BTreeSet<String>> {
        let mut child = self.spawn("containerd", "containerd")?;
        let ready = self.wait_for(&mut child, "containerd", || {
            // Spares ctr a wait of its own on a socket that is not there yet.
            UnixStream::connect(&self.socket)?;
            output(self.ctr("default").args(["plugins", "ls"]))
        });
        let lock = self.containerd.lock();
        *lock.unwrap_or_else(PoisonError::into_inner) = Some(child);
        Ok(working_snapshotters(&ready?))
    }

    fn spawn(&self, program: &str, name: &str) -> Result<Child> {
        let log = self.root.join(format!("{name}.log"));
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open {log:?}"))?;
        Command::new(program)
            .env("PATH", self.path())
            .env("TMPDIR", self.scratch())
            .arg("--config")
            .arg(self.root.join(format!("{name}.toml")))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {program} of {}", self.dist.name()))
    }

    /// Polls until `ready`; fails with the last reason and the log when the
    /// daemon ends or the time is over.
    fn wait_for<T>(
        &self,
        child: &mut Child,
        name: &str,
        mut ready: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + START;
        loop {
            let error = match ready() {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let status = child.try_wait()?;
            if status.is_some() || Instant::now() > deadline {
                let why = match status {
                    Some(status) => format!("ended by itself: {status}"),
                    None => format!("does not answer after {START:?}"),
                };
                let (daemon, log) = (self.dist.name(), self.log());
                return Err(error.context(format!("{name} of {daemon} {why}; its log:\n{log}")));
            }
            std::thread::sleep(process::POLL);
        }
    }

    pub(super) fn clean_up(&mut self) -> Result<()> {
        if !self.root.exists() {
            return Ok(());
        }
        let mut errors = Vec::new();
        let mut attempt = |result: Result<()>| errors.extend(result.err());
        for mut child in [self.take(), self.nydus.take()].into_iter().flatten() {
            attempt(process::end(&mut child));
        }
        attempt(process::kill_shims(&self.socket));
        process::forget_tasks(&self.root);
        attempt(process::unmount_below(&self.root));
        attempt(process::unmount_below(&self.sockets));
        for dir in [&self.root, &self.sockets] {
            attempt(fs::remove_dir_all(dir).with_context(|| format!("remove {dir:?}")));
        }
        let Some(first) = errors.pop() else {
            return Ok(());
        };
        let all = errors
            .iter()
            .fold(first, |all, error| anyhow!("{error:#}; {all:#}"));
        Err(all.context(format!("end {}", self.dist.name())))
    }
}

/// Returns the working snapshotters in what `ctr plugins ls` prints: type, ID,
/// platforms and status.
fn working_snapshotters(plugins: &str) -> BTreeSet<String> {
    plugins
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|row| row.first() == Some(&"io.containerd.snapshotter.v1"))
        .filter(|row| row.last() == Some(&"ok"))
        .filter_map(|row| row.get(1).map(|&id| id.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::working_snapshotters;

    #[test]
    fn only_working_snapshotters_count() {
        let plugins = "TYPE                            ID         PLATFORMS      STATUS\n\
            io.containerd.content.v1        content    -              ok\n\
            io.containerd.snapshotter.v1    zfs        linux/amd64    skip\n\
            io.containerd.snapshotter.v1    nydus      -              ok\n\
            io.containerd.snapshotter.v1    overlayfs  linux/amd64    ok\n";
        let found = working_snapshotters(plugins);
        assert_eq!(Vec::from_iter(found), ["nydus", "overlayfs"]);
    }
}
