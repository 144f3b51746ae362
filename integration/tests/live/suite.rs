// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! How a live test is written and run.
//!
//! A [`Test`] names what it needs of a containerd and gets a [`Node`]: a running containerd, a
//! namespace of its own there, and the commands `ctr` and `resnap` for them.

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use resnap_integration::daemon::{Containerd, Options, in_private_namespaces};
use resnap_integration::debian::{Dist, output, provision};
use resnap_integration::image::Built;
use serde_json::Value;

/// Two containerds at work keep two cores busy.
const TESTS_AT_ONCE: usize = 2;

/// A test, run on every containerd that has what it needs.
#[derive(Clone, Copy)]
pub(crate) struct Test {
    pub(crate) name: &'static str,
    pub(crate) needs: Needs,
    pub(crate) run: fn(&mut Node) -> Result<()>,
}

/// What a test needs of a containerd.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing but the daemon, which it shares with other tests.
    Containerd,
    /// A working erofs snapshotter; the daemon is shared.
    Erofs,
    /// A containerd of its own with nydus, which does not tell namespaces apart.
    Nydus,
}

/// A containerd and a namespace on it.
pub(crate) struct Node {
    pub(crate) containerd: Arc<Containerd>,
    pub(crate) namespace: String,
}

/// What a command left.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Standard output of a command that ended with 0.
    pub(crate) fn ok(self) -> Result<String> {
        ensure!(self.code == Some(0), "want exit code 0: {self:#?}");
        Ok(self.stdout)
    }

    /// The lines of JSON of a command that ended with 0.
    pub(crate) fn json_lines(self) -> Result<Vec<Value>> {
        let text = self.ok()?;
        text.lines()
            .map(|line| Ok(serde_json::from_str(line)?))
            .collect()
    }

    /// The JSON document of a command that ended with 0.
    pub(crate) fn json(self) -> Result<Value> {
        Ok(serde_json::from_str(&self.ok()?)?)
    }
}

/// The binary under test.
pub(crate) fn resnap() -> Result<Command> {
    let exe = std::env::current_exe()?;
    let bin = exe
        .ancestors()
        .nth(2)
        .context("the test has no target directory")?
        .join("resnap");
    ensure!(
        bin.is_file(),
        "{bin:?} is not built: run `make build` (or `cargo build`) first"
    );
    Ok(Command::new(bin))
}

/// Runs a command to its end.
pub(crate) fn end(command: &mut Command) -> Result<Ended> {
    let ended = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    Ok(Ended {
        code: ended.status.code(),
        stdout: String::from_utf8(ended.stdout)?,
        stderr: String::from_utf8(ended.stderr)?,
    })
}

impl Node {
    /// `ctr` on this node and namespace, with these arguments, to its good end.
    pub(crate) fn ctr(&self, arguments: &[&str]) -> Result<String> {
        output(self.containerd.ctr(&self.namespace).args(arguments))
    }

    /// `resnap` on this node and namespace, with these arguments.
    pub(crate) fn resnap(&self, arguments: &[&str]) -> Result<Ended> {
        end(self.resnap_command()?.args(arguments))
    }

    /// `resnap` for this node and namespace.
    pub(crate) fn resnap_command(&self) -> Result<Command> {
        let mut command = resnap()?;
        command
            .env("CONTAINERD_ADDRESS", self.containerd.socket())
            .args(["--namespace", &self.namespace]);
        Ok(command)
    }

    /// Puts an image's records and blobs on the node; nothing is unpacked.
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

    /// The default snapshotter's way: what a pull or a first container does.
    pub(crate) fn unpack_by_containerd(&self, snapshotter: &str, image: &Built) -> Result<()> {
        let dir = self.containerd.scratch().join(unique("mnt"));
        std::fs::create_dir_all(&dir)?;
        let dir = dir.to_string_lossy().into_owned();
        // Mounting an image unpacks it; there is no `ctr images unpack` on every version.
        self.ctr(&[
            "images",
            "mount",
            "--snapshotter",
            snapshotter,
            &image.reference,
            &dir,
        ])?;
        self.ctr(&[
            "images",
            "unmount",
            "--snapshotter",
            snapshotter,
            "--rm",
            &dir,
        ])?;
        Ok(())
    }

    /// The labels of a snapshot.
    pub(crate) fn labels(&self, snapshotter: &str, key: &str) -> Result<BTreeMap<String, String>> {
        let text = self.ctr(&["snapshots", "--snapshotter", snapshotter, "info", key])?;
        let mut info: Value = serde_json::from_str(&text)?;
        Ok(serde_json::from_value(info["Labels"].take()).unwrap_or_default())
    }

    /// Keys of the snapshots on a snapshotter with their kinds (`Committed`, `Active`, `View`).
    pub(crate) fn snapshots(&self, snapshotter: &str) -> Result<BTreeMap<String, String>> {
        let table = self.ctr(&["snapshots", "--snapshotter", snapshotter, "ls"])?;
        let rows = table.lines().skip(1);
        rows.map(|row| {
            // A key may hold a blank (`extract-… sha256:…`), and a base has no parent.
            let kind = row.split_whitespace().last().context("a row of no words")?;
            let key = row.strip_suffix(kind).unwrap_or(row).trim();
            let key = key.split("   ").next().unwrap_or(key).trim();
            let key = key.split_once(" sha256:").map_or(key, |(first, _)| first);
            Ok((key.to_owned(), kind.to_owned()))
        })
        .collect()
    }

    /// That resnap left no lease and no active snapshot.
    pub(crate) fn nothing_left(&self, snapshotter: &str) -> Result<()> {
        let leases = self.ctr(&["leases", "ls", "-q"])?;
        ensure!(leases.trim().is_empty(), "leases are left: {leases}");
        let snapshots = self.snapshots(snapshotter)?;
        let active: Vec<_> = snapshots
            .iter()
            .filter(|(_, kind)| *kind != "Committed")
            .collect();
        ensure!(
            active.is_empty(),
            "snapshots are left on {snapshotter}: {active:?}"
        );
        Ok(())
    }

    /// Runs a garbage collection now and waits for it.
    pub(crate) fn collect_garbage(&self) -> Result<()> {
        let lease = unique("throwaway");
        self.ctr(&["leases", "create", "--id", &lease])?;
        self.ctr(&["leases", "delete", "--sync", &lease])?;
        Ok(())
    }
}

/// A name that no other test of this run uses.
pub(crate) fn unique(stem: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("{stem}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Runs `tests` on all containerds.
pub(crate) fn main(tests: &[Test]) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(TESTS_AT_ONCE);
    // Listing needs no daemon, and so no root.
    let prepared = if arguments.list {
        Ok(Vec::new())
    } else {
        prepare()
    };
    let daemons = match prepared {
        Ok(daemons) => daemons,
        Err(error) => {
            eprintln!("the live suite cannot run: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut trials = Vec::new();
    for (dist, shared) in &daemons {
        for test in tests {
            let fits = test.needs != Needs::Erofs || shared.has_erofs();
            if fits {
                trials.push(trial(*test, dist.clone(), Arc::clone(shared)));
            }
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    table(tests, &daemons);
    let mut stopped = true;
    for (_, daemon) in daemons {
        let name = daemon.name();
        let result = Arc::into_inner(daemon).map_or(Ok(()), Containerd::stop);
        if let Err(error) = result {
            eprintln!("{name} did not stop cleanly: {error:#}");
            stopped = false;
        }
    }
    if conclusion.has_failed() || !stopped {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// The containerds that tests share, running.
fn prepare() -> Result<Vec<(Dist, Arc<Containerd>)>> {
    in_private_namespaces()?;
    let dists = provision()?.containerds().to_vec();
    let start = |dist: Dist| {
        let daemon = Containerd::start(&dist, Options::default())?;
        Ok((dist, Arc::new(daemon)))
    };
    dists.into_iter().map(start).collect()
}

fn trial(test: Test, dist: Dist, shared: Arc<Containerd>) -> Trial {
    let name = format!("{}::{}", dist.name().replace(' ', "_"), test.name);
    Trial::test(name, move || {
        let containerd = match test.needs {
            Needs::Nydus => {
                let options = Options {
                    nydus: true,
                    ..Options::default()
                };
                Arc::new(Containerd::start(&dist, options).map_err(failed)?)
            }
            Needs::Containerd | Needs::Erofs => shared,
        };
        let mut node = Node {
            containerd,
            namespace: unique("test"),
        };
        (test.run)(&mut node).map_err(|error| {
            let log = node.containerd.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            Failed::from(format!(
                "{error:#}\n--- the daemon's log ends ---\n{}",
                tail.join("\n")
            ))
        })
    })
}

fn failed(error: anyhow::Error) -> Failed {
    Failed::from(format!("{error:#}"))
}

/// Which test ran where.
fn table(tests: &[Test], daemons: &[(Dist, Arc<Containerd>)]) {
    println!("\n{:<44}{}", "TEST", names(daemons).join("  "));
    for test in tests {
        let cells = daemons.iter().map(|(_, daemon)| {
            let runs = test.needs != Needs::Erofs || daemon.has_erofs();
            let width = daemon.name().len();
            format!("{:<width$}", if runs { "ran" } else { "no erofs" })
        });
        println!("{:<44}{}", test.name, cells.collect::<Vec<_>>().join("  "));
    }
}

fn names(daemons: &[(Dist, Arc<Containerd>)]) -> Vec<String> {
    daemons.iter().map(|(_, daemon)| daemon.name()).collect()
}
