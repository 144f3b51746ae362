// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The mounts of processes, as in `/proc/PID/mountinfo` (proc_pid_mountinfo(5)). The paths in it are those
//! that the process sees, and reading it takes no capability.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// Returns whether a process and this one see the same directory at a path without links.
pub(crate) fn is_same_directory(process: u32, path: &Path) -> io::Result<bool> {
    if process == std::process::id() {
        return Ok(true);
    }
    let seen = |process: &str| {
        let text = std::fs::read(format!("/proc/{process}/mountinfo"))?;
        Ok::<_, io::Error>(location(&text, path))
    };
    let (own, others) = (seen("self")?, seen(&process.to_string())?);
    Ok(own.is_some() && own == others)
}

/// Returns the file system of a path, and the path in it.
fn location(mountinfo: &[u8], path: &Path) -> Option<(Vec<u8>, PathBuf)> {
    let mounts = mountinfo.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ').skip(2);
        let (device, root, point) = (fields.next()?, fields.next()?, fields.next()?);
        let below = path.strip_prefix(unescape(point)).ok()?.to_owned();
        Some((device, root, below))
    });
    // Of several at one point the last one is on top.
    let (device, root, below) = mounts.reduce(|nearest, mount| {
        let is_nearer = mount.2.as_os_str().len() <= nearest.2.as_os_str().len();
        if is_nearer { mount } else { nearest }
    })?;
    Some((device.to_vec(), unescape(root).join(below)))
}

/// Decodes the octal escapes of spaces and the like.
fn unescape(field: &[u8]) -> PathBuf {
    let (mut path, mut rest) = (Vec::new(), field);
    while let Some((byte, after)) = rest.split_first() {
        let escaped = after.split_at_checked(3).filter(|_| *byte == b'\\');
        let decoded = escaped.and_then(|(digits, after)| {
            let digits = std::str::from_utf8(digits).ok()?;
            Some((u8::from_str_radix(digits, 8).ok()?, after))
        });
        let (byte, after) = decoded.unwrap_or((*byte, after));
        path.push(byte);
        rest = after;
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &[u8] = b"\
22 1 254:0 / / rw shared:1 - ext4 /dev/vda rw
30 22 0:25 / /run rw - tmpfs tmpfs rw
31 22 254:16 /disk /var/lib/a\\040b rw - ext4 /dev/vdb rw
";

    /// The same paths are those of another tree, except for one that is shared.
    const CONTAINER: &[u8] = b"\
90 80 0:99 / / rw - overlay overlay rw
91 90 254:0 /var/lib/containerd /var/lib/containerd rw - ext4 /dev/vda rw
92 90 254:0 /srv /var/lib/other rw - ext4 /dev/vda rw
93 90 254:16 /disk /var/lib/a\\040b rw - ext4 /dev/vdb rw
94 93 0:77 / /var/lib/a\\040b rw - tmpfs tmpfs rw
";

    #[test]
    fn a_path_is_the_same_if_its_file_system_and_place_are() {
        for (path, is_same) in [
            ("/var/lib/containerd/snapshots/1", true),
            ("/var/lib/other/snapshots/1", false),
            ("/var/lib/third", false),
            ("/var/lib/containerd2", false),
            ("/var/lib/a b/1", false),
        ] {
            let seen = |mountinfo| location(mountinfo, Path::new(path));
            assert!(seen(HOST).is_some());
            assert_eq!(seen(HOST) == seen(CONTAINER), is_same, "{path}");
        }
        let there = location(HOST, Path::new("/var/lib/a b/1"));
        assert_eq!(there, Some((b"254:16".to_vec(), "/disk/1".into())));
        assert_eq!(location(b"", Path::new("/")), None);
    }

    #[test]
    fn this_process_sees_what_its_parent_sees() {
        let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
        let parent = u32::try_from(parent.unwrap()).unwrap();
        assert!(is_same_directory(parent, &std::env::temp_dir()).unwrap());
        assert!(is_same_directory(u32::MAX, Path::new("/")).is_err());
    }
}
