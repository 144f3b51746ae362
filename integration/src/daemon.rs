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
mod lifecycle;
mod mount_helper;
mod namespaces;
mod process;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

pub use mount_helper::MountHelperCall;
pub use namespaces::in_private_namespaces;

use crate::debian::{Dist, output};
use crate::tap::Tap;

/// A socket's path has at most 107 bytes, and a target directory may be deep.
const SOCKETS: &str = "/run/resnap-test";

/// Numbers daemons and containers; no number is given twice in a run.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// What differs between the containerds that tests start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Starts nydus-snapshotter in proxy mode too, as the snapshotter `nydus`
    /// and the runtime handler `nydus`; containerd 1.6 has no snapshotter for
    /// one handler, there it becomes the CRI's snapshotter.
    pub nydus: bool,
    /// The diff service's order; `None` is erofs before walking where there is
    /// an erofs differ.
    pub diff_order: Option<&'static [&'static str]>,
    /// The CRI's sandbox image.
    pub pause_image: String,
    /// Puts all of its files on a tmpfs of this size, such as `6g`.
    pub tmpfs: Option<&'static str>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nydus: false,
            diff_order: None,
            pause_image: "docker.io/library/pause:1".to_owned(),
            tmpfs: None,
        }
    }
}

/// A running containerd; dropping it ends its processes and removes its files.
#[derive(Debug)]
pub struct Containerd {
    dist: Dist,
    root: PathBuf,
    sockets: PathBuf,
    socket: PathBuf,
    containerd: Mutex<Option<Child>>,
    nydus: Option<Child>,
    snapshotters: BTreeSet<String>,
}

impl Containerd {
    /// Starts the daemons and waits until they answer.
    pub fn start(dist: &Dist, options: Options) -> Result<Self> {
        let run = namespaces::run_dir()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
        let sockets = Path::new(SOCKETS).join(&number);
        let mut this = Self {
            dist: dist.clone(),
            root: run.join(&number),
            socket: sockets.join("c.sock"),
            sockets,
            containerd: Mutex::default(),
            nydus: None,
            snapshotters: BTreeSet::new(),
        };
        this.lay_out(&options)?;
        if options.nydus {
            this.start_nydus()?;
        }
        this.snapshotters = this.start_containerd()?;
        Ok(this)
    }

    /// Such as `containerd 1.7.24`.
    pub fn name(&self) -> String {
        self.dist.name()
    }

    /// Its programs.
    pub fn dist(&self) -> &Dist {
        &self.dist
    }

    /// As the daemon's program reports it.
    pub fn version(&self) -> (u32, u32, u32) {
        self.dist.version()
    }

    /// Where containerd and its CRI listen.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A new tap between clients that come to its socket and this containerd, also after restarts.
    pub fn tap(&self) -> Result<Tap> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Tap::start(
            &self.sockets.join(format!("tap{number}.sock")),
            &self.socket,
        )
    }

    /// The process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        let lock = self.containerd.lock();
        let child = lock.unwrap_or_else(PoisonError::into_inner);
        child.as_ref().map(Child::id)
    }

    /// containerd's own `root`: `io.containerd.content.v1.content` and so on.
    pub fn root(&self) -> PathBuf {
        self.root.join("root")
    }

    /// A folder for the test's own files (logs of pods, bundles), removed with
    /// the daemon.
    pub fn scratch(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// The tree that pods on the `nydus` handler see; tests may add to it.
    pub fn guest_root(&self) -> PathBuf {
        self.root.join("guest")
    }

    /// The snapshotters that the daemon reports as working.
    pub fn snapshotters(&self) -> &BTreeSet<String> {
        &self.snapshotters
    }

    /// Whether there is a working erofs snapshotter.
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
        // Of a process that ends at once, `ctr` may lose what comes through its pipes.
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
        let said = fs::read_to_string(&log).unwrap_or_default();
        ran.with_context(|| {
            format!(
                "run {image} on {snapshotter} of {}; it wrote {said:?}",
                self.name()
            )
        })?;
        Ok(said)
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

    /// What containerd and nydus wrote so far.
    pub fn log(&self) -> String {
        self.read_log("containerd") + &self.nydus_log()
    }

    /// What nydus wrote so far: with the labels of every Prepare.
    pub fn nydus_log(&self) -> String {
        self.read_log("nydus")
    }

    fn read_log(&self, name: &str) -> String {
        // A daemon that was not started has none.
        let log = fs::read(self.root.join(format!("{name}.log"))).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// What the stand-in `mount.fuse` was called with, oldest first.
    ///
    /// A sandbox makes one call; a container makes two, as containerd mounts its
    /// root once itself to look up users before the shim does.
    pub fn mount_helper_calls(&self) -> Result<Vec<MountHelperCall>> {
        mount_helper::read_calls(&self.root.join("calls"))
    }

    /// Kills containerd as a crash would; nydus and the shims stay.
    pub fn kill(&self) -> Result<()> {
        self.take()
            .map_or(Ok(()), |mut child| process::kill(&mut child))
    }

    /// Starts containerd again with the same files; one that runs is ended first.
    pub fn restart(&self) -> Result<()> {
        if let Some(mut child) = self.take() {
            process::end(&mut child)?;
        }
        self.start_containerd().map(drop)
    }

    /// The process of containerd, of which the caller is in charge then.
    fn take(&self) -> Option<Child> {
        let lock = self.containerd.lock();
        lock.unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Ends everything and removes it, and says what of it failed.
    pub fn stop(mut self) -> Result<()> {
        self.clean_up()
    }
}

/// An ID that no container has had in this run or another one.
fn container_id() -> Result<String> {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let run = namespaces::run_name()?;
    Ok(format!("resnap-{run}-{number}"))
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // A test that wants to know calls stop(); the namespaces end the rest.
        let _ = self.clean_up();
    }
}
