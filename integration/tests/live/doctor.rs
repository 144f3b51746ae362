// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap doctor`: faults are planted on real daemons, found, and mended as it says.

pub(crate) mod daemon;
pub(crate) mod images;
pub(crate) mod later;
pub(crate) mod leftovers;
pub(crate) mod settings;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use resnap_integration::daemon::{Containerd, Options};
use resnap_integration::debian::Dist;
use resnap_integration::image::pause;
use serde_json::Value;

use crate::command::{CommandOutput, run_to_end};
use crate::node::{Node, unique};
use crate::served::Served;

/// Prints the version of a `mkfs.erofs` without known faults.
const MKFS: &str = "#!/bin/sh\necho 'mkfs.erofs (erofs-utils) 1.9.4'\n";

/// A node that is well, with a daemon.
struct Bed {
    node: Node,
    served: Served,
    kubelet_root: PathBuf,
}

impl Bed {
    /// Starts a node of the version of `shared`, with this configuration of resnap.
    fn start(shared: &Node, options: Options, config: &str) -> Result<Self> {
        Self::of(shared.containerd.dist(), options, config)
    }

    fn of(dist: &Dist, options: Options, config: &str) -> Result<Self> {
        let containerd = Containerd::start(dist, options)?;
        let node = Node {
            containerd: Arc::new(containerd),
            namespace: "k8s.io".to_owned(),
        };
        let mkfs = node.containerd.root().with_file_name("bin/mkfs.erofs");
        fs::write(&mkfs, MKFS)?;
        fs::set_permissions(&mkfs, fs::Permissions::from_mode(0o755))?;
        node.import(&pause()?)?;
        node.unpack("overlayfs", &pause()?.reference)?;
        let kubelet_root = node.containerd.scratch().join("kubelet");
        let config = config_of(&kubelet_root, config);
        let served = Served::configured(&node, node.containerd.socket(), &config)?;
        let bed = Self {
            node,
            served,
            kubelet_root,
        };
        bed.wait_for_daemon()?;
        Ok(bed)
    }

    fn wait_for_daemon(&self) -> Result<()> {
        crate::poll::eventually("the daemon serves", crate::poll::DEADLINE, || {
            Ok(run_to_end(self.command()?.arg("jobs"))?.code == Some(0))
        })
    }

    /// Returns `resnap` for this node and its daemon.
    fn command(&self) -> Result<Command> {
        let mut command = self.node.resnap_command()?;
        command
            .env("RESNAP_RUNTIME_DIR", &self.served.dir)
            .env("RESNAP_CONFIG", self.config());
        Ok(command)
    }

    /// Runs `resnap doctor`.
    fn doctor(&self, arguments: &[&str]) -> Result<Examined> {
        Examined::by(self.command()?.args(["doctor", "--json"]).args(arguments))
    }

    /// Runs `resnap doctor` with another configuration than the daemon's.
    fn doctor_with(&self, config: &str, arguments: &[&str]) -> Result<Examined> {
        let path = self.node.containerd.scratch().join(unique("config"));
        edit(&path, config_of(&self.kubelet_root, config))?;
        let mut command = self.command()?;
        command.env("RESNAP_CONFIG", path);
        Examined::by(command.args(["doctor", "--json"]).args(arguments))
    }

    /// Returns the configuration file of the daemon.
    fn config(&self) -> PathBuf {
        self.served.dir.join("config.toml")
    }

    fn assert_well(&self) -> Result<()> {
        self.doctor(&[])?.assert_found(&[])?;
        let shown = run_to_end(self.command()?.arg("doctor"))?.ok()?;
        ensure!(shown.contains("this node is well"), "{shown}");
        Ok(())
    }
}

/// Returns a configuration with a directory of kubelet's own: there may be another kubelet.
fn config_of(kubelet_root: &Path, config: &str) -> String {
    format!("cri.kubelet_root = {kubelet_root:?}\n{config}")
}

/// Writes a file as if it had been so from the start.
fn edit(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, text)?;
    changed_at(path, SystemTime::UNIX_EPOCH)
}

/// Moves the time of a file's last change past that of anything that runs.
fn touch(path: &Path) -> Result<()> {
    changed_at(path, SystemTime::now() + Duration::from_secs(60))
}

fn changed_at(path: &Path, time: SystemTime) -> Result<()> {
    Ok(File::options()
        .append(true)
        .open(path)?
        .set_modified(time)?)
}

/// Returns the command in a mount namespace of its own, after `script`.
fn behind(script: &str, command: &Command) -> Command {
    let mut wrapped = Command::new("unshare");
    let script = format!("set -e; {script}; exec \"$@\"");
    wrapped.args([
        "--mount",
        "--propagation",
        "slave",
        "sh",
        "-c",
        &script,
        "sh",
    ]);
    wrapped.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            wrapped.env(name, value);
        }
    }
    wrapped
}

/// The output of `resnap doctor --json`.
struct Examined {
    output: CommandOutput,
    document: Value,
}

impl Examined {
    fn by(command: &mut Command) -> Result<Self> {
        let output = run_to_end(command)?;
        let document = serde_json::from_str(&output.stdout);
        let document = document.with_context(|| format!("{output:?}"))?;
        Ok(Self { output, document })
    }

    fn findings(&self) -> impl Iterator<Item = &Value> {
        self.document["findings"].as_array().into_iter().flatten()
    }

    /// Checks that these are the IDs of all faults and warnings, that everything could be looked at, and that the
    /// exit code says so.
    fn assert_found(&self, ids: &[&str]) -> Result<()> {
        let urgent = self.findings().filter(|found| found["severity"] != "note");
        let found: BTreeSet<&str> = urgent.filter_map(|found| found["id"].as_str()).collect();
        let expected: BTreeSet<&str> = ids.iter().copied().collect();
        let told = || format!("want {expected:?}: {:#}", self.document);
        ensure!(found == expected, "{}", told());
        ensure!(
            self.document["unknown"] == serde_json::json!([]),
            "{}",
            told()
        );
        ensure!(self.document["well"] == expected.is_empty(), "{}", told());
        let code = i32::from(!expected.is_empty());
        ensure!(self.output.code == Some(code), "{:?}", self.output);
        Ok(())
    }

    /// Checks that these are the IDs of all faults and warnings, in this order.
    fn assert_order(&self, ids: &[&str]) -> Result<()> {
        let urgent = self.findings().filter(|found| found["severity"] != "note");
        let found: Vec<&str> = urgent.filter_map(|found| found["id"].as_str()).collect();
        ensure!(found == ids, "{found:?}");
        Ok(())
    }

    /// Checks that a check could not look, and the reason.
    fn assert_unknown(&self, id: &str, why: &str) -> Result<()> {
        let unknown = self.document["unknown"].as_array();
        let is_told = unknown.into_iter().flatten().any(|unknown| {
            unknown["id"] == id
                && unknown["why"]
                    .as_str()
                    .is_some_and(|text| text.contains(why))
        });
        ensure!(is_told, "{id} {why:?}: {:#}", self.document);
        Ok(())
    }

    /// Returns the way out of a finding, whose subject and reason have all these parts.
    fn way_out(&self, id: &str, parts: &[&str]) -> Result<&str> {
        let mut findings = self.findings().filter(|found| found["id"] == id);
        let has_parts = |found: &&Value| {
            let text = format!("{} {}", found["subject"], found["why"]);
            parts.iter().all(|part| text.contains(part))
        };
        let found = findings.find(has_parts);
        let found = found.with_context(|| format!("{id} {parts:?} in {:#}", self.document))?;
        found["way_out"].as_str().context("no way out")
    }

    /// Checks that the way out of a finding has all these parts.
    fn assert_way_out(&self, id: &str, about: &[&str], parts: &[&str]) -> Result<()> {
        let way_out = self.way_out(id, about)?;
        for part in parts {
            ensure!(way_out.contains(part), "{part:?} is not in {way_out:?}");
        }
        Ok(())
    }
}
