// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Faults of system calls, by strace, which counts them for each thread.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::poll::{DEADLINE, eventually};

/// Calls that create, change or remove files.
const CHANGING: [&str; 26] = [
    "mkdirat",
    "mkdir",
    "mknodat",
    "linkat",
    "symlinkat",
    "rename",
    "renameat",
    "renameat2",
    "unlinkat",
    "unlink",
    "rmdir",
    "fchownat",
    "fchown",
    "fchmodat",
    "fchmod",
    "utimensat",
    "fsetxattr",
    "lsetxattr",
    "setxattr",
    "ftruncate",
    "fallocate",
    "fsync",
    "syncfs",
    "flock",
    "openat2",
    "copy_file_range",
];

/// Calls that write data, also to sockets.
const WRITING: [&str; 3] = ["write", "writev", "pwrite64"];

/// Calls that read.
const READING: [&str; 7] = [
    "read",
    "pread64",
    "getdents64",
    "statx",
    "newfstatat",
    "readlinkat",
    "lgetxattr",
];

const OPENING: &str = "openat";

/// A system call of a file, the `nth` of its name in a thread.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Syscall {
    name: &'static str,
    nth: usize,
}

/// A fault of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It fails with this error once.
    Once(&'static str),
    /// It fails with this error from then on.
    Always(&'static str),
    /// The process is killed.
    Kill,
}

impl Syscall {
    /// Returns the faults that files have at this call. No error is for all calls that may be of sockets:
    /// only files have these.
    pub(crate) fn effects(&self) -> Vec<Effect> {
        use Effect::{Always, Kill, Once};
        let mut effects = vec![Once("EIO"), Kill];
        if !READING.contains(&self.name) {
            effects.extend([Once("ENOSPC"), Once("EDQUOT")]);
        }
        if CHANGING.contains(&self.name) {
            effects.extend([Once("EROFS"), Always("EROFS"), Always("ENOSPC")]);
        }
        if self.name == OPENING {
            effects.extend([Once("EMFILE"), Always("EMFILE"), Once("EROFS")]);
        }
        effects
    }
}

impl fmt::Display for Syscall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.nth)
    }
}

fn all() -> impl Iterator<Item = &'static str> {
    let names = CHANGING.into_iter().chain(WRITING).chain(READING);
    names.chain([OPENING])
}

/// Returns `command` under strace, which writes to `log` what it sees.
pub(crate) fn traced(command: &Command, log: &Path) -> Command {
    let names: Vec<_> = all().collect();
    let mut traced = strace(log, &names.join(","));
    traced.arg("--seccomp-bpf");
    wrap(traced, command)
}

/// Returns `command` under strace, which injects a fault and writes to `log` where.
pub(crate) fn faulty(command: &Command, log: &Path, call: &Syscall, effect: Effect) -> Command {
    let Syscall { name, nth } = call;
    let mut faulty = strace(log, name);
    let what = match effect {
        Effect::Once(error) => format!("error={error}:when={nth}"),
        Effect::Always(error) => format!("error={error}:when={nth}+"),
        Effect::Kill => format!("signal=KILL:when={nth}"),
    };
    faulty.arg(format!("--inject={name}:{what}"));
    // With it, strace sends no signals.
    if effect != Effect::Kill {
        faulty.arg("--seccomp-bpf");
    }
    wrap(faulty, command)
}

/// strace in a process of its own, so that the command stays the child of the caller.
fn strace(log: &Path, names: &str) -> Command {
    let mut strace = Command::new("strace");
    strace.args(["-D", "-f", "-q", "-y", "-o"]).arg(log);
    strace.arg(format!("--trace={names}"));
    strace
}

fn wrap(mut outer: Command, inner: &Command) -> Command {
    outer.arg(inner.get_program()).args(inner.get_args());
    for (key, value) in inner.get_envs() {
        if let Some(value) = value {
            outer.env(key, value);
        }
    }
    outer
}

/// Returns what strace has logged of a process that has ended.
fn read(log: &Path, process: u32) -> Result<String> {
    let process = process.to_string();
    let mut text = String::new();
    eventually("strace has written its log", DEADLINE, || {
        let bytes = fs::read(log).with_context(|| format!("read {log:?}; is strace installed?"))?;
        text = String::from_utf8_lossy(&bytes).into_owned();
        let mut ends = text.lines().filter(|line| line.contains(" +++ "));
        Ok(ends.any(|line| line.split(' ').next() == Some(&*process)))
    })?;
    Ok(text)
}

/// Returns the system calls of files below one of these directories, as strace has logged them.
pub(crate) fn of_files(log: &Path, process: u32, dirs: &[&str]) -> Result<BTreeSet<Syscall>> {
    let text = read(log, process)?;
    let mut counts = BTreeMap::<(&str, &str), usize>::new();
    let mut calls = BTreeSet::new();
    for line in text.lines() {
        let Some((thread, call)) = line.split_once(' ') else {
            continue;
        };
        let Some((name, arguments)) = call.trim_start().split_once('(') else {
            continue;
        };
        let Some(name) = all().find(|known| *known == name) else {
            continue;
        };
        let nth = counts.entry((thread, name)).or_default();
        *nth += 1;
        if dirs.iter().any(|dir| arguments.contains(dir)) {
            calls.insert(Syscall { name, nth: *nth });
        }
    }
    Ok(calls)
}

/// Returns whether a fault was injected, and whether all were at files.
pub(crate) fn injected(log: &Path, process: u32, effect: Effect) -> Result<Option<bool>> {
    let text = read(log, process)?;
    let mark = match effect {
        Effect::Kill => "+++ killed by SIGKILL",
        Effect::Once(_) | Effect::Always(_) => "(INJECTED)",
    };
    let marked: Vec<&str> = text.lines().filter(|line| line.contains(mark)).collect();
    let elsewhere = |line: &&str| {
        // A call during which another thread was logged is in two lines, the first with its file.
        let thread = line.split(' ').next();
        let calls = text.lines().take_while(|other| other != line);
        let begun = calls
            .filter(|other| other.split(' ').next() == thread)
            .last();
        let first = begun.filter(|_| line.contains(" resumed>")).unwrap_or(line);
        let kinds = ["socket:", "anon_inode:", "UNIX", "TCP", "pipe:"];
        kinds.iter().any(|kind| first.contains(kind))
    };
    Ok((!marked.is_empty()).then(|| !marked.iter().any(elsewhere)))
}
