// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! How a live test is written and run.
//!
//! A [`Test`] names what it needs of a containerd and gets a [`Node`]: a running containerd, a
//! namespace of its own there, and the commands `ctr` and `resnap` for them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, anyhow, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use resnap_integration::daemon::{Containerd, Options, in_private_namespaces};
use resnap_integration::debian::{Dist, output, provision};
use resnap_integration::image::{self, Built};
use resnap_integration::tap::Tap;
use resnap_integration::tree::Tree;
use rustix::fs::XattrFlags;
use serde_json::Value;

/// Two containerds at work keep two cores busy.
const TESTS_AT_ONCE: usize = 2;

/// A configuration by which this differ writes all layers.
pub(crate) fn by(differ: &str) -> String {
    ["overlayfs", "native", "erofs"]
        .map(|snapshotter| format!("snapshotters.{snapshotter}.differ = {differ:?}\n"))
        .concat()
}

/// How much of a daemon's log a failed test shows.
const LOG_LINES: usize = 30;

/// A test, run on every containerd that has what it needs.
#[derive(Clone, Copy)]
pub(crate) struct Test {
    pub(crate) name: &'static str,
    pub(crate) needs: Needs,
    pub(crate) run: fn(&Node) -> Result<()>,
}

/// What a test needs of a containerd.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing but the daemon, which it shares with other tests.
    Containerd,
    /// A working erofs snapshotter; the daemon is shared.
    Erofs,
    /// A containerd of its own, to stop and start.
    Alone,
    /// A containerd of its own with nydus, which does not tell namespaces apart.
    Nydus,
    /// A working erofs snapshotter, in a containerd of its own whose only differ is the walking
    /// one. Where there is no erofs, that is so in any containerd.
    WalkingOnly,
    /// The same where a runtime handler can have a snapshotter of its own.
    NydusHandler,
    /// A containerd of its own with a runtime handler on a working erofs snapshotter.
    ErofsHandler,
}

impl Needs {
    /// What of it a containerd does not have.
    fn lacks(self, containerd: &Containerd) -> Option<&'static str> {
        match self {
            Self::Erofs | Self::ErofsHandler | Self::WalkingOnly if !containerd.has_erofs() => {
                Some("no erofs")
            }
            Self::NydusHandler if containerd.version() < (1, 7, 0) => Some("no handler"),
            _ => None,
        }
    }
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

    /// The error that a command ended with, as it tells it to programs: kind, message and next
    /// step. All three were told to people as well.
    pub(crate) fn error(self) -> Result<Value> {
        ensure!(self.code == Some(2), "want exit code 2: {self:#?}");
        let line = self.stdout.lines().last().context("nothing was printed")?;
        let error = serde_json::from_str::<Value>(line)?["error"].take();
        for key in ["message", "next_step"] {
            let text = error[key].as_str();
            let text = text.with_context(|| format!("no {key} in {error}"))?;
            ensure!(self.stderr.contains(text), "{text:?} is not on stderr");
        }
        Ok(error)
    }

    /// The kind of the error that a command ended with, where any will do.
    pub(crate) fn kind(&self) -> Result<String> {
        let line = self.stdout.lines().last().context("nothing was printed")?;
        let error: Value = serde_json::from_str(line)?;
        let kind = error["error"]["kind"].as_str();
        Ok(kind
            .with_context(|| format!("no kind in {error}"))?
            .to_owned())
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
            .env(
                "RESNAP_RUNTIME_DIR",
                self.containerd.socket().with_file_name("r"),
            )
            // Whatever this machine has.
            .env("RESNAP_CONFIG", "/dev/null")
            .args(["--namespace", &self.namespace]);
        Ok(command)
    }

    /// The same through a tap, which sees every layer: containerd's differ writes them.
    pub(crate) fn tapped_command(&self, tap: &Tap) -> Result<Command> {
        let mut command = self.command_by("containerd")?;
        command.env("CONTAINERD_ADDRESS", tap.socket());
        Ok(command)
    }

    /// `resnap` for this node and namespace, by which this differ writes all layers.
    pub(crate) fn command_by(&self, differ: &str) -> Result<Command> {
        let config = self.containerd.scratch().join(unique("by"));
        std::fs::write(&config, by(differ))?;
        let mut command = self.resnap_command()?;
        command.env("RESNAP_CONFIG", config);
        Ok(command)
    }

    /// Makes an image ready with layers that this differ writes.
    pub(crate) fn unpack_by(&self, differ: &str, snapshotter: &str, image: &str) -> Result<Value> {
        let mut command = self.command_by(differ)?;
        command.args(["unpack", "--json", image, "--snapshotter", snapshotter]);
        let lines = end(&mut command)?.json_lines()?;
        let last = lines.last().context("unpack printed nothing")?;
        let report = last.get("report").context("the last line has no report")?;
        Ok(report.clone())
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

    /// Makes an image ready with resnap, to its good end, and answers with the report.
    pub(crate) fn unpack(&self, snapshotter: &str, image: &str) -> Result<Value> {
        let ended = self.resnap(&["unpack", "--json", image, "--snapshotter", snapshotter])?;
        let lines = ended.json_lines()?;
        let last = lines.last().context("unpack printed nothing")?;
        let report = last.get("report").context("the last line has no report")?;
        Ok(report.clone())
    }

    /// What containerd does for a pull or a first container: unpacks what is missing, without
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

    /// The tree that a container of the image would see.
    pub(crate) fn tree(&self, snapshotter: &str, image: &str) -> Result<Tree> {
        self.containerd
            .look_into(&self.namespace, snapshotter, image, Tree::read)
    }

    /// What a container of the image prints.
    pub(crate) fn run(&self, snapshotter: &str, image: &str) -> Result<String> {
        let said = self
            .containerd
            .run(&self.namespace, snapshotter, image, &[]);
        Ok(said?.trim().to_owned())
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

    /// The leases of the namespace.
    pub(crate) fn leases(&self) -> Result<Vec<String>> {
        let leases = self.ctr(&["leases", "ls", "-q"])?;
        Ok(leases.lines().map(str::to_owned).collect())
    }

    /// That resnap left no lease and no active snapshot.
    pub(crate) fn nothing_left(&self, snapshotter: &str) -> Result<()> {
        let leases = self.leases()?;
        ensure!(leases.is_empty(), "leases are left: {leases:?}");
        self.no_active_snapshot(snapshotter)
    }

    /// That no snapshot is left but committed ones.
    pub(crate) fn no_active_snapshot(&self, snapshotter: &str) -> Result<()> {
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

/// The platform of this machine, such as `linux/amd64`.
pub(crate) fn host_platform() -> String {
    let (os, architecture) = image::host_platform();
    format!("{os}/{architecture}")
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
    let results = Results::default();
    let mut trials = Vec::new();
    for (dist, shared) in &daemons {
        for test in tests {
            if test.needs.lacks(shared).is_none() {
                trials.push(trial(*test, dist.clone(), Arc::clone(shared), &results));
            }
        }
    }
    // What no daemon can show is not shown, and must not look so.
    let homeless: Vec<&str> = tests
        .iter()
        .filter(|test| {
            !daemons
                .iter()
                .any(|(_, daemon)| test.needs.lacks(daemon).is_none())
        })
        .map(|test| test.name)
        .collect();
    if !arguments.list && !homeless.is_empty() {
        eprintln!("no containerd here has what these tests need: {homeless:?}");
        return ExitCode::FAILURE;
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    table(
        tests,
        &daemons,
        &results.lock().unwrap_or_else(PoisonError::into_inner),
    );
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
        let daemon = Containerd::start(&dist, options())?;
        Ok((dist, Arc::new(daemon)))
    };
    dists.into_iter().map(start).collect()
}

/// Daemons with their files in memory where that works: each layer that is unpacked costs several
/// fsyncs, and the suite unpacks thousands.
fn options() -> Options {
    Options {
        tmpfs: tmpfs_serves().then_some("8g"),
        ..Options::default()
    }
}

/// Returns whether a tmpfs takes the extended attributes of layers, as since Linux 6.6, and there is
/// memory for what the daemons of the suite store.
fn tmpfs_serves() -> bool {
    // `/run` is a tmpfs in the namespaces of the suite.
    let probe = Path::new("/run").join(unique("probe"));
    let takes_attributes = std::fs::write(&probe, "").is_ok()
        && rustix::fs::setxattr(&probe, "user.probe", b"", XattrFlags::empty()).is_ok();
    let available = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("MemAvailable:"))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        });
    takes_attributes && available.is_some_and(|kib| kib >= 8 << 20)
}

fn trial(test: Test, dist: Dist, shared: Arc<Containerd>, results: &Results) -> Trial {
    let name = format!("{}::{}", dist.name().replace(' ', "_"), test.name);
    let results = Arc::clone(results);
    Trial::test(name, move || {
        let result = run(test, &dist, shared);
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
        results.insert((test.name, dist.name()), word);
        result.map_err(|error| Failed::from(format!("{error:#}")))
    })
}

fn run(test: Test, dist: &Dist, shared: Arc<Containerd>) -> Result<()> {
    let node = match test.needs {
        Needs::Alone
        | Needs::Nydus
        | Needs::NydusHandler
        | Needs::ErofsHandler
        | Needs::WalkingOnly => {
            let options = Options {
                nydus: matches!(test.needs, Needs::Nydus | Needs::NydusHandler),
                diff_order: (test.needs == Needs::WalkingOnly).then_some(&["walking"]),
                ..options()
            };
            Node {
                containerd: Arc::new(Containerd::start(dist, options)?),
                // The CRI's, which only a daemon of one's own has for a single test.
                namespace: "k8s.io".to_owned(),
            }
        }
        Needs::Containerd | Needs::Erofs => Node {
            containerd: shared,
            namespace: unique("test"),
        },
    };
    (test.run)(&node).map_err(|error| {
        let log = node.containerd.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
        let tail: Vec<String> = tail.iter().map(|line| cut(line)).collect();
        anyhow!(
            "{error:#}\n--- its daemon's log ends ---\n{}",
            tail.join("\n")
        )
    })
}

/// A line that does not fill the screen.
fn cut(line: &str) -> String {
    line.chars().take(300).collect()
}

/// What became of which test on which daemon.
type Results = Arc<Mutex<BTreeMap<(&'static str, String), &'static str>>>;

/// Which test ran where, and how it ended.
fn table(
    tests: &[Test],
    daemons: &[(Dist, Arc<Containerd>)],
    results: &BTreeMap<(&'static str, String), &'static str>,
) {
    let width = tests.iter().map(|test| test.name.len()).max().unwrap_or(0);
    println!("\n{:<width$}  {}", "TEST", names(daemons).join("  "));
    for test in tests {
        let cells = daemons.iter().map(|(dist, daemon)| {
            let result = results.get(&(test.name, dist.name())).copied();
            let cell = result.or(test.needs.lacks(daemon)).unwrap_or("-");
            let column = daemon.name().len();
            format!("{cell:<column$}")
        });
        let row = format!(
            "{:<width$}  {}",
            test.name,
            cells.collect::<Vec<_>>().join("  ")
        );
        println!("{}", row.trim_end());
    }
}

fn names(daemons: &[(Dist, Arc<Containerd>)]) -> Vec<String> {
    daemons.iter().map(|(_, daemon)| daemon.name()).collect()
}
