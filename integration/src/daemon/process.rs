// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Termination of processes and removal of mounts that belong to a daemon of the suite.
//!
//! The suite has a PID namespace of its own, so `/proc` lists only processes
//! that it started.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

/// The time that a daemon has to end before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// The interval of polling.
pub(super) const POLL: Duration = Duration::from_millis(10);

/// SIGTERM, and SIGKILL for the one that does not heed it.
pub(super) fn end(child: &mut Child) -> Result<()> {
    if child.try_wait()?.is_some() {
        return Ok(());
    }
    signal(child.id(), Signal::TERM);
    let deadline = Instant::now() + GRACE;
    while Instant::now() < deadline {
        if child.try_wait()?.is_some() {
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
    kill(child)
}

/// SIGKILL at once.
pub(super) fn kill(child: &mut Child) -> Result<()> {
    child.kill().context("kill a daemon")?;
    child.wait().context("wait for a killed daemon").map(drop)
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended by itself just now.
        let _ = kill_process(pid, signal);
    }
}

/// Kills the shims that listen for the containerd at `socket`, and what runs
/// in their containers.
pub(super) fn kill_shims(socket: &Path) -> Result<()> {
    let deadline = Instant::now() + GRACE;
    loop {
        let all = processes()?;
        let mut pids: Vec<u32> = all
            .iter()
            .filter(|process| process.is_shim_of(socket))
            .map(|process| process.pid)
            .collect();
        let mut next = 0;
        while let Some(&parent) = pids.get(next) {
            let children = all.iter().filter(|process| process.parent == parent);
            pids.extend(children.map(|process| process.pid));
            next += 1;
        }
        if pids.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("shims of {socket:?} do not end: {pids:?}");
        }
        for pid in pids {
            signal(pid, Signal::KILL);
        }
        std::thread::sleep(POLL);
    }
}

struct Process {
    pid: u32,
    parent: u32,
    args: Vec<u8>,
}

impl Process {
    fn is_shim_of(&self, socket: &Path) -> bool {
        let mut args = self.args.split(|byte| *byte == 0);
        let is_shim = args
            .next()
            .is_some_and(|name| name.windows(15).any(|part| part == b"containerd-shim"));
        is_shim && args.any(|arg| arg == socket.as_os_str().as_encoded_bytes())
    }
}

/// Returns all processes, except for zombies, which end with their parent.
fn processes() -> Result<Vec<Process>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").context("list /proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // One that ended in the meantime is no longer to be found.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let mut fields = stat.rsplit(") ").next().unwrap_or("").split(' ');
        let state = fields.next();
        let parent = fields.next().and_then(|field| field.parse().ok());
        if let (Some(parent), false) = (parent, state == Some("Z")) {
            let args = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            all.push(Process { pid, parent, args });
        }
    }
    Ok(all)
}

/// Removes what killed containers leave outside the daemon's folders: control
/// groups and runc's state.
///
/// The runtime's folders say which: `<plugin>/<namespace>/<container>`
/// ran in the group `/<namespace>/<container>`. A group in use is kept by the
/// kernel.
pub(super) fn forget_tasks(root: &Path) {
    const TASKS: &str = "io.containerd.runtime.v2.task";
    let hierarchies = list("/sys/fs/cgroup".as_ref());
    let hierarchies = hierarchies.into_iter().chain(["/sys/fs/cgroup".into()]);
    let hierarchies: Vec<PathBuf> = hierarchies.collect();
    for namespace in list(&root.join("root").join(TASKS)) {
        let Some(namespace) = namespace.file_name() else {
            continue;
        };
        let tasks = list(&root.join(TASKS).join(namespace));
        let tasks: Vec<_> = tasks.iter().filter_map(|task| task.file_name()).collect();
        for task in &tasks {
            let runc = Path::new("/run/containerd/runc").join(namespace);
            let _ = fs::remove_dir_all(runc.join(task));
        }
        for group in hierarchies.iter().map(|dir| dir.join(namespace)) {
            for task in &tasks {
                let _ = fs::remove_dir(group.join(task));
            }
            let _ = fs::remove_dir(group);
        }
    }
}

pub(super) fn list(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Returns the mount points at or below `dir`, in the order they were mounted.
pub(super) fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points
        .map(|point| PathBuf::from(unescape(point)))
        .filter(|point| point.starts_with(dir))
        .collect())
}

/// The kernel writes a space as `\040`, and so on.
fn unescape(point: &str) -> String {
    let mut out = String::new();
    let mut rest = point;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let code = after
            .get(..3)
            .and_then(|code| u8::from_str_radix(code, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                rest = &after[3..];
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out + rest
}

/// Detaches every mount at or below `dir`.
pub(super) fn unmount_below(dir: &Path) -> Result<()> {
    // Mounts can lie on each other, so the last one goes first.
    for point in mounts_below(dir)?.iter().rev() {
        unmount(point, UnmountFlags::DETACH).with_context(|| format!("unmount {point:?}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(unescape("/plain"), "/plain");
        assert_eq!(unescape("/odd\\"), "/odd\\");
    }
}
