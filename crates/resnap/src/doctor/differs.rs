// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Checks of the differs, by which containerd writes layers.

use resnap_core::major_minor;

use super::containerd_config::ContainerdConfig;
use super::finding::{Findings, Severity};
use super::look::Look;
use crate::differ_order::{is_erofs_late, is_late};

/// The first version whose transfer service knows erofs by default, and with a list of one's own no more.
const EROFS_ENTRY: (u32, u32) = (2, 3);

pub(crate) fn check(look: &Look<'_>, findings: &mut Findings) {
    match &look.diff_plugins {
        Ok(warnings) => {
            for warning in warnings {
                findings.add(
                    Severity::Fault,
                    "containerd.diff-plugin",
                    "containerd's diff plugin",
                    warning,
                    "start `resnap serve` with diff.socket, or take the lines out (examples/containerd/README.md)",
                );
            }
        }
        Err(error) => findings.unknown("containerd.diff-plugin", resnap_core::error_chain(error)),
    }
    // A check of containerd says why it is not known.
    if let Ok(config) = &look.containerd {
        order(look, config, findings);
        transfer(&look.version, look.uses_erofs(), config, findings);
        if look.config.applier.writes("erofs") {
            let has_trees = look.config.profiles.get("erofs").integrity.is_on();
            options(has_trees, config, findings);
        }
    }
}

/// Finds differs that write layers before the one that is meant for them.
fn order(look: &Look<'_>, config: &ContainerdConfig, findings: &mut Findings) {
    let differs = config.differs();
    let subject = format!("diff service: {}", differs.join(", "));
    if look.uses_erofs() && is_erofs_late(&differs) {
        findings.add(
            Severity::Fault,
            "containerd.differ-order",
            &subject,
            "layers on erofs that containerd writes itself are written by the walking differ: files that a layer \
             deletes can come back",
            "put \"erofs\" before \"walking\" in containerd's configuration, and restart it (without mkfs.erofs its diff \
             service would not load):\n\
             [plugins.\"io.containerd.service.v1.diff-service\"]\n  default = [\"erofs\", \"walking\"]",
        );
    }
    for plugin in config.diff_plugins() {
        let others = ["erofs", "walking"];
        if others.iter().any(|other| is_late(&differs, plugin, other)) {
            findings.add(
                Severity::Warning,
                "containerd.differ-order",
                &subject,
                format!(
                    "the diff plugin {plugin} is not asked first, and so for few layers or none"
                ),
                format!(
                    "put {plugin:?} first in `default` of the diff service, and restart containerd"
                ),
            );
        }
    }
}

/// Finds lists of the transfer service that leave a snapshotter out, or its differ to chance.
fn transfer(version: &str, uses_erofs: bool, config: &ContainerdConfig, findings: &mut Findings) {
    let Some(entries) = config.unpack_entries() else {
        return;
    };
    let version = major_minor(version).unwrap_or_default();
    let subject = "unpack_config of the transfer service";
    let has_erofs = entries
        .iter()
        .any(|(snapshotter, _)| *snapshotter == "erofs");
    if uses_erofs && version >= EROFS_ENTRY && !entries.is_empty() && !has_erofs {
        findings.add(
            Severity::Warning,
            "containerd.unpack-config",
            subject,
            "it replaces containerd's own list and has no entry for erofs: pulls for erofs by `ctr` and others fail",
            "add an entry with snapshotter = \"erofs\" and its differ, as examples/containerd has it",
        );
    }
    let is_left_open = entries.iter().any(|(_, differ)| differ.is_empty());
    if version < (2, 0) && !config.diff_plugins().is_empty() && is_left_open {
        findings.add(
            Severity::Warning,
            "containerd.unpack-config",
            subject,
            "an entry names no differ: with a diff plugin, containerd 1.7 takes any of them at each start",
            "name one: differ = \"walking\", as examples/containerd has it",
        );
    }
}

/// Finds options of containerd's EROFS differ that resnap does not follow where it writes the layers, with dm-verity
/// trees or without.
fn options(has_trees: bool, config: &ContainerdConfig, findings: &mut Findings) {
    if config.makes_verity_trees() && !has_trees {
        findings.add(
            Severity::Warning,
            "containerd.erofs-options",
            "enable_dmverity = true",
            "containerd's EROFS differ makes dm-verity trees, and resnap does not",
            "set integrity = \"verity\" in [snapshotters.erofs] of resnap's configuration",
        );
    }
    if config.has_mkfs_options() {
        findings.add(
            Severity::Note,
            "containerd.erofs-options",
            "mkfs_options",
            "containerd's EROFS differ has options, which resnap does not follow",
            "set differ = \"containerd\" in [snapshotters.erofs] of resnap's configuration if they matter",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(findings: &Findings) -> Vec<(&str, &str)> {
        let findings = findings.findings.iter();
        findings.map(|found| (found.id, &*found.subject)).collect()
    }

    #[test]
    fn a_list_of_ones_own_has_erofs_from_2_3_on() {
        let entries = |snapshotters: &[&str]| {
            let entry = |name: &&str| {
                format!(
                    "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nsnapshotter = {name:?}\n"
                )
            };
            let text: String = snapshotters.iter().map(entry).collect();
            ContainerdConfig::parse(&text).unwrap()
        };
        for (version, uses_erofs, snapshotters, expected) in [
            ("v2.3.5", true, &["overlayfs"][..], 1),
            ("v2.3.5", true, &["overlayfs", "erofs"], 0),
            ("v2.3.5", true, &[], 0),
            ("v2.3.5", false, &["overlayfs"], 0),
            ("v2.2.9", true, &["overlayfs"], 0),
        ] {
            let mut findings = Findings::default();
            transfer(version, uses_erofs, &entries(snapshotters), &mut findings);
            let found = findings.findings.iter();
            let found = found.filter(|found| found.id == "containerd.unpack-config");
            assert_eq!(found.count(), expected, "{version} {snapshotters:?}");
        }
    }

    #[test]
    fn trees_that_only_containerd_makes_are_found() {
        let text = "[plugins.'io.containerd.differ.v1.erofs']\nenable_dmverity = true\nmkfs_options = ['-zlz4']\n";
        let config = ContainerdConfig::parse(text).unwrap();
        let (trees, mkfs) = (
            ("containerd.erofs-options", "enable_dmverity = true"),
            ("containerd.erofs-options", "mkfs_options"),
        );
        for (has_trees, expected) in [(false, &[trees, mkfs][..]), (true, &[mkfs])] {
            let mut findings = Findings::default();
            options(has_trees, &config, &mut findings);
            assert_eq!(ids(&findings), expected);
        }
    }
}
