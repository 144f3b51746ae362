// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A watch over the progress of containerd's differ, which reports nothing until a layer is written.
//!
//! There is progress if files of the snapshot change, or if a program with the snapshot's path in its
//! arguments, such as `mkfs.erofs`, uses the processor. Neither is visible if the snapshot is not a
//! directory here, and syncing a file system changes no file: then there is no limit.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use resnap_core::{Applied, Descriptor, Error, Kind, Mount, Result, Scope};
use resnap_layer::path::join;
use rustix::fs::{AtFlags, Dir, FileType, statat};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::beneath::open_beneath;
use crate::progress::Progress;

/// The most that timestamps of files may be behind the clock.
const CLOCK_SLACK: Duration = Duration::from_millis(100);

/// The longest interval between two checks.
const MAX_INTERVAL: Duration = Duration::from_secs(60);

/// The most files that are checked. A larger tree is assumed to have changed.
const MAX_FILES: usize = 1_000_000;

/// Applies a layer with `differ`. Fails if there is no progress for `limit`.
pub(crate) async fn apply(
    differ: &dyn resnap_core::Applier,
    scope: &Scope,
    layer: &Descriptor,
    mounts: &[Mount],
    sync_fs: bool,
    limit: Duration,
) -> Result<Applied> {
    let applied = differ.apply(scope, layer, mounts, sync_fs);
    let Some(snapshot) = snapshot(mounts).filter(|_| !sync_fs) else {
        return applied.await;
    };
    tokio::select! {
        applied = applied => applied,
        () = stalled(snapshot, limit) => {
            let error = Error::new(Kind::DeadlineExceeded, "apply layer", layer.digest.as_str());
            Err(error.with_source(format!(
                "containerd's differ has changed nothing in the snapshot for {limit:?}: check \
                 containerd and the disk, or raise stall"
            )))
        }
    }
}

/// Returns the directory of the snapshot that the last of these mounts writes to, if it exists here.
fn snapshot(mounts: &[Mount]) -> Option<PathBuf> {
    let mount = mounts.last()?;
    let mut options = mount.options.iter();
    let upper = options.find_map(|option| option.strip_prefix("upperdir="));
    let source = (mount.kind == "bind").then_some(&mount.source[..]);
    let path = Path::new(upper.or(source)?);
    let path = match path.file_name() {
        Some(name) if name == "fs" => path.parent()?,
        _ => path,
    };
    path.is_dir().then(|| path.to_path_buf())
}

/// Waits until nothing has changed for `limit`.
async fn stalled(snapshot: PathBuf, limit: Duration) {
    let progress = Arc::new(Progress::default());
    let poll = async {
        let (mut since, mut used) = (SystemTime::now(), 0);
        loop {
            sleep((limit / 10).min(MAX_INTERVAL)).await;
            let (begin, path) = (SystemTime::now(), snapshot.clone());
            let started = Instant::now();
            let check = spawn_blocking(move || {
                // A directory that cannot be read counts as unchanged.
                (
                    has_changed(&path, since).unwrap_or(false),
                    cpu_ticks_of(&path),
                )
            });
            let (has_changed, now) = check.await.unwrap_or_default();
            if has_changed || now != used {
                progress.advance();
            }
            (since, used) = (begin, now);
            // Checks take at most a twentieth of the time.
            sleep((started.elapsed() * 20).min(limit / 4)).await;
        }
    };
    tokio::select! {
        () = poll => {}
        () = progress.stalled(limit) => {}
    }
}

/// Returns whether anything in a directory has changed since a time.
fn has_changed(directory: &Path, since: SystemTime) -> io::Result<bool> {
    let since = since.duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = i128::try_from(since.saturating_sub(CLOCK_SLACK).as_nanos()).unwrap_or_default();
    let root: OwnedFd = File::open(directory)?.into();
    let mut todo = vec![Vec::new()];
    let mut count = 0;
    while let Some(path) = todo.pop() {
        // It may have been removed or replaced.
        let Ok(fd) = open_beneath(&root, &path) else {
            continue;
        };
        for entry in Dir::read_from(&fd)? {
            let Ok(entry) = entry else {
                break;
            };
            let name = entry.file_name().to_bytes();
            if name == b".." {
                continue;
            }
            let Ok(stat) = statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            count += 1;
            let changed =
                i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec);
            if changed >= since || count > MAX_FILES {
                return Ok(true);
            }
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if is_directory && name != b"." {
                todo.push(join(&path, name));
            }
        }
    }
    Ok(false)
}

/// Returns the processor time in ticks of all programs with this path in their arguments. Programs in
/// other PID namespaces do not count: a pod may choose any arguments.
fn cpu_ticks_of(path: &Path) -> u64 {
    let path = path.as_os_str().as_bytes();
    let namespace = |process: &Path| std::fs::read_link(process.join("ns/pid")).ok();
    let own = namespace(Path::new("/proc/self"));
    let Ok(processes) = Path::new("/proc").read_dir() else {
        return 0;
    };
    let used = processes.filter_map(|process| {
        let process = process.ok()?.path();
        let command = std::fs::read(process.join("cmdline")).ok()?;
        if !names_path(path, &command) || namespace(&process) != own {
            return None;
        }
        let stat = std::fs::read_to_string(process.join("stat")).ok()?;
        // The name of the program is in parentheses, and may contain more of them.
        let (_, fields) = stat.rsplit_once(')')?;
        let fields = fields.split_whitespace().skip(11).take(2);
        Some(
            fields
                .filter_map(|ticks| ticks.parse::<u64>().ok())
                .sum::<u64>(),
        )
    });
    used.sum()
}

/// Returns whether the arguments of a program contain a path, or one inside it.
fn names_path(path: &[u8], arguments: &[u8]) -> bool {
    let mut parts = arguments.windows(path.len()).enumerate();
    parts.any(|(at, part)| {
        let next = arguments.get(at + path.len());
        part == path && matches!(next, None | Some(b'/' | 0))
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use tokio::time::timeout;

    use super::*;

    fn mount(kind: &str, source: &Path, options: &[String]) -> Mount {
        Mount {
            kind: kind.to_owned(),
            source: source.display().to_string(),
            target: String::new(),
            options: options.to_vec(),
        }
    }

    #[test]
    fn a_path_does_not_match_a_longer_name() {
        let path = b"/snapshots/1";
        for arguments in [&b"mkfs\0/snapshots/1\0"[..], b"mkfs\0--x=/snapshots/1/fs\0"] {
            assert!(names_path(path, arguments));
        }
        for arguments in [&b"mkfs\0/snapshots/12\0"[..], b"mkfs\0/snapshots\0", b""] {
            assert!(!names_path(path, arguments));
        }
    }

    #[test]
    fn snapshots_are_found_by_their_mounts() {
        let dir = tempfile::tempdir().unwrap();
        let (at, fs) = (dir.path(), dir.path().join("fs"));
        let upper = format!("upperdir={}", fs.display());
        for (mounts, want) in [
            (vec![mount("bind", at, &[])], Some(at)),
            (vec![mount("bind", &fs, &[])], Some(at)),
            (
                vec![
                    mount("erofs", Path::new("/x/layer.erofs"), &[]),
                    mount("format/overlay", Path::new("overlay"), &[upper]),
                ],
                Some(at),
            ),
            (vec![mount("bind", &at.join("gone/fs"), &[])], None),
            (vec![mount("ext4", Path::new("/dev/loop0"), &[])], None),
            (Vec::new(), None),
        ] {
            assert_eq!(snapshot(&mounts).as_deref(), want, "{mounts:?}");
        }
    }

    #[test]
    fn changes_are_found_at_any_depth() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("file"), "x").unwrap();
        let changed = |since| has_changed(dir.path(), since).unwrap();
        let now = SystemTime::now();
        assert!(changed(now));
        assert!(!changed(now + Duration::from_secs(1)));
        std::thread::sleep(Duration::from_millis(400));
        let later = SystemTime::now();
        assert!(!changed(later));
        std::fs::write(deep.join("file"), "xx").unwrap();
        assert!(changed(later));
    }

    #[tokio::test]
    async fn busy_programs_count_as_progress() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let mut busy = Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .arg(dir.path().join("layer.erofs"))
            .spawn()
            .unwrap();
        let limit = Duration::from_secs(3);
        let mut ended = Box::pin(stalled(dir.path().to_path_buf(), limit));
        let early = timeout(limit * 2, &mut ended).await;
        busy.kill().unwrap();
        busy.wait().unwrap();
        assert!(early.is_err());
        timeout(limit * 10, ended).await.unwrap();
    }
}
