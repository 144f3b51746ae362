// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Faults of containerd's configuration and of the kernel.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use resnap_integration::daemon::Options;
use resnap_integration::image::host_platform;

use super::{Bed, Examined, behind, config_of, edit, touch};
use crate::node::Node;
use crate::suite::live_tests;

live_tests! {
    Handler: doctor_finds_faults_of_containerds_configuration,
    Erofs: doctor_finds_faults_of_the_kernel,
}

fn doctor_finds_faults_of_containerds_configuration(shared: &Node) -> Result<()> {
    let options = Options {
        nydus: true,
        ..crate::suite::options()
    };
    let bed = Bed::start(shared, options, "")?;
    let node = &bed.node;
    let has_erofs = node.containerd.has_erofs();
    let path = node.containerd.root().with_file_name("containerd.toml");
    let root = node.containerd.root().with_file_name("nydus");
    let before = fs::read_to_string(&path)?;
    // `runtime_platforms` and `exports` are missing from the start.
    let missing = match has_erofs {
        true => &["containerd.exports-root", "containerd.runtime-platforms"][..],
        false => &[],
    };
    let found = bed.doctor(&[])?;
    found.assert_found(missing)?;
    if has_erofs {
        let mut lines = String::new();
        for handler in ["nydus", "erofs"] {
            let about = [handler, "/stats/summary"];
            let way_out = found.way_out("containerd.runtime-platforms", &about)?;
            lines += way_out.split_once('\n').unwrap_or_default().1;
            lines += "\n";
        }
        let way_out = found.way_out("containerd.exports-root", &["nydus", "/stats/summary"])?;
        lines += way_out.split_once('\n').unwrap_or_default().1;
        let lines = lines.replace("DIR", &root.to_string_lossy());
        edit(&path, format!("{before}{lines}\n"))?;
        bed.doctor(&[])?.assert_found(&[])?;
        touch(&path)?;
        let found = bed.doctor(&[])?;
        found.assert_found(&["containerd.config-changed"])?;
        let restart = ["systemctl restart containerd"];
        found.assert_way_out("containerd.config-changed", &["containerd.toml"], &restart)?;
    }

    if node.containerd.version() < (2, 3, 0) {
        found.assert_way_out("containerd.end-of-life", &["support ended"], &["2.3"])?;
    }
    let handlers = "cri.handlers.lost = \"nosuch\"\ncri.handlers.broken = \"devmapper\"\n";
    let found = bed.doctor_with(handlers, &[])?;
    let steps = ["[proxy_plugins.nosuch]"];
    found.assert_way_out(
        "containerd.snapshotter",
        &["handler lost", "no snapshotter nosuch"],
        &steps,
    )?;
    let steps = ["restart containerd"];
    found.assert_way_out(
        "containerd.snapshotter",
        &["handler broken", "did not load"],
        &steps,
    )?;
    if node.containerd.version() < (2, 0, 0) {
        finds_faults_of_diff_plugins(&bed, &path, &before)?;
    }

    let edits = [
        (
            "disable_snapshot_annotations = false",
            "disable_snapshot_annotations = true",
        ),
        (
            "discard_unpacked_layers = false",
            "discard_unpacked_layers = true",
        ),
        (
            "default = [\"erofs\", \"walking\"]",
            "default = [\"walking\"]",
        ),
    ];
    let mut edited = before.clone();
    for (old, new) in edits {
        edited = edited.replace(old, new);
    }
    edit(&path, edited)?;
    let mut expected = [missing, &["containerd.annotations"]].concat();
    if has_erofs {
        expected.push("containerd.differ-order");
    }
    let found = bed.doctor(&[])?;
    found.assert_found(&expected)?;
    let steps = ["disable_snapshot_annotations = false"];
    found.assert_way_out("containerd.annotations", &["nydus", "on the host"], &steps)?;
    found.assert_way_out("containerd.discard", &["nydus", "[sources]"], &[])?;
    if has_erofs {
        let steps = ["default = [\"erofs\", \"walking\"]"];
        found.assert_way_out("containerd.differ-order", &["come back"], &steps)?;
    }
    expected.push("containerd.discard");
    let found = bed.doctor_with("sources.order = []\n", &[])?;
    found.assert_found(&expected)?;
    found.assert_way_out("containerd.discard", &["nowhere"], &["[sources] order"])?;

    fs::write(&path, "no TOML")?;
    let blind = bed.doctor(&[])?;
    ensure!(blind.output.code == Some(2), "{:?}", blind.output);
    let unknown = blind.document["unknown"].to_string();
    let name = path.to_string_lossy();
    ensure!(
        unknown.contains("containerd.config") && unknown.contains(&*name),
        "{unknown}"
    );
    fs::write(&path, before)?;
    bed.served.stop()
}

/// Lines for a diff plugin as somebody may write them: the transfer service of 1.7 takes any differ.
fn finds_faults_of_diff_plugins(bed: &Bed, path: &Path, before: &str) -> Result<()> {
    let (os, architecture) = host_platform();
    let lines = format!(
        "[proxy_plugins.other]\n  type = \"diff\"\n  address = \"/run/other.sock\"\n\
         [[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n  \
         platform = \"{os}/{architecture}\"\n  snapshotter = \"overlayfs\"\n"
    );
    edit(path, format!("{before}{lines}"))?;
    let found = bed.doctor(&[])?;
    found.assert_found(&["containerd.differ-order", "containerd.unpack-config"])?;
    let first = ["put \"other\" first"];
    found.assert_way_out(
        "containerd.differ-order",
        &["other is not asked first"],
        &first,
    )?;
    let differ = "differ = \"walking\"";
    found.assert_way_out("containerd.unpack-config", &["names no differ"], &[differ])?;
    let ordered = before.replace(
        "default = [\"walking\"]",
        "default = [\"other\", \"walking\"]",
    );
    edit(path, format!("{ordered}{lines}  {differ}\n"))?;
    bed.doctor(&[])?.assert_found(&[])
}

fn doctor_finds_faults_of_the_kernel(shared: &Node) -> Result<()> {
    let options = Options {
        pull_for_handlers: true,
        ..crate::suite::options()
    };
    let bed = Bed::start(
        shared,
        options,
        "[snapshotters.erofs]\nerofs_mode = \"tar-index\"\n",
    )?;
    let node = &bed.node;
    let scratch = node.containerd.scratch();
    let doctor = |script: &str| {
        let mut command = bed.command()?;
        command.args(["doctor", "--json"]);
        Examined::by(&mut behind(script, &command))
    };
    bed.assert_well()?;
    for (name, text) in [
        ("filesystems", "nodev\ttmpfs\n\text4\n"),
        ("osrelease", "5.10.0-none\n"),
    ] {
        fs::write(scratch.join(name), text)?;
    }
    let (filesystems, osrelease) = (scratch.join("filesystems"), scratch.join("osrelease"));
    let old = doctor(&format!(
        "mount --bind {} /proc/filesystems; mount --bind {} /proc/sys/kernel/osrelease",
        filesystems.display(),
        osrelease.display()
    ))?;
    old.assert_found(&["kernel.erofs", "kernel.erofs-blocks"])?;
    let kernel = ["Linux 5.10.0-none"];
    old.assert_way_out("kernel.erofs", &kernel, &["CONFIG_EROFS_FS"])?;
    old.assert_way_out("kernel.erofs-blocks", &kernel, &["erofs_mode = \"full\""])?;
    old.assert_way_out("kernel.erofs-files", &["loop device"], &[])?;

    let mkfs = node.containerd.root().with_file_name("bin/mkfs.erofs");
    fs::write(&mkfs, "#!/bin/sh\necho 'mkfs.erofs 1.7.1'\n")?;
    let found = bed.doctor(&[])?;
    found.assert_found(&["tools.mkfs-erofs"])?;
    let about = ["1.7.1", "damaged images"];
    found.assert_way_out("tools.mkfs-erofs", &about, &["erofs-utils 1.9.4"])?;
    fs::remove_file(&mkfs)?;
    let tools = node.containerd.dist().tools().display().to_string();
    let found = doctor(&format!("mount -t tmpfs none {tools}"))?;
    found.assert_found(&["tools.mkfs-erofs"])?;
    found.assert_way_out(
        "tools.mkfs-erofs",
        &["does not find it"],
        &["install erofs-utils"],
    )?;
    fs::write(&mkfs, super::MKFS)?;
    fs::set_permissions(&mkfs, fs::Permissions::from_mode(0o755))?;
    bed.assert_well()?;

    let verity = scratch.join("verity.toml");
    edit(
        &verity,
        config_of(
            &bed.kubelet_root,
            "snapshotters.erofs.integrity = \"verity\"\n",
        ),
    )?;
    for (requires, ids) in [("Y", &["kernel.dm-verity-signatures"][..]), ("N", &[])] {
        let mut command = bed.command()?;
        command
            .args(["doctor", "--json"])
            .env("RESNAP_CONFIG", &verity);
        let parameters = "/sys/module/dm_verity/parameters";
        let script = format!(
            "mount -t tmpfs none /sys/module; mkdir -p {parameters}; echo {requires} >{parameters}/require_signatures"
        );
        let found = Examined::by(&mut behind(&script, &command))?;
        found.assert_found(ids)?;
        for id in ids {
            found.assert_way_out(
                id,
                &["integrity"],
                &["without dm_verity.require_signatures"],
            )?;
        }
    }

    let path = node.containerd.root().with_file_name("containerd.toml");
    let before = fs::read_to_string(&path)?;
    let options = "[plugins.\"io.containerd.differ.v1.erofs\"]\n  mkfs_options = [\"-zlz4\"]\n";
    edit(&path, format!("{before}{options}"))?;
    let found = bed.doctor(&[])?;
    found.assert_found(&[])?;
    let steps = ["differ = \"containerd\""];
    found.assert_way_out("containerd.erofs-options", &["mkfs_options"], &steps)?;
    let labels = "disable_apparmor = true\n  enable_selinux = true";
    edit(&path, before.replace("disable_apparmor = true", labels))?;
    let found = doctor(
        "mount -t tmpfs none /sys/fs; mkdir /sys/fs/selinux; echo 1 >/sys/fs/selinux/enforce",
    )?;
    found.assert_found(&["kernel.selinux-erofs"])?;
    found.assert_way_out(
        "kernel.selinux-erofs",
        &["second container"],
        &["enable_selinux = false"],
    )?;

    // containerd's process is in another PID namespace.
    let mut command = bed.command()?;
    command.args(["doctor", "--json"]);
    let mut wrapped = Command::new("unshare");
    wrapped.args(["--pid", "--fork", "--mount-proc"]);
    wrapped.arg(command.get_program()).args(command.get_args());
    wrapped.envs(
        command
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let blind = Examined::by(&mut wrapped)?;
    ensure!(blind.output.code == Some(2), "{:?}", blind.output);
    let unknown = blind.document["unknown"].to_string();
    ensure!(unknown.contains("another PID namespace"), "{unknown}");
    bed.served.stop()
}
