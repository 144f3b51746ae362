// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A directory in a node's place, with a stand-in for its programs.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, bail};
use async_trait::async_trait;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::install::host::Programs;
use crate::install::{Facts, Host, Outcome, Run};

pub(super) const DROP_IN: &str = "etc/systemd/system/kubelet.service.d/10-resnap.conf";

pub(super) const RELOAD: &str = "systemctl daemon-reload";
pub(super) const ENABLE: &str = "systemctl enable --now resnap.socket resnap.service";
pub(super) const ASK: &str = "/usr/local/bin/resnap --address /run/resnap/cri.sock snapshotters";
pub(super) const RESTART: &str = "systemctl restart resnap.service";
pub(super) const RESTART_KUBELET: &str = "systemctl restart kubelet.service";
pub(super) const DISABLE: &str = "systemctl disable --now resnap.socket resnap.service";

/// The node as the stand-in knows it.
#[derive(Default)]
pub(super) struct State {
    pub(super) ran: Vec<String>,
    /// The command that fails.
    pub(super) fails: Option<&'static str>,
    pub(super) is_installed: bool,
    /// The process ID of kubelet.
    pub(super) kubelet: &'static str,
    pub(super) root: PathBuf,
    /// Cancelled by the command that fails.
    pub(super) stop: Option<CancellationToken>,
}

impl State {
    pub(super) fn start_kubelet(&self) {
        let line = match self.root.join(DROP_IN).exists() {
            true => "kubelet\0--container-runtime-endpoint=unix:///run/resnap/cri.sock\0",
            false => "kubelet\0",
        };
        fs::write(self.root.join("proc/77/cmdline"), line).unwrap();
    }
}

#[derive(Clone, Default)]
pub(super) struct Systemd(Arc<Mutex<State>>);

impl Systemd {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Programs for Systemd {
    async fn run(&self, words: &[&str]) -> Result<String> {
        let mut state = self.state();
        let line = words.join(" ");
        if words[1] == "show" {
            let word = if state.is_installed {
                ["active", "enabled"]
            } else {
                ["inactive", "disabled"]
            };
            return Ok(format!(
                "LoadState=loaded\nExecStart={{ argv[]=/usr/bin/kubelet $KUBELET_EXTRA_ARGS ; }}\n\
                 EnvironmentFiles=/etc/default/kubelet (ignore_errors=yes)\nMainPID={}\n\
                 ActiveState={}\nUnitFileState={}\n",
                state.kubelet, word[0], word[1]
            ));
        }
        state.ran.push(line.clone());
        if state.fails == Some(line.as_str()) {
            if let Some(stop) = state.stop.take() {
                stop.cancel();
                return Ok(String::new());
            }
            bail!("`{line}` failed");
        }
        match line.as_str() {
            ENABLE => state.is_installed = true,
            DISABLE => state.is_installed = false,
            RESTART_KUBELET => state.start_kubelet(),
            _ => {}
        }
        Ok(String::new())
    }
}

/// A node.
pub(super) struct Node {
    pub(super) dir: TempDir,
    pub(super) systemd: Systemd,
    pub(super) host: Host,
}

impl Node {
    pub(super) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let systemd = Systemd::default();
        let host = Host {
            root: dir.path().to_owned(),
            programs: Box::new(systemd.clone()),
        };
        systemd.state().root = dir.path().to_owned();
        systemd.state().kubelet = "77";
        let node = Self { dir, systemd, host };
        node.write("proc/77/cmdline", "kubelet\0");
        node.write("opt/resnap", "the first");
        for directory in ["etc/systemd/system", "usr/local/bin", "var/lib"] {
            fs::create_dir_all(node.dir.path().join(directory)).unwrap();
        }
        node
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(super) fn set_mode(&self, name: &str, mode: u32) {
        let path = self.dir.path().join(name);
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    /// Returns the modes of all files and directories.
    pub(super) fn modes(&self) -> Vec<u32> {
        let mode = |path: &PathBuf| fs::metadata(path).unwrap().permissions().mode();
        self.files().keys().map(mode).collect()
    }

    /// Returns all files and directories with their contents.
    pub(super) fn files(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let mut files = BTreeMap::new();
        let mut open = vec![self.dir.path().to_owned()];
        while let Some(path) = open.pop() {
            if path.is_dir() {
                open.extend(
                    fs::read_dir(&path)
                        .unwrap()
                        .map(|entry| entry.unwrap().path()),
                );
            }
            let content = fs::read(&path).ok();
            files.insert(path, content);
        }
        files
    }

    /// Returns the commands that a run ran, and how it ended.
    pub(super) fn run(
        &self,
        install: bool,
        fails: Option<&'static str>,
    ) -> (Vec<String>, Result<Outcome>) {
        self.run_until(install, fails, CancellationToken::new())
    }

    pub(super) fn run_until(
        &self,
        install: bool,
        fails: Option<&'static str>,
        stop: CancellationToken,
    ) -> (Vec<String>, Result<Outcome>) {
        self.systemd.state().ran.clear();
        self.systemd.state().fails = fails;
        let run = Run {
            host: &self.host,
            dry_run: false,
            stop,
        };
        let outcome = block_on(async {
            match install {
                true => run.install(&self.facts(), None).await,
                false => run.uninstall(&[]).await,
            }
        });
        (self.systemd.state().ran.clone(), outcome)
    }

    pub(super) fn facts(&self) -> Facts {
        Facts {
            program: self.dir.path().join("opt/resnap"),
            containerd: "/run/containerd/containerd.sock".to_owned(),
            address: None,
            roots: Vec::new(),
        }
    }
}

/// Returns what has to be done by hand.
pub(super) fn by_hand(outcome: Result<Outcome>) -> String {
    match outcome.unwrap() {
        Outcome::ByHand(text) => text,
        Outcome::Done { steps, .. } => panic!("{steps:?}"),
    }
}

pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().build().unwrap().block_on(future)
}
