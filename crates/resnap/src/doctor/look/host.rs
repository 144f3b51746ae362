// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! This machine: its kernel, and the units of its service manager.

use std::fs;
use std::io;
use std::path::Path;

/// The directories of systemd's units (systemd.unit(5)).
const UNITS: [&str; 4] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
];

/// The machine, by its files. What cannot be read has the error.
#[derive(Debug)]
pub(crate) struct Host {
    /// The version, such as `6.12.101-amd64`.
    pub(crate) release: String,
    /// Whether it has EROFS, loaded or as a module.
    pub(crate) has_erofs: io::Result<bool>,
    pub(crate) has_verity: bool,
    /// Whether it mounts only dm-verity devices whose signature it was given.
    pub(crate) requires_signatures: bool,
    pub(crate) enforces_selinux: bool,
    /// Whether the daemon is installed as a service of systemd.
    pub(crate) has_unit: bool,
}

impl Host {
    pub(crate) fn look() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let release = text("/proc/sys/kernel/osrelease").trim().to_owned();
        let verity = Path::new("/sys/module/dm_verity");
        Self {
            has_erofs: has_erofs(&release),
            has_verity: verity.exists(),
            requires_signatures: text("/sys/module/dm_verity/parameters/require_signatures")
                .starts_with('Y'),
            has_unit: UNITS
                .iter()
                .any(|dir| Path::new(dir).join("resnap.service").exists()),
            enforces_selinux: text("/sys/fs/selinux/enforce").trim() == "1",
            release,
        }
    }

    /// Returns whether the kernel has this version or a later one; `true` if its version is not understood.
    pub(crate) fn is_at_least(&self, version: (u32, u32)) -> bool {
        let mut numbers = self.release.split(|char: char| !char.is_ascii_digit());
        let mut next = || numbers.next()?.parse().ok();
        let own: Option<(u32, u32)> = next().zip(next());
        own.is_none_or(|own| own >= version)
    }
}

fn has_erofs(release: &str) -> io::Result<bool> {
    let loaded = fs::read_to_string("/proc/filesystems")?;
    if loaded
        .lines()
        .any(|line| line.split_whitespace().next_back() == Some("erofs"))
    {
        return Ok(true);
    }
    let modules = Path::new("/lib/modules").join(release);
    // A kernel without modules has none of them.
    let listed = |name| fs::read_to_string(modules.join(name)).unwrap_or_default();
    let is_erofs = |line: &str| {
        line.split(':')
            .next()
            .is_some_and(|path| path.contains("/erofs.ko"))
    };
    Ok(["modules.builtin", "modules.dep"]
        .iter()
        .any(|name| listed(name).lines().any(is_erofs)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_numbers() {
        for (release, version, expected) in [
            ("6.12.101-amd64", (6, 4), true),
            ("6.4.0", (6, 4), true),
            ("5.15.0-91-generic", (6, 4), false),
            ("6.1.0", (6, 12), false),
            ("unknown", (6, 4), true),
        ] {
            let host = Host {
                release: release.to_owned(),
                ..Host::look()
            };
            assert_eq!(host.is_at_least(version), expected, "{release}");
        }
    }
}
