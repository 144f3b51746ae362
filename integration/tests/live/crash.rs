// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Kills, restarts, lost replies, hangs, expiries and signals: whatever ends a run, the next one
//! goes on from the committed layers, and after it nothing of ours is left.

pub(crate) mod expiry;
pub(crate) mod hangs;
pub(crate) mod killed;
pub(crate) mod restart;
pub(crate) mod stopped;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use resnap_containerd::Client;
use resnap_integration::image::{Built, hello};
use resnap_integration::tap::Tap;
use resnap_unpacker::{Engine, EngineSettings, Request};
use tokio::runtime::{Builder, Runtime};

use crate::command::run_to_end;
use crate::node::{Node, unique};
use crate::poll::{DEADLINE, eventually};
use crate::unpack::assert_labels;

/// An image of three layers in a namespace of its own, a tap on the way there, and a runtime
/// directory of its own.
struct Setup {
    node: Node,
    image: Built,
    tap: Tap,
    runtime_dir: PathBuf,
}

impl Setup {
    fn new(node: &Node) -> Result<Self> {
        let node = Node {
            containerd: Arc::clone(&node.containerd),
            namespace: unique("crash"),
        };
        let image = hello()?;
        node.import(&image)?;
        Ok(Self {
            tap: node.containerd.tap()?,
            runtime_dir: node.containerd.scratch().join(unique("runtime")),
            image,
            node,
        })
    }

    /// `resnap` with the runtime directory, not through the tap.
    fn resnap(&self, arguments: &[&str]) -> Result<Command> {
        // All by containerd's differ, so that a tap would see it.
        let mut command = self.node.tapped_command(&self.tap)?;
        command.env("CONTAINERD_ADDRESS", self.node.containerd.socket());
        command
            .env("RESNAP_RUNTIME_DIR", &self.runtime_dir)
            .args(arguments);
        Ok(command)
    }

    /// `resnap unpack` of the image, not through the tap.
    fn unpack(&self, snapshotter: &str) -> Result<Command> {
        let image = &self.image.reference;
        self.resnap(&["unpack", "--json", "--snapshotter", snapshotter, image])
    }

    /// `resnap unpack` of the image through the tap.
    fn tapped(&self, snapshotter: &str) -> Result<Command> {
        let mut command = self.unpack(snapshotter)?;
        command.env("CONTAINERD_ADDRESS", self.tap.socket());
        Ok(command)
    }

    /// Checks that the next run finds this many layers and makes the rest, all with their labels, and that
    /// then nothing is left.
    fn goes_on_from(&self, existed: usize, snapshotter: &str) -> Result<()> {
        let report = run_to_end(&mut self.unpack(snapshotter)?)?.report()?;
        let layers = report["layers"].as_array().context("no layers")?;
        let outcomes: Vec<&str> = layers
            .iter()
            .filter_map(|layer| layer["outcome"].as_str())
            .collect();
        let mut want = vec!["existed"; existed];
        want.resize(self.image.layers.len(), "applied");
        ensure!(outcomes == want, "{outcomes:?}, want {want:?}");
        self.is_whole(snapshotter)
    }

    /// Checks that all layers survive a garbage collection with their labels, and that nothing is left.
    fn is_whole(&self, snapshotter: &str) -> Result<()> {
        self.assert_nothing_left(snapshotter)?;
        self.node.collect_garbage()?;
        assert_labels(&self.node, snapshotter, &self.image, &[])
    }

    /// Checks that there is no lease, no active snapshot and no file of resnap.
    fn assert_nothing_left(&self, snapshotter: &str) -> Result<()> {
        self.node.assert_nothing_left(snapshotter)?;
        let files = files(&self.runtime_dir)?;
        ensure!(files.is_empty(), "files are left: {files:?}");
        Ok(())
    }

    /// Checks the numbers of active and committed snapshots.
    fn has(&self, active: usize, committed: usize, snapshotter: &str) -> Result<()> {
        let have = self.node.kinds(snapshotter)?;
        let want = (active, committed);
        ensure!(have == want, "{have:?} active and committed, want {want:?}");
        Ok(())
    }

    /// Returns an engine in this process, through the tap, and what is asked of it.
    async fn engine(
        &self,
        snapshotter: &str,
        call_timeout: Option<Duration>,
        lease_lifetime: Option<Duration>,
    ) -> Result<(Engine, Request)> {
        let mut client = Client::connect(&self.tap.socket().to_string_lossy()).await?;
        if let Some(limit) = call_timeout {
            client = client.with_call_timeout(limit);
        }
        let mut settings = EngineSettings::default();
        settings.runtime_dir = Some(self.runtime_dir.clone());
        if let Some(lifetime) = lease_lifetime {
            settings.lease_lifetime = lifetime;
        }
        let engine = Engine::new(client.ports(), &self.node.namespace, settings)?;
        Ok((engine, Request::new(&self.image.reference).on(snapshotter)))
    }
}

/// Returns the names in a directory, or none if it does not exist.
fn files(dir: &Path) -> Result<Vec<String>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(dir)?;
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Starts a command whose output is discarded.
fn start(command: &mut Command) -> Result<Child> {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("start {command:?}"))
}

/// Waits for a process and returns its status; one that does not end is killed.
fn wait_for_exit(child: &mut Child) -> Result<ExitStatus> {
    let mut status = None;
    let exited = eventually("the process ends", DEADLINE, || {
        status = child.try_wait()?;
        Ok(status.is_some())
    });
    if exited.is_err() {
        child.kill()?;
        child.wait()?;
    }
    exited?;
    status.context("no status")
}

/// Reads the output of a process until a line contains `text`.
fn until_said(stream: impl std::io::Read, text: &str) -> Result<()> {
    for line in BufReader::new(stream).lines() {
        if line?.contains(text) {
            return Ok(());
        }
    }
    anyhow::bail!("it exited without {text:?}")
}

fn runtime() -> Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    Ok(builder.worker_threads(1).enable_all().build()?)
}
