// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A namespace on a running containerd, and the commands for it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, ensure};
use resnap_core::{Labels, LeaseId, Resource, Scope, SnapshotInfo, SnapshotKey, SnapshotKind};
use resnap_integration::daemon::Containerd;
use resnap_integration::debian::output;
use resnap_integration::image::{self, Built};
use resnap_integration::tap::Tap;
use resnap_integration::tree::{self, Tree};
use serde_json::Value;

use crate::command::{CommandOutput, resnap, run_to_end};
use crate::connection::Connection;

/// A containerd and a namespace on it.
pub(crate) struct Node {
    pub(crate) containerd: Arc<Containerd>,
    pub(crate) namespace: String,
}

impl Node {
    /// Runs `ctr` on this node and namespace, and returns its output.
    pub(crate) fn ctr(&self, arguments: &[&str]) -> Result<String> {
        output(self.containerd.ctr(&self.namespace).args(arguments))
    }

    /// Runs `resnap` on this node and namespace.
    pub(crate) fn resnap(&self, arguments: &[&str]) -> Result<CommandOutput> {
        run_to_end(self.resnap_command()?.args(arguments))
    }

    /// `resnap` for this node and namespace, without sources of missing layers: containerd has the blobs
    /// of all other tests.
    pub(crate) fn resnap_command(&self) -> Result<Command> {
        let config = self.containerd.scratch().join("no-sources.toml");
        std::fs::write(&config, "sources.order = []\n")?;
        let mut command = resnap()?;
        command
            .env("CONTAINERD_ADDRESS", self.containerd.socket())
            .env(
                "RESNAP_RUNTIME_DIR",
                self.containerd.socket().with_file_name("r"),
            )
            // Not the configuration of this machine.
            .env("RESNAP_CONFIG", config)
            .args(["--namespace", &self.namespace]);
        Ok(command)
    }

    /// `resnap` for this node and namespace, with this configuration file.
    pub(crate) fn configured_command(&self, config: &str) -> Result<Command> {
        let path = self.containerd.scratch().join(unique("config"));
        std::fs::write(&path, config)?;
        let mut command = self.resnap_command()?;
        command.env("RESNAP_CONFIG", path);
        Ok(command)
    }

    /// `resnap` through a tap, which sees every layer: containerd's differ writes them.
    pub(crate) fn tapped_command(&self, tap: &Tap) -> Result<Command> {
        let mut command = self.command_with_differ("containerd")?;
        command.env("CONTAINERD_ADDRESS", tap.socket());
        Ok(command)
    }

    /// `resnap` for this node and namespace, with this differ for all layers.
    pub(crate) fn command_with_differ(&self, differ: &str) -> Result<Command> {
        self.configured_command(&differ_config(differ))
    }

    /// Unpacks an image with this differ and returns the report.
    pub(crate) fn unpack_with_differ(
        &self,
        differ: &str,
        snapshotter: &str,
        image: &str,
    ) -> Result<Value> {
        let mut command = self.command_with_differ(differ)?;
        command.args(["unpack", "--json", image, "--snapshotter", snapshotter]);
        run_to_end(&mut command)?.report()
    }

    /// Imports an image without unpacking it.
    pub(crate) fn import(&self, image: &Built) -> Result<()> {
        let archive = image.archive.to_string_lossy();
        self.ctr(&[
            "images",
            "import",
            "--all-platforms",
            "--no-unpack",
            &archive,
        ])?;
        Ok(())
    }

    /// Unpacks an image with resnap and returns the report.
    pub(crate) fn unpack(&self, snapshotter: &str, image: &str) -> Result<Value> {
        self.resnap(&["unpack", "--json", image, "--snapshotter", snapshotter])?
            .report()
    }

    /// Does what containerd does for a pull or a first container: unpacks what is missing, without
    /// the labels of the CRI. The `ctr` of containerd 1.6 does so for overlayfs, whatever it is told.
    pub(crate) fn unpack_by_containerd(&self, snapshotter: &str, image: &str) -> Result<()> {
        // There is no `ctr images unpack` on every version, and mounting an image unpacks it.
        let dir = self.containerd.scratch().join(unique("mnt"));
        std::fs::create_dir_all(&dir)?;
        let at = dir.to_string_lossy();
        self.ctr(&["images", "mount", "--snapshotter", snapshotter, image, &at])?;
        self.ctr(&[
            "images",
            "unmount",
            "--snapshotter",
            snapshotter,
            "--rm",
            &at,
        ])?;
        Ok(())
    }

    /// Returns the tree that a container of the image sees.
    pub(crate) fn tree(&self, snapshotter: &str, image: &str) -> Result<Tree> {
        self.containerd
            .look_into(&self.namespace, snapshotter, image, tree::read)
    }

    /// Returns the output of a container of the image.
    pub(crate) fn run(&self, snapshotter: &str, image: &str) -> Result<String> {
        let output = self
            .containerd
            .run(&self.namespace, snapshotter, image, &[]);
        Ok(output?.trim().to_owned())
    }

    /// Returns the labels of a snapshot.
    pub(crate) fn labels(&self, snapshotter: &str, key: &str) -> Result<BTreeMap<String, String>> {
        let Connection { runtime, ports } = self.connect()?;
        let on = ports.snapshotters.snapshotter(snapshotter);
        let info = runtime.block_on(on.stat(&self.scope(), &SnapshotKey::from(key.to_owned())))?;
        Ok(info.labels)
    }

    /// Returns the snapshots on a snapshotter by their keys.
    pub(crate) fn snapshots(&self, snapshotter: &str) -> Result<BTreeMap<String, SnapshotInfo>> {
        let Connection { runtime, ports } = self.connect()?;
        let on = ports.snapshotters.snapshotter(snapshotter);
        let snapshots = runtime.block_on(on.list(&self.scope()))?;
        Ok(snapshots
            .into_iter()
            .map(|info| (info.key.as_str().to_owned(), info))
            .collect())
    }

    /// Returns the numbers of active and of committed snapshots on a snapshotter.
    pub(crate) fn kinds(&self, snapshotter: &str) -> Result<(usize, usize)> {
        let snapshots = self.snapshots(snapshotter)?;
        let count = |kind| snapshots.values().filter(|have| have.kind == kind).count();
        Ok((count(SnapshotKind::Active), count(SnapshotKind::Committed)))
    }

    /// Keeps a snapshot, with those below it, by a new lease. Returns its name.
    pub(crate) fn keep(&self, snapshotter: &str, key: &str) -> Result<String> {
        let Connection { runtime, ports } = self.connect()?;
        let (scope, name) = (self.scope(), unique("keeper"));
        let lease = LeaseId(name.clone().into());
        let snapshot = Resource::Snapshot {
            snapshotter: snapshotter.to_owned(),
            key: SnapshotKey::from(key.to_owned()),
        };
        runtime.block_on(async {
            ports.leases.create(&scope, &lease, &Labels::new()).await?;
            ports.leases.add_resource(&scope, &lease, &snapshot).await
        })?;
        Ok(name)
    }

    fn connect(&self) -> Result<Connection> {
        Connection::new(&self.containerd)
    }

    fn scope(&self) -> Scope {
        Scope::new(&self.namespace)
    }

    /// Returns the leases of the namespace.
    pub(crate) fn leases(&self) -> Result<Vec<String>> {
        let Connection { runtime, ports } = self.connect()?;
        let leases = runtime.block_on(ports.leases.list(&self.scope(), None))?;
        Ok(leases
            .into_iter()
            .map(|lease| lease.id.0.to_string())
            .collect())
    }

    /// Checks that resnap left no lease and no active snapshot.
    pub(crate) fn assert_nothing_left(&self, snapshotter: &str) -> Result<()> {
        let leases = self.leases()?;
        ensure!(leases.is_empty(), "leases are left: {leases:?}");
        self.assert_no_active_snapshot(snapshotter)
    }

    /// Checks that all snapshots are committed.
    pub(crate) fn assert_no_active_snapshot(&self, snapshotter: &str) -> Result<()> {
        let snapshots = self.snapshots(snapshotter)?;
        let active: Vec<_> = snapshots
            .iter()
            .filter(|(_, info)| info.kind != SnapshotKind::Committed)
            .collect();
        ensure!(
            active.is_empty(),
            "snapshots are left on {snapshotter}: {active:?}"
        );
        Ok(())
    }

    /// Runs a garbage collection now and waits for it.
    pub(crate) fn collect_garbage(&self) -> Result<()> {
        let Connection { runtime, ports } = self.connect()?;
        Ok(runtime.block_on(ports.leases.collect_garbage(&self.scope()))?)
    }

    pub(crate) fn in_new_namespace(&self) -> Self {
        Self {
            containerd: Arc::clone(&self.containerd),
            namespace: unique("beside"),
        }
    }

    pub(crate) fn targets(&self) -> impl Iterator<Item = &'static str> {
        let erofs = self.containerd.has_erofs().then_some("erofs");
        ["overlayfs", "native"].into_iter().chain(erofs)
    }

    pub(crate) fn snapshotter_root(&self, snapshotter: &str) -> PathBuf {
        let root = self.containerd.root();
        root.join(format!("io.containerd.snapshotter.v1.{snapshotter}"))
    }

    /// Returns the staging directories, one for each process and batch.
    pub(crate) fn staged(&self, snapshotter: &str) -> Result<Vec<PathBuf>> {
        let dir = self.snapshotter_root(snapshotter).join(".resnap");
        if !dir.exists() {
            return Ok(Vec::new());
        }
        let entries = std::fs::read_dir(dir)?;
        entries.map(|entry| Ok(entry?.path())).collect()
    }
}

/// Returns a configuration with this differ for all layers.
pub(crate) fn differ_config(differ: &str) -> String {
    ["overlayfs", "native", "erofs"]
        .map(|snapshotter| format!("snapshotters.{snapshotter}.differ = {differ:?}\n"))
        .concat()
}

/// Returns the platform of this machine, such as `linux/amd64`.
pub(crate) fn host_platform() -> String {
    let (os, architecture) = image::host_platform();
    format!("{os}/{architecture}")
}

/// Returns a name that no other test of this run uses.
pub(crate) fn unique(stem: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("{stem}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
