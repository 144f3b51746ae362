// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Live tests: how they are declared and run.
//!
//! A [`Test`] names what it needs of a containerd and gets a [`Node`]: a running containerd, a
//! namespace of its own there, and the commands `ctr` and `resnap` for them.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use libtest_mimic::{Arguments, Failed, Trial};
use resnap_integration::daemon::{Containerd, Options, in_private_namespaces};
use resnap_integration::debian::{Dist, provision};
use rustix::fs::XattrFlags;

use crate::node::{Node, unique};

/// Two busy containerds use two cores, and a third test what they leave while they wait.
const TESTS_AT_ONCE: usize = 3;

/// The number of lines of a daemon's log that a failed test shows.
const LOG_LINES: usize = 30;

/// The number of tests of which the time is shown again at the end.
const SLOWEST: usize = 20;

/// A test, run on every containerd that has what it needs.
#[derive(Clone, Copy)]
pub(crate) struct Test {
    pub(crate) name: &'static str,
    pub(crate) needs: Needs,
    pub(crate) run: fn(&Node) -> Result<()>,
}

/// Declares the tests of a module with what each of them needs. A test has the name of its function.
macro_rules! live_tests {
    ($($needs:ident: $name:ident,)+) => {
        pub(crate) const TESTS: &[$crate::suite::Test] = &[$(
            $crate::suite::Test {
                name: stringify!($name),
                needs: $crate::suite::Needs::$needs,
                run: $name,
            },
        )+];
    };
}

pub(crate) use live_tests;

/// The requirement of a test on a containerd.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing but the daemon, which it shares with other tests.
    Containerd,
    /// The same, of one version for all: the test is of resnap alone, whatever containerd it has.
    One,
    /// A working erofs snapshotter; the daemon is shared.
    Erofs,
    /// A containerd whose runtime handlers can have snapshotters of their own; the daemon is shared.
    Handler,
    /// A containerd of its own, to stop and start.
    Alone,
    /// The same, of one version for all.
    OneAlone,
    /// A working erofs snapshotter, in a containerd of its own.
    ErofsAlone,
    /// A containerd of its own with nydus, which does not tell namespaces apart.
    Nydus,
    /// A working erofs snapshotter, in a containerd of its own whose only differ is the walking
    /// one. Where there is no erofs, that is so in any containerd.
    WalkingOnly,
    /// The same where a runtime handler can have a snapshotter of its own.
    NydusHandler,
    /// A containerd of its own with a runtime handler on a working erofs snapshotter.
    ErofsHandler,
    /// A containerd of its own with a diff plugin, which 1.6 does not start with.
    DiffPlugin,
    /// The same with a working erofs snapshotter.
    ErofsDiffPlugin,
}

impl Needs {
    /// Returns what a containerd lacks for the test.
    fn lacks(self, containerd: &Containerd) -> Option<&'static str> {
        match self {
            Self::Erofs
            | Self::ErofsAlone
            | Self::ErofsHandler
            | Self::ErofsDiffPlugin
            | Self::WalkingOnly
                if !containerd.has_erofs() =>
            {
                Some("no erofs")
            }
            Self::NydusHandler | Self::Handler if containerd.version() < (1, 7, 0) => {
                Some("no handler")
            }
            Self::One | Self::OneAlone
                if containerd.version() < (1, 7, 0) || containerd.version() >= (2, 0, 0) =>
            {
                Some("on 1.7")
            }
            Self::DiffPlugin if containerd.version() < (1, 7, 0) => Some("no diff plugin"),
            _ => None,
        }
    }
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
    // A test that no daemon can run must not look as if it had passed.
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
pub(crate) fn options() -> Options {
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
        let start = Instant::now();
        let result = run(test, &dist, shared);
        let outcome = Outcome {
            is_ok: result.is_ok(),
            time: start.elapsed(),
        };
        let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
        results.insert((test.name, dist.name()), outcome);
        result.map_err(|error| Failed::from(format!("{error:#}")))
    })
}

fn run(test: Test, dist: &Dist, shared: Arc<Containerd>) -> Result<()> {
    let node = match test.needs {
        Needs::Alone
        | Needs::OneAlone
        | Needs::ErofsAlone
        | Needs::Nydus
        | Needs::NydusHandler
        | Needs::ErofsHandler
        | Needs::DiffPlugin
        | Needs::ErofsDiffPlugin
        | Needs::WalkingOnly => {
            let options = Options {
                diff_plugin: matches!(test.needs, Needs::DiffPlugin | Needs::ErofsDiffPlugin),
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
        Needs::Containerd | Needs::One | Needs::Erofs | Needs::Handler => Node {
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

/// Truncates a line of the log.
fn cut(line: &str) -> String {
    line.chars().take(300).collect()
}

/// The outcome of each test on each daemon.
type Results = Arc<Mutex<BTreeMap<(&'static str, String), Outcome>>>;

struct Outcome {
    is_ok: bool,
    time: Duration,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.is_ok { "ok" } else { "FAILED" };
        write!(f, "{word} {:.1} s", self.time.as_secs_f64())
    }
}

/// Prints the outcome of each test on each daemon, and the tests that took longest.
fn table(
    tests: &[Test],
    daemons: &[(Dist, Arc<Containerd>)],
    results: &BTreeMap<(&'static str, String), Outcome>,
) {
    let width = tests.iter().map(|test| test.name.len()).max().unwrap_or(0);
    println!("\n{:<width$}  {}", "TEST", names(daemons).join("  "));
    for test in tests {
        let cells = daemons.iter().map(|(dist, daemon)| {
            let result = results.get(&(test.name, dist.name()));
            let lack = test.needs.lacks(daemon).unwrap_or("-");
            let cell = result.map_or_else(|| lack.to_owned(), Outcome::to_string);
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
    let mut slowest: Vec<_> = results.iter().collect();
    slowest.sort_by_key(|(_, outcome)| Reverse(outcome.time));
    println!("\n{:<width$}  TIME", "SLOWEST");
    for ((test, daemon), outcome) in slowest.into_iter().take(SLOWEST) {
        let seconds = outcome.time.as_secs_f64();
        println!("{test:<width$}  {seconds:>5.1} s on {daemon}");
    }
}

fn names(daemons: &[(Dist, Arc<Containerd>)]) -> Vec<String> {
    daemons.iter().map(|(_, daemon)| daemon.name()).collect()
}
