// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A directory in a node's place, with a stand-in for its programs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, bail};
use async_trait::async_trait;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::*;

const DROP_IN: &str = "etc/systemd/system/kubelet.service.d/10-resnap.conf";

const RELOAD: &str = "systemctl daemon-reload";
const ENABLE: &str = "systemctl enable --now resnap.socket resnap.service";
const ASK: &str = "/usr/local/bin/resnap --address /run/resnap/cri.sock snapshotters";
const RESTART: &str = "systemctl restart resnap.service";
const RESTART_KUBELET: &str = "systemctl restart kubelet.service";
const DISABLE: &str = "systemctl disable --now resnap.socket resnap.service";

/// The node as the stand-in knows it.
#[derive(Default)]
struct State {
    ran: Vec<String>,
    /// The command that fails.
    fails: Option<&'static str>,
    is_installed: bool,
    root: PathBuf,
    /// Cancelled by the command that fails.
    stop: Option<CancellationToken>,
}

impl State {
    fn start_kubelet(&self) {
        let drop_in = "etc/systemd/system/kubelet.service.d/10-resnap.conf";
        let line = match self.root.join(drop_in).exists() {
            true => "kubelet\0--container-runtime-endpoint=unix:///run/resnap/cri.sock\0",
            false => "kubelet\0",
        };
        fs::write(self.root.join("proc/77/cmdline"), line).unwrap();
    }
}

#[derive(Clone, Default)]
struct Systemd(Arc<Mutex<State>>);

impl Systemd {
    fn state(&self) -> MutexGuard<'_, State> {
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
                 EnvironmentFiles=/etc/default/kubelet (ignore_errors=yes)\nMainPID=77\n\
                 ActiveState={}\nUnitFileState={}\n",
                word[0], word[1]
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
struct Node {
    dir: TempDir,
    systemd: Systemd,
    host: Host,
}

impl Node {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let systemd = Systemd::default();
        let host = Host {
            root: dir.path().to_owned(),
            programs: Box::new(systemd.clone()),
        };
        systemd.state().root = dir.path().to_owned();
        let node = Self { dir, systemd, host };
        node.write("proc/77/cmdline", "kubelet\0");
        node.write("opt/resnap", "the first");
        for directory in ["etc/systemd/system", "usr/local/bin", "var/lib"] {
            fs::create_dir_all(node.dir.path().join(directory)).unwrap();
        }
        node
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Returns all files and directories with their contents.
    fn files(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
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
    fn run(&self, install: bool, fails: Option<&'static str>) -> (Vec<String>, Result<Outcome>) {
        self.run_until(install, fails, CancellationToken::new())
    }

    fn run_until(
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
                false => run.uninstall().await,
            }
        });
        (self.systemd.state().ran.clone(), outcome)
    }

    fn facts(&self) -> Facts {
        Facts {
            program: self.dir.path().join("opt/resnap"),
            containerd: "/run/containerd/containerd.sock".to_owned(),
            address: None,
            roots: Vec::new(),
        }
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().build().unwrap().block_on(future)
}

#[test]
fn it_installs_once_updates_and_removes_all() {
    let node = Node::new();
    let before = node.files();
    let (ran, outcome) = node.run(true, None);
    outcome.unwrap();
    let first = [RELOAD, ENABLE, ASK, RELOAD, RESTART_KUBELET];
    assert_eq!(ran, first);
    let program = node.dir.path().join("usr/local/bin/resnap");
    assert_eq!(fs::read_to_string(&program).unwrap(), "the first");

    let (ran, outcome) = node.run(true, None);
    assert!(matches!(outcome.unwrap(), Outcome::Steps(steps) if steps.is_empty()));
    assert!(ran.is_empty(), "{ran:?}");

    node.write("opt/resnap", "the second");
    let (ran, outcome) = node.run(true, None);
    outcome.unwrap();
    assert_eq!(ran, [RELOAD, ENABLE, RESTART, ASK]);
    assert_eq!(fs::read_to_string(&program).unwrap(), "the second");

    let (ran, outcome) = node.run(false, None);
    outcome.unwrap();
    assert_eq!(ran, [RELOAD, RESTART_KUBELET, DISABLE, RELOAD]);
    node.write("opt/resnap", "the first");
    assert_eq!(node.files(), before);
    let (ran, outcome) = node.run(false, None);
    assert!(matches!(outcome.unwrap(), Outcome::Steps(steps) if steps.is_empty()));
    assert!(ran.is_empty(), "{ran:?}");
}

#[test]
fn a_failure_leaves_the_node_as_it_was() {
    let node = Node::new();
    let before = node.files();
    for step in [RELOAD, ENABLE, ASK, RESTART_KUBELET] {
        // Reloads and restarts fail while they are undone, too, and the files are right nevertheless.
        let (ran, outcome) = node.run(true, Some(step));
        let error = format!("{:#}", outcome.err().unwrap());
        assert!(error.contains(&format!("`{step}` failed")), "{error}");
        assert_eq!(node.files(), before, "{step}");
        assert!(!node.systemd.state().is_installed, "{ran:?}");
    }
    // kubelet goes back before its runtime is stopped.
    let (ran, _) = node.run(true, Some(RESTART_KUBELET));
    let last: Vec<&str> = ran.iter().skip(5).map(String::as_str).collect();
    assert_eq!(last, [RELOAD, RESTART_KUBELET, DISABLE, RELOAD]);

    node.run(true, None).1.unwrap();
    let installed = node.files();
    for step in [RESTART_KUBELET, DISABLE, RELOAD] {
        let (_, outcome) = node.run(false, Some(step));
        outcome.err().unwrap();
        assert_eq!(node.files(), installed, "{step}");
        assert!(node.systemd.state().is_installed, "{step}");
    }
}

#[test]
fn an_update_that_fails_leaves_the_version_that_was_there() {
    let node = Node::new();
    node.run(true, None).1.unwrap();
    node.write("opt/resnap", "the second");
    let before = node.files();
    let (ran, outcome) = node.run(true, Some(ASK));
    outcome.err().unwrap();
    assert_eq!(ran, [RELOAD, ENABLE, RESTART, ASK, RELOAD, RESTART]);
    assert_eq!(node.files(), before);
}

#[test]
fn a_signal_undoes_what_was_done() {
    let node = Node::new();
    let before = node.files();
    let stop = CancellationToken::new();
    node.systemd.state().stop = Some(stop.clone());
    let (ran, outcome) = node.run_until(true, Some(ASK), stop);
    let error = format!("{:#}", outcome.err().unwrap());
    assert!(error.contains("stopped by a signal"), "{error}");
    assert_eq!(
        ran,
        [
            RELOAD,
            ENABLE,
            ASK,
            "systemctl disable --now resnap.socket resnap.service",
            RELOAD
        ]
    );
    assert_eq!(node.files(), before);
}

#[test]
fn files_of_others_are_kept() {
    let node = Node::new();
    node.write("etc/systemd/system/resnap.service", "theirs");
    let before = node.files();
    let (ran, outcome) = node.run(true, None);
    let error = format!("{:#}", outcome.err().unwrap());
    assert!(
        error.contains("resnap.service\" is there already"),
        "{error}"
    );
    assert!(ran.is_empty(), "{ran:?}");
    assert_eq!(node.files(), before);

    // The program that an operator has put there.
    let node = Node::new();
    node.write("usr/local/bin/resnap", "the first");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(node.dir.path().join("usr/local/bin/resnap"), mode).unwrap();
    let before = node.files();
    node.run(true, None).1.unwrap();
    node.run(false, None).1.unwrap();
    assert_eq!(node.files(), before);
}

#[test]
fn a_dry_run_shows_texts_and_differences() {
    let node = Node::new();
    let run = Run {
        host: &node.host,
        dry_run: true,
        stop: CancellationToken::new(),
    };
    let shown = |path: &str| {
        let outcome = block_on(run.install(&node.facts(), None)).unwrap();
        let Outcome::Steps(steps) = outcome else {
            panic!("something is to be done by hand");
        };
        let mut found = steps.into_iter().filter_map(|step| match step {
            Step::Write {
                path: written,
                text,
                difference,
            } => written.ends_with(path).then_some((text, difference)),
            _ => None,
        });
        found.next()
    };
    let before = node.files();
    let (text, _) = shown("resnap.service").unwrap();
    assert!(
        text.unwrap()
            .contains("ExecStart=/usr/local/bin/resnap serve")
    );
    assert_eq!(shown("bin/resnap"), Some((None, None)));
    assert_eq!(node.files(), before);

    node.run(true, None).1.unwrap();
    assert_eq!(shown("resnap.service"), None);
    let unit = "etc/systemd/system/resnap.service";
    let text = fs::read_to_string(node.dir.path().join(unit)).unwrap();
    node.write(unit, &text.replace("WatchdogSec=30", "WatchdogSec=5"));
    node.write("opt/resnap", "the second");
    let (text, difference) = shown("resnap.service").unwrap();
    assert_eq!(text, None);
    let difference = difference.unwrap();
    assert!(
        difference.contains("\n-WatchdogSec=5\n+WatchdogSec=30\n"),
        "{difference}"
    );
    let another = Some("another program\n".to_owned());
    assert_eq!(shown("bin/resnap"), Some((None, another)));
}

#[test]
fn a_variable_that_beats_the_drop_in_is_told() {
    let node = Node::new();
    let by_hand = |outcome: Result<Outcome>| match outcome.unwrap() {
        Outcome::ByHand(text) => text,
        Outcome::Steps(steps) => panic!("{steps:?}"),
    };
    node.write(
        "etc/default/kubelet",
        "# a comment\nKUBELET_EXTRA_ARGS=\"--v=2\"\n",
    );
    let text = by_hand(node.run(true, None).1);
    assert!(
        text.contains("/etc/default/kubelet sets KUBELET_EXTRA_ARGS"),
        "{text}"
    );

    let flag = "--container-runtime-endpoint=unix:///run/resnap/cri.sock";
    node.write(
        "etc/default/kubelet",
        &format!("KUBELET_EXTRA_ARGS=\"--v=2 {flag}\"\n"),
    );
    node.run(true, None).1.unwrap();
    // kubelet would have no runtime.
    let text = by_hand(node.run(false, None).1);
    assert!(text.contains(&format!("Take {flag} out")), "{text}");
    assert!(node.dir.path().join(DROP_IN).exists());
    node.write("etc/default/kubelet", "KUBELET_EXTRA_ARGS=\"--v=2\"\n");
    node.run(false, None).1.unwrap();
    assert!(!node.dir.path().join(DROP_IN).exists());
}

#[test]
fn an_interrupted_run_is_removed() {
    let node = Node::new();
    let before = node.files();
    let files = service::files(&node.facts()).unwrap();
    let record = Record::default().with(&node.host, files.iter()).unwrap();
    let mut changes = Changes::new(&node.host, false, CancellationToken::new());
    changes.write(&record.file().unwrap()).unwrap();
    changes.write(&files[0]).unwrap();
    drop(changes);
    assert_ne!(node.files(), before);
    node.run(false, None).1.unwrap();
    assert_eq!(node.files(), before);
    assert!(!Path::new(&node.dir.path().join("var/lib/resnap")).exists());
}
