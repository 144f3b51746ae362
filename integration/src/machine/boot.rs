// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The files of a machine, and its first process.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount};

use crate::debian::{Dist, Suite, debs, lay_out, target_dir};

/// The PATH of all programs of a machine.
pub(super) const PATH: &str =
    "PATH=/usr/local/bin:/opt/containerd:/opt/tools:/usr/sbin:/usr/bin:/sbin:/bin";

/// systemd with the libraries that it and the program under test load. busybox is the rest of the system.
const PACKAGES: [&str; 34] = [
    "libacl1",
    "libapparmor1",
    "libargon2-1",
    "libaudit1",
    "libblkid1",
    "libc6",
    "libcap-ng0",
    "libcap2",
    "libcrypt1",
    "libcryptsetup12",
    "libdevmapper1.02.1",
    "libfdisk1",
    "libffi8",
    "libgcc-s1",
    "libgcrypt20",
    "libgpg-error0",
    "libip4tc2",
    "libjson-c5",
    "libkmod2",
    "liblz4-1",
    "liblzma5",
    "libmount1",
    "libp11-kit0",
    "libpam0g",
    "libpcre2-8-0",
    "libseccomp2",
    "libselinux1",
    "libssl3",
    "libsystemd-shared",
    "libsystemd0",
    "libudev1",
    "libuuid1",
    "libzstd1",
    "systemd",
];

/// Mounts what a machine sees, and becomes its systemd. Arguments: its directory, the packages, the program under test,
/// the programs of containerd, those of the tools, and the directory that both see.
const BOOT: &str = r#"set -e
dir=$1 packages=$2 program=$3 containerd=$4 tools=$5 target=$6
mount -t tmpfs -o mode=755 tmpfs "$dir/disk"
mkdir "$dir/disk/upper" "$dir/disk/work" "$dir/disk/root" "$dir/disk/containerd"
cd "$dir/disk"
mount -t overlay overlay -o "lowerdir=$dir/own:$packages,upperdir=upper,workdir=work" root
cd root
mkdir -p proc sys dev run tmp root old opt/containerd opt/tools var/lib/containerd var/tmp usr/local/bin
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mkdir opt/cgroup
mount --rbind /sys/fs/cgroup opt/cgroup
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
mount --bind "$dir/disk/containerd" var/lib/containerd
: >opt/resnap
mount --bind "$program" opt/resnap
mount --bind "$containerd" opt/containerd
mount --bind "$tools" opt/tools
for seen in "$target" "$dir/shared"; do
	mkdir -p ".$seen"
	mount --rbind "$seen" ".$seen"
done
for name in sh cat env kill mount rm rmdir sleep umount unshare; do ln -s ../opt/tools/busybox bin/$name; done
pivot_root . old
exec env -i container=resnap "$7" sh -c '
	umount -l /old
	rmdir /old
	exec /lib/systemd/systemd --system --show-status=no'
"#;

/// runc with the control groups of this machine: those of a machine may lack the controllers that pods need.
const RUNC: &str = r#"#!/bin/sh
exec unshare -m sh -c 'mount -o rbind /opt/cgroup /sys/fs/cgroup && exec /opt/tools/runc "$@"' sh "$@"
"#;

const CONTAINERD: &str = "[Service]
Type=notify
Environment={PATH}
ExecStart=/opt/containerd/containerd
Delegate=yes
KillMode=process
[Install]
WantedBy=multi-user.target
";

/// A unit as kubeadm's, with what a test needs to let a restart fail.
const KUBELET: &str = "[Service]
Environment=KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml
EnvironmentFile=-/etc/default/kubelet
ExecStartPre=/bin/sh -c '! [ -e /run/kubelet-fails -a -e /etc/systemd/system/kubelet.service.d/10-resnap.conf ]'
ExecStart=/usr/bin/kubelet $KUBELET_CONFIG_ARGS $KUBELET_EXTRA_ARGS
[Install]
WantedBy=multi-user.target
";

/// Writes the files of a machine that are not Debian's.
pub(super) fn write_files(dir: &Path, dist: &Dist) -> Result<()> {
    let own = dir.join("own");
    let units = "etc/systemd/system";
    let files = [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n".to_owned()),
        ("etc/group", "root:x:0:\n".to_owned()),
        ("etc/machine-id", String::new()),
        ("etc/hosts", "127.0.0.1 localhost\n".to_owned()),
        ("etc/resolv.conf", String::new()),
        ("etc/containerd/config.toml", containerd(dist)),
        (
            "usr/bin/kubelet",
            "#!/bin/sh\nwhile :; do sleep 60; done\n".to_owned(),
        ),
        ("usr/bin/runc", RUNC.to_owned()),
        (
            &format!("{units}/containerd.service"),
            CONTAINERD.replace("{PATH}", PATH),
        ),
        (&format!("{units}/kubelet.service"), KUBELET.to_owned()),
    ];
    for (name, text) in files {
        let path = own.join(name);
        fs::create_dir_all(path.parent().unwrap_or(&own))?;
        fs::write(&path, text).with_context(|| format!("write {path:?}"))?;
    }
    for program in ["usr/bin/kubelet", "usr/bin/runc"] {
        fs::set_permissions(own.join(program), Permissions::from_mode(0o755))?;
    }
    // These would change the kernel or the /dev of all, or want D-Bus.
    for name in [
        "systemd-sysctl.service",
        "systemd-journald-dev-log.socket",
        "systemd-tmpfiles-setup-dev.service",
        "systemd-logind.service",
        "getty.target",
    ] {
        symlink("/dev/null", own.join(units).join(name))?;
    }
    for (directory, name) in [
        ("multi-user.target.wants", "containerd.service"),
        ("multi-user.target.wants", "kubelet.service"),
        ("sysinit.target.wants", "systemd-journald.service"),
    ] {
        let directory = own.join(units).join(directory);
        fs::create_dir_all(&directory)?;
        symlink(format!("../{name}"), directory.join(name))?;
    }
    symlink(
        "/lib/systemd/system/multi-user.target",
        own.join(units).join("default.target"),
    )?;
    Ok(())
}

/// Returns a configuration as distributions have it, with a directory for more.
fn containerd(dist: &Dist) -> String {
    if dist.version() < (2, 0, 0) {
        return r#"version = 2
imports = ["/etc/containerd/conf.d/*.toml"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  BinaryName = "/usr/bin/runc"
"#
        .to_owned();
    }
    r#"version = 3
imports = ["/etc/containerd/conf.d/*.toml"]
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "docker.io/library/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = "/usr/bin/runc"
"#
    .to_owned()
}

/// The mount of the control groups, in the directory of a machine.
pub(super) const CGROUPS: &str = "cgroup";

/// Starts a machine in a control group of this name. Returns the group, and the parent of its first process.
pub(super) fn spawn(
    dir: &Path,
    group: &str,
    dist: &Dist,
    program: &Path,
) -> Result<(PathBuf, Child)> {
    let packages = target_dir().join("tools/systemd");
    lay_out(&packages, &debs(&PACKAGES, Suite::Bookworm)?)?;
    for name in ["disk", CGROUPS] {
        fs::create_dir(dir.join(name)).with_context(|| format!("create {name} in {dir:?}"))?;
    }
    let cgroups = dir.join(CGROUPS);
    mount("cgroup2", &cgroups, "cgroup2", MountFlags::empty(), None)
        .context("mount the control groups")?;
    let group = cgroups.join(group);
    fs::create_dir(&group).with_context(|| format!("create {group:?}"))?;
    let console = File::create(dir.join("console"))?;
    let unshare = Command::new("sh")
        .args([
            "-c",
            "echo $$ >\"$1\" && shift && exec unshare \"$@\"",
            "sh",
        ])
        .arg(group.join("cgroup.procs"))
        .args(["--mount", "--pid", "--uts", "--ipc", "--cgroup"])
        .args(["--fork", "--kill-child", "--propagation", "private"])
        .args(["sh", "-c", BOOT, "sh"])
        .args([dir, &packages, program])
        .args([dist.bin(), dist.tools(), &target_dir()])
        .arg(PATH)
        .stdin(Stdio::null())
        .stdout(console.try_clone()?)
        .stderr(console)
        .spawn()
        .context("start unshare (package util-linux)")?;
    Ok((group, unshare))
}
