// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Checks of the kernel and of the programs that containerd runs.

use resnap_core::{ErofsMode, labels};

use super::finding::{Findings, Severity};
use super::look::Look;

/// The first Linux that mounts EROFS images with blocks of 512 bytes.
const SMALL_BLOCKS: (u32, u32) = (6, 4);
/// The first Linux that mounts EROFS images from files, without a loop device.
const FILES: (u32, u32) = (6, 12);

pub(crate) fn check(look: &Look<'_>, findings: &mut Findings) {
    if look.uses_erofs() {
        erofs(look, findings);
        selinux(look, findings);
        mkfs(look, findings);
    }
    verity(look, findings);
}

fn erofs(look: &Look<'_>, findings: &mut Findings) {
    let host = &look.host;
    let subject = format!("Linux {}", host.release);
    match host.has_erofs {
        Ok(true) => {}
        Ok(false) => findings.add(
            Severity::Fault,
            "kernel.erofs",
            &subject,
            "it has no EROFS, and no layer on erofs can be mounted",
            "take a kernel with CONFIG_EROFS_FS, or another snapshotter for the handlers on erofs",
        ),
        Err(ref error) => findings.unknown("kernel.erofs", format!("/proc/filesystems: {error}")),
    }
    let own_index = look.config.applier.erofs_mode("erofs") == ErofsMode::TarIndex;
    let config = look.containerd.as_ref();
    let makes_indexes = own_index || config.is_ok_and(|config| config.makes_tar_indexes());
    if makes_indexes && !host.is_at_least(SMALL_BLOCKS) {
        findings.add(
            Severity::Fault,
            "kernel.erofs-blocks",
            &subject,
            "indexes of tars have blocks of 512 bytes, which it cannot mount: Linux 6.4 and later can",
            "set erofs_mode = \"full\" for resnap, and enable_tar_index = false for containerd",
        );
    }
    if !host.is_at_least(FILES) {
        findings.add(
            Severity::Note,
            "kernel.erofs-files",
            &subject,
            "each layer on erofs takes a loop device: Linux 6.12 and later mount images from files",
            "nothing, unless loop devices run out",
        );
    }
}

/// Finds nodes where the second container of an image cannot start.
fn selinux(look: &Look<'_>, findings: &mut Findings) {
    let is_enabled = look
        .containerd
        .as_ref()
        .is_ok_and(|config| config.enables_selinux());
    if is_enabled && look.host.enforces_selinux {
        findings.add(
            Severity::Fault,
            "kernel.selinux-erofs",
            "SELinux",
            "it is enforced, and containerd labels containers (enable_selinux): layers on erofs are shared, and the \
             second container of an image fails with \"mount invalid. Same superblock, different security settings\"",
            "set enable_selinux = false for containerd's CRI, or take another snapshotter than erofs",
        );
    }
}

/// Finds programs by which containerd makes no layers of erofs, or faulty ones.
fn mkfs(look: &Look<'_>, findings: &mut Findings) {
    let is_left = match look.config.applier.writes("erofs") {
        true => "that resnap does not write: those of containerd's own pulls, and encrypted ones",
        false => "that containerd writes: all",
    };
    let mkfs = match &look.mkfs {
        Ok(mkfs) => mkfs,
        Err(why) => return findings.unknown("tools.mkfs-erofs", why),
    };
    let Some(mkfs) = mkfs else {
        return findings.add(
            Severity::Warning,
            "tools.mkfs-erofs",
            "mkfs.erofs",
            format!("containerd does not find it, and cannot make the layers on erofs {is_left}"),
            "install erofs-utils 1.9.4 or later, and restart containerd",
        );
    };
    let path = mkfs.path.display();
    let version = match &mkfs.version {
        Ok((major, minor, patch)) => format!("{major}.{minor}.{patch}"),
        Err(why) => {
            return findings.unknown("tools.mkfs-erofs", format!("the version of {path}: {why}"));
        }
    };
    if let Some(fault) = mkfs.fault() {
        findings.add(
            Severity::Warning,
            "tools.mkfs-erofs",
            format!("{path} {version}"),
            format!("{fault}; by it containerd makes the layers on erofs {is_left}"),
            "install erofs-utils 1.9.4 or later",
        );
    }
}

fn verity(look: &Look<'_>, findings: &mut Findings) {
    let host = &look.host;
    let mut wanted = Vec::new();
    for (name, profile) in look.config.profiles.iter() {
        if profile.integrity.is_on() {
            let integrity = profile.integrity.as_str();
            wanted.push(format!("resnap's integrity = \"{integrity}\" for {name}"));
        }
    }
    if let Ok(config) = &look.containerd {
        if config.makes_verity_trees() {
            wanted.push("containerd's enable_dmverity".to_owned());
        }
        if config.requires_verity() {
            wanted.push("containerd's dmverity_mode = \"on\"".to_owned());
        }
    }
    let surveyed = look.survey.snapshotters.iter();
    let snapshots = surveyed.filter_map(|(_, surveyed)| surveyed.as_ref().ok());
    let mut snapshots = snapshots.flat_map(|surveyed| &surveyed.snapshots);
    if snapshots.any(|snapshot| snapshot.labels.contains_key(labels::ROOT_HASH)) {
        wanted.push("layers with trees".to_owned());
    }
    if wanted.is_empty() {
        return;
    }
    let subject = wanted.join(", ");
    if !host.has_verity {
        findings.add(
            Severity::Fault,
            "kernel.dm-verity",
            subject,
            "the kernel has no dm-verity (/sys/module/dm_verity is missing): from 2.3 on containerd mounts no layer \
             that has a tree, and earlier ones do not look at it",
            "`modprobe dm_verity`, and name it in /etc/modules-load.d for the next boot",
        );
    } else if host.requires_signatures {
        findings.add(
            Severity::Fault,
            "kernel.dm-verity-signatures",
            subject,
            "dm_verity.require_signatures is set, and containerd passes no signature: no layer with a tree is mounted",
            "start the kernel without dm_verity.require_signatures",
        );
    }
}
