// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The clients of a Unix socket, as the process knows them that serves it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::host::Host;

/// Returns whether a client is connected to the process at the socket of this path.
pub(super) fn are_connected(host: &Host, process: &str, socket: &str) -> Result<bool> {
    let sockets = sockets(host, process)?;
    if sockets.is_empty() {
        return Ok(false);
    }
    let all = host.read("/proc/net/unix".as_ref())?.unwrap_or_default();
    let all = String::from_utf8_lossy(&all);
    let mut connected = all.lines().filter_map(|line| connection(line, socket));
    Ok(connected.any(|inode| sockets.contains(inode)))
}

/// Returns the inodes of the sockets of a process; none, if it has ended.
fn sockets(host: &Host, process: &str) -> Result<BTreeSet<String>> {
    let dir = host.at(&Path::new("/proc").join(process).join("fd"));
    let files = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        files => files.with_context(|| format!("list {dir:?}"))?,
    };
    // Those that are closed meanwhile do not count.
    let targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    let inode = |target: &Path| {
        let text = target.to_str()?.strip_prefix("socket:[")?;
        Some(text.strip_suffix(']')?.to_owned())
    };
    Ok(targets.filter_map(|target| inode(&target)).collect())
}

/// Returns the inode of a connection that was accepted at this socket, by its line of `/proc/net/unix`: `Num RefCount
/// Protocol Flags Type St Inode Path`.
fn connection<'a>(line: &'a str, socket: &str) -> Option<&'a str> {
    let mut fields = line.split_whitespace().skip(5);
    let is_connected = fields.next()? == "03";
    let inode = fields.next()?;
    (is_connected && fields.next()? == socket).then_some(inode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_were_accepted_count() {
        for (line, inode) in [
            (
                "0000: 00000002 00000000 00010000 0001 01 11 /run/a.sock",
                None,
            ),
            (
                "0000: 00000003 00000000 00000000 0001 03 12 /run/a.sock",
                Some("12"),
            ),
            (
                "0000: 00000003 00000000 00000000 0001 03 13 /run/b.sock",
                None,
            ),
            ("0000: 00000003 00000000 00000000 0001 03 14", None),
            (
                "Num       RefCount Protocol Flags    Type St Inode Path",
                None,
            ),
        ] {
            assert_eq!(connection(line, "/run/a.sock"), inode, "{line}");
        }
    }
}
