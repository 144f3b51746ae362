// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `examples/kubernetes/node.sh`, on a folder in a node's place, with a stand-in for nsenter.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const DROP_IN: &str = "node/etc/systemd/system/kubelet.service.d/10-resnap.conf";

/// A node, and what comes in the image.
struct Node(TempDir);

impl Node {
    fn new() -> Self {
        let node = Self(TempDir::new().unwrap());
        for dir in ["node/run", "files", "bin"] {
            fs::create_dir_all(node.path(dir)).unwrap();
        }
        node.bring("resnap", "the first");
        node.bring("resnap.service", "unit");
        node.bring("10-resnap.conf", "drop-in");
        // Notes what is run on the node, and fails where a test says so.
        let stand_in = "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done; shift\n\
             echo \"$*\" >>\"$LOG\"\ncase \"$*\" in *\"$FAILS\"*) exit 1;; esac\n";
        let nsenter = node.path("bin/nsenter");
        fs::write(&nsenter, stand_in).unwrap();
        fs::set_permissions(&nsenter, fs::Permissions::from_mode(0o755)).unwrap();
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn bring(&self, name: &str, content: &str) {
        fs::write(self.path("files").join(name), content).unwrap();
    }

    /// Returns the commands that were run on the node, and whether the script succeeded.
    fn run(&self, word: &str, fails: &str) -> (Vec<String>, bool) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let log = self.path("log");
        fs::write(&log, "").unwrap();
        let path = std::env::var("PATH").unwrap();
        let status = Command::new(root.join("../examples/kubernetes/node.sh"))
            .arg(word)
            .env("PATH", format!("{}:{path}", self.path("bin").display()))
            .env("NODE", self.path("node"))
            .env("FILES", self.path("files"))
            .env("LOG", &log)
            .env("FAILS", fails)
            .status()
            .unwrap();
        let log = fs::read_to_string(log).unwrap();
        (log.lines().map(str::to_owned).collect(), status.success())
    }
}

const RELOAD: &str = "systemctl daemon-reload";
const RESTART: &str = "systemctl restart resnap.service";
const ENABLE: &str = "systemctl enable --now resnap.service";
const ASK: &str = "/usr/local/bin/resnap --address /run/resnap/cri.sock snapshotters";
const RESTART_KUBELET: &str = "systemctl restart kubelet.service";
const DISABLE: &str = "systemctl disable --now resnap.service";
const NOTHING: &str = "nothing fails";

#[test]
fn it_installs_once_updates_and_removes_all() {
    let node = Node::new();
    let first = [RELOAD, RESTART, ENABLE, ASK, RELOAD, RESTART_KUBELET];
    let (ran, content) = node.run("install", NOTHING);
    assert!(content);
    assert_eq!(ran, first);
    let binary = node.path("node/usr/local/bin/resnap");
    assert_eq!(fs::read_to_string(&binary).unwrap(), "the first");
    assert_eq!(
        fs::metadata(&binary).unwrap().permissions().mode() & 0o777,
        0o755
    );

    let (ran, _) = node.run("install", NOTHING);
    assert_eq!(ran, [ENABLE, ASK]);

    node.bring("resnap", "the second");
    let (ran, _) = node.run("install", NOTHING);
    assert_eq!(ran, [RELOAD, RESTART, ENABLE, ASK]);
    assert_eq!(fs::read_to_string(&binary).unwrap(), "the second");

    let removal = [RELOAD, RESTART_KUBELET, DISABLE, RELOAD];
    let (ran, content) = node.run("remove", NOTHING);
    assert!(content);
    assert_eq!(ran, removal);
    let left = files_below(&node.path("node"));
    assert_eq!(left, Vec::<PathBuf>::new());
    let (ran, content) = node.run("remove", NOTHING);
    assert!(content && ran.is_empty(), "{ran:?}");
}

#[test]
fn kubelet_always_has_a_runtime() {
    let node = Node::new();
    // Whatever of the installation fails, kubelet stays where it was.
    for step in [RELOAD, RESTART, ENABLE, ASK] {
        let (ran, content) = node.run("install", step);
        assert!(!content, "{step}");
        assert_eq!(ran.last().map(String::as_str), Some(step));
        assert!(!node.path(DROP_IN).exists(), "{step}");
    }
    // After an interruption, the next run restarts services for files that are already installed.
    let (_, content) = node.run("install", RESTART_KUBELET);
    assert!(!content);
    let (ran, content) = node.run("install", NOTHING);
    assert!(content);
    assert_eq!(ran, [ENABLE, ASK, RELOAD, RESTART_KUBELET]);

    // And resnap stays for as long as kubelet is not off it.
    for _ in 0..2 {
        let (ran, content) = node.run("remove", RESTART_KUBELET);
        assert!(!content);
        assert_eq!(ran, [RELOAD, RESTART_KUBELET]);
    }
    let (ran, content) = node.run("remove", NOTHING);
    assert!(content);
    assert_eq!(ran, [RELOAD, RESTART_KUBELET, DISABLE, RELOAD]);
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| {
            if path.is_dir() {
                files_below(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}
