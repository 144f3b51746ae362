// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Real daemons, each with folders, sockets and children of its own.
//!
//! | what | where |
//! |---|---|
//! | data, state, logs | `<target>/integration/run/<run>/<n>/`, mounted at `/run/resnap-data/<n>/` |
//! | sockets, runc's state | `/run/resnap-test/<n>/`, on the run's own tmpfs |
//!
//! [`in_private_namespaces`] comes first in `main`; then any number of
//! [`Containerd`]s can run side by side, also of one version.

mod config;
mod mount_helper;
mod namespaces;
mod options;
mod process;
mod processes;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

pub use mount_helper::MountHelperCall;
pub use namespaces::in_private_namespaces;
pub use options::Options;

use namespaces::SOCKETS;
pub(crate) use namespaces::{run_dir, run_name};
use processes::Processes;

use crate::debian::{Dist, output};
use crate::tap::Tap;

/// Numbers daemons and containers; no number is given twice in a run.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// A running containerd; dropping it ends its processes and removes its files.
#[derive(Debug)]
pub struct Containerd {
    processes: Processes,
    snapshotters: BTreeSet<String>,
}

impl Containerd {
    /// Starts the daemons and waits until they answer.
    pub fn start(dist: &Dist, options: Options) -> Result<Self> {
        let run = namespaces::run_dir()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
        let sockets = Path::new(SOCKETS).join(&number);
        // A start that fails ends what it has started when this is dropped.
        let mut this = Self {
            processes: Processes::new(dist, run.join(&number), sockets),
            snapshotters: BTreeSet::new(),
        };
        this.processes.lay_out(&options)?;
        if options.nydus {
            this.processes.start_nydus()?;
        }
        this.snapshotters = this.processes.start_containerd()?;
        Ok(this)
    }

    /// Returns the name of the release, such as `containerd 1.7.24`.
    pub fn name(&self) -> String {
        self.processes.dist.name()
    }

    /// Returns the programs of this release.
    pub fn dist(&self) -> &Dist {
        &self.processes.dist
    }

    /// Returns the version that the daemon's program reports.
    pub fn version(&self) -> (u32, u32, u32) {
        self.processes.dist.version()
    }

    /// Returns the socket of containerd and its CRI.
    pub fn socket(&self) -> &Path {
        &self.processes.socket
    }

    /// Returns the path of the socket at which a diff plugin is asked ([`Options::diff_plugin`]).
    pub fn diff_socket(&self) -> PathBuf {
        self.processes.sockets.join(config::DIFF_SOCKET)
    }

    /// Starts a tap in front of this containerd; it reconnects after restarts.
    pub fn tap(&self) -> Result<Tap> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Tap::start(
            &self.processes.sockets.join(format!("tap{number}.sock")),
            &self.processes.socket,
        )
    }

    /// Returns the process ID of containerd while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.processes.pid()
    }

    /// containerd's own `root`: `io.containerd.content.v1.content` and so on.
    pub fn root(&self) -> PathBuf {
        self.processes.root.join("root")
    }

    /// Returns a folder for the test's own files (logs of pods, bundles), removed with
    /// the daemon.
    pub fn scratch(&self) -> PathBuf {
        self.processes.scratch()
    }

    /// Returns the tree that pods on the `nydus` handler see; tests may add to it.
    pub fn guest_root(&self) -> PathBuf {
        self.processes.guest_root()
    }

    /// Returns the snapshotters that the daemon reports as working.
    pub fn snapshotters(&self) -> &BTreeSet<String> {
        &self.snapshotters
    }

    /// Returns whether there is a working erofs snapshotter.
    pub fn has_erofs(&self) -> bool {
        self.snapshotters.contains("erofs")
    }

    /// Runs a container of an image that is here to its end, and returns what it
    /// wrote to stdout and stderr; `ctr` unpacks for the snapshotter what is not unpacked yet.
    pub fn run(
        &self,
        namespace: &str,
        snapshotter: &str,
        image: &str,
        command: &[&str],
    ) -> Result<String> {
        let id = container_id()?;
        // `ctr` may lose output in its pipes if the process exits immediately.
        let log = self.scratch().join(&id);
        let log_uri = format!("file://{}", log.display());
        let on = ["--snapshotter", snapshotter, "--log-uri", &log_uri];
        let ran = output(
            self.ctr(namespace)
                .args(["run", "--rm"])
                .args(on)
                .args([image, &id])
                .args(command),
        );
        // A container that was not started wrote nothing.
        let output = fs::read_to_string(&log).unwrap_or_default();
        ran.with_context(|| {
            format!(
                "run {image} on {snapshotter} of {}; it wrote {output:?}",
                self.name()
            )
        })?;
        Ok(output)
    }

    /// Calls `look` with the root of a container of an image, as its first process finds it;
    /// needs a `sleep` in the image, which is unpacked as by [`Containerd::run`].
    ///
    /// This way it is containerd that mounts, whatever mounts it thinks of.
    pub fn look_into<T>(
        &self,
        namespace: &str,
        snapshotter: &str,
        image: &str,
        look: impl FnOnce(&Path) -> Result<T>,
    ) -> Result<T> {
        let id = container_id()?;
        let ctr = |words: &[&str]| output(self.ctr(namespace).args(words));
        let run = ["run", "--detach", "--snapshotter", snapshotter, image, &id];
        let sleeping = ctr(&[&run[..], &["sleep", "3600"]].concat());
        let tasks = "io.containerd.runtime.v2.task";
        let rootfs = self
            .processes
            .root
            .join(tasks)
            .join(namespace)
            .join(&id)
            .join("rootfs");
        let seen = sleeping.and_then(|_| look(&rootfs));
        let removed = ctr(&["task", "rm", "--force", &id])
            .and_then(|_| ctr(&["containers", "rm", &id]))
            .with_context(|| format!("remove container {id}"));
        let seen = seen.with_context(|| format!("look into {image} on {snapshotter}"))?;
        removed.map(|_| seen)
    }

    /// `ctr` for this daemon and the namespace.
    ///
    /// A `ctr run` needs a container ID that no other daemon has in a namespace
    /// of that name, also in another run: the control group goes by these two.
    /// [`Containerd::run`] sees to it.
    pub fn ctr(&self, namespace: &str) -> Command {
        self.processes.ctr(namespace)
    }

    /// Returns the logs of containerd and nydus so far.
    pub fn log(&self) -> String {
        self.processes.log()
    }

    /// Returns the log of nydus so far, which has the labels of every Prepare.
    pub fn nydus_log(&self) -> String {
        self.processes.read_log("nydus")
    }

    /// Returns the calls of the stand-in `mount.fuse`, oldest first.
    ///
    /// A sandbox makes one call; a container makes two, as containerd mounts its
    /// root once itself to look up users before the shim does.
    pub fn mount_helper_calls(&self) -> Result<Vec<MountHelperCall>> {
        mount_helper::read_calls(&self.processes.root.join("calls"))
    }

    /// Kills containerd as a crash would; nydus and the shims stay.
    pub fn kill(&self) -> Result<()> {
        self.processes
            .take()
            .map_or(Ok(()), |mut child| process::kill(&mut child))
    }

    /// Starts containerd again with the same files; one that runs is ended first.
    pub fn restart(&self) -> Result<()> {
        if let Some(mut child) = self.processes.take() {
            process::end(&mut child)?;
        }
        self.processes.start_containerd().map(drop)
    }

    /// Ends all processes and removes their files. The error names everything that failed.
    pub fn stop(mut self) -> Result<()> {
        self.processes.clean_up()
    }
}

/// Returns an ID that no container has had in this run or another one.
fn container_id() -> Result<String> {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let run = namespaces::run_name()?;
    Ok(format!("resnap-{run}-{number}"))
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // A test that wants to know calls stop(); the namespaces end the rest.
        let _ = self.processes.clean_up();
    }
}
