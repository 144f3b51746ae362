// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Processes of this machine, as `/proc` shows them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::arguments::last_value;

/// The time that a program has which only prints something.
const PATIENCE: Duration = Duration::from_secs(5);

/// A process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    dir: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) started: SystemTime,
}

impl Process {
    /// Returns the process that listens at a socket.
    pub(crate) async fn listening_at(socket: &Path) -> io::Result<Self> {
        let peer = UnixStream::connect(socket).await?.peer_cred()?;
        match peer.pid() {
            Some(pid) if pid > 0 => Self::read(pid.unsigned_abs()),
            _ => Err(io::Error::other(format!(
                "the process at {} is in another PID namespace",
                socket.display()
            ))),
        }
    }

    /// Returns the processes of the host's root whose programs have this name. Those of pods and other containers can
    /// have any name, and are left out, as is one that ends meanwhile.
    ///
    /// # Errors
    /// The namespaces of such a process must not be read.
    pub(crate) fn of_host(name: &str) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let dir = entry?.path();
            let name_of_dir = dir.file_name().and_then(|name| name.to_str());
            let Some(pid) = name_of_dir.and_then(|name| name.parse().ok()) else {
                continue;
            };
            let comm = fs::read_to_string(dir.join("comm")).unwrap_or_default();
            if comm.trim_end() != name {
                continue;
            }
            match is_of_host(&dir) {
                Ok(true) => found.extend(Self::read(pid).ok()),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    let text = format!("read the namespaces of {}: {error}", dir.display());
                    return Err(io::Error::new(error.kind(), text));
                }
                Ok(false) | Err(_) => {}
            }
        }
        Ok(found)
    }

    fn read(pid: u32) -> io::Result<Self> {
        let dir = Path::new("/proc").join(pid.to_string());
        let context = |error: io::Error| {
            io::Error::new(error.kind(), format!("read {}: {error}", dir.display()))
        };
        let line = fs::read(dir.join("cmdline")).map_err(context)?;
        let stat = fs::read_to_string(dir.join("stat")).map_err(context)?;
        let boot = fs::read_to_string("/proc/stat").map_err(context)?;
        let started = started(&stat, &boot)
            .ok_or_else(|| io::Error::other(format!("{}/stat is not understood", dir.display())))?;
        Ok(Self {
            pid,
            dir,
            arguments: words(&line),
            started,
        })
    }

    /// Returns the value of an argument, as `NAME VALUE` or `NAME=VALUE`. The last one counts.
    pub(crate) fn argument(&self, names: &[&str]) -> Option<&str> {
        last_value(&self.arguments, names)
    }

    /// Returns the path of the program. After an update, it is that of the new one.
    pub(crate) fn program(&self) -> io::Result<PathBuf> {
        let program = fs::read_link(self.dir.join("exe"))?;
        let text = program.to_string_lossy();
        Ok(match text.strip_suffix(" (deleted)") {
            Some(path) => PathBuf::from(path),
            None => program,
        })
    }

    /// Returns a path that the process was given, which may be relative to its directory.
    pub(crate) fn absolute(&self, path: &str) -> PathBuf {
        let dir = fs::read_link(self.dir.join("cwd")).unwrap_or_default();
        dir.join(path)
    }

    /// Returns the value of an environment variable when the process was started.
    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        let environment = fs::read(self.dir.join("environ")).ok()?;
        let mut words = words(&environment).into_iter();
        words.find_map(|word| Some(word.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
    }

    /// Returns what the program of the process prints with other arguments.
    pub(crate) async fn print(&self, arguments: &[&str]) -> io::Result<String> {
        // The same file, also if it was replaced since.
        print(
            Command::new(self.dir.join("exe"))
                .arg0("containerd")
                .args(arguments),
        )
        .await
    }
}

/// Returns the standard output of a command that ends soon.
pub(crate) async fn print(command: &mut Command) -> io::Result<String> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(PATIENCE, output)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "it took more than 5 s"))??;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text
            .trim_end()
            .lines()
            .next_back()
            .unwrap_or_default()
            .to_owned();
        return Err(io::Error::other(format!(
            "it ended with {}: {last}",
            output.status
        )));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns whether a process is root's, in the namespaces of this one and in no pod.
fn is_of_host(dir: &Path) -> io::Result<bool> {
    // The owner of the directory is root as well if the process is not dumpable.
    if !is_root(&fs::read_to_string(dir.join("status"))?)
        || fs::read_to_string(dir.join("cgroup"))?.contains("kubepods")
    {
        return Ok(false);
    }
    for namespace in ["ns/pid", "ns/mnt", "ns/user"] {
        let own = fs::read_link(Path::new("/proc/self").join(namespace))?;
        if fs::read_link(dir.join(namespace))? != own {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns whether all user IDs in a `status` are root's.
fn is_root(status: &str) -> bool {
    let mut lines = status.lines();
    let ids = lines.find_map(|line| line.strip_prefix("Uid:"));
    ids.is_some_and(|ids| ids.split_whitespace().all(|id| id == "0"))
}

/// Returns the words of a file in which each ends with a zero.
fn words(bytes: &[u8]) -> Vec<String> {
    let words = bytes.split(|byte| *byte == 0);
    let words = words.filter(|word| !word.is_empty());
    words
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

/// Returns the time of a process's start by its `stat` and that of the machine (Linux
/// `Documentation/filesystems/proc.rst`).
fn started(stat: &str, machine: &str) -> Option<SystemTime> {
    // The name of the program may have spaces and parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: u64 = fields.split_whitespace().nth(19)?.parse().ok()?;
    let mut lines = machine.lines();
    let boot = lines.find_map(|line| line.strip_prefix("btime "))?;
    let boot = Duration::from_secs(boot.trim().parse().ok()?);
    let since = Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second());
    Some(UNIX_EPOCH + boot + since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_found_in_both_forms() {
        let arguments = words(b"kubelet\0--config=/a\0--root-dir\0/b\0--config\0/c\0-v\0");
        let value = |name| last_value(&arguments, &[name]);
        assert_eq!(value("--config"), Some("/c"));
        assert_eq!(value("--root-dir"), Some("/b"));
        assert_eq!(value("-v"), None);
        assert_eq!(value("--other"), None);
    }

    #[test]
    fn a_process_in_other_hands_is_not_of_the_host() {
        assert!(is_root("Name:\tkubelet\nUid:\t0\t0\t0\t0\nGid:\t5\n"));
        assert!(!is_root("Name:\tUid:\t0\nUid:\t1000\t0\t0\t0\n"));
        assert!(!is_root("Name:\tkubelet\n"));
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        fs::write(dir.join("status"), "Uid:\t0\t0\t0\t0\n").unwrap();
        fs::write(dir.join("cgroup"), "0::/system.slice/kubelet.service\n").unwrap();
        fs::create_dir(dir.join("ns")).unwrap();
        for namespace in ["ns/pid", "ns/mnt", "ns/user"] {
            let own = fs::read_link(Path::new("/proc/self").join(namespace)).unwrap();
            std::os::unix::fs::symlink(own, dir.join(namespace)).unwrap();
        }
        assert!(is_of_host(dir).unwrap());
        let pod = "0::/kubepods.slice/kubepods-burstable.slice/a.scope\n";
        fs::write(dir.join("cgroup"), pod).unwrap();
        assert!(!is_of_host(dir).unwrap());
        fs::write(dir.join("cgroup"), "0::/\n").unwrap();
        for namespace in ["ns/pid", "ns/mnt", "ns/user"] {
            let path = dir.join(namespace);
            let own = fs::read_link(&path).unwrap();
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink("other:[1]", &path).unwrap();
            assert!(!is_of_host(dir).unwrap(), "{namespace}");
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink(own, &path).unwrap();
        }
        assert!(is_of_host(dir).unwrap());
    }

    #[test]
    fn the_start_is_read_behind_any_name() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 250 20";
        let stat = format!("7 (a) b) {fields}");
        let ticks = rustix::param::clock_ticks_per_second();
        let expected = Duration::from_secs(1000) + Duration::from_millis(250_000 / ticks);
        assert_eq!(
            started(&stat, "cpu 1\nbtime 1000\n"),
            Some(UNIX_EPOCH + expected)
        );
        assert_eq!(started("7 (a) S 1", "btime 1000\n"), None);
        let own = Process::read(std::process::id()).unwrap();
        let age = own.started.elapsed().unwrap();
        assert!(age < Duration::from_secs(3600), "{age:?}");
    }
}
