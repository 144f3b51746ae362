// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Faults of configurations, the kernel, kubelet and the daemon.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use resnap_integration::daemon::Options;

use super::{Bed, Examined};
use crate::command::run_to_end;
use crate::node::Node;
use crate::poll::{DEADLINE, eventually};
use crate::suite::live_tests;

live_tests! {
    Handler: doctor_finds_faults_of_containerds_configuration,
    Erofs: doctor_finds_faults_of_the_kernel,
    Containerd: doctor_finds_faults_of_kubelet_and_the_daemon,
}

/// Moves the time of a file's last change past that of anything that runs.
fn touch(path: &Path) -> Result<()> {
    let later = SystemTime::now() + Duration::from_secs(60);
    Ok(File::options()
        .append(true)
        .open(path)?
        .set_modified(later)?)
}

/// Writes a file as if it had been so from the start.
fn edit(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, text)?;
    let file = File::options().append(true).open(path)?;
    Ok(file.set_modified(SystemTime::UNIX_EPOCH)?)
}

fn doctor_finds_faults_of_containerds_configuration(shared: &Node) -> Result<()> {
    let options = Options {
        nydus: true,
        ..Options::default()
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

/// Returns the command in a mount namespace of its own, after `script`.
fn behind(script: &str, command: &Command) -> Command {
    let mut wrapped = Command::new("unshare");
    let script = format!("set -e; {script}; exec \"$@\"");
    wrapped.args([
        "--mount",
        "--propagation",
        "slave",
        "sh",
        "-c",
        &script,
        "sh",
    ]);
    wrapped.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            wrapped.env(name, value);
        }
    }
    wrapped
}

fn doctor_finds_faults_of_the_kernel(shared: &Node) -> Result<()> {
    let options = Options {
        pull_for_handlers: true,
        ..Options::default()
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

    let path = node.containerd.root().with_file_name("containerd.toml");
    let labels = "disable_apparmor = true\n  enable_selinux = true";
    let text = fs::read_to_string(&path)?.replace("disable_apparmor = true", labels);
    edit(&path, text)?;
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

fn doctor_finds_faults_of_kubelet_and_the_daemon(shared: &Node) -> Result<()> {
    let options = Options {
        pull_for_handlers: true,
        ..Options::default()
    };
    let mut bed = Bed::start(shared, options, "")?;
    bed.assert_well()?;
    fs::create_dir(&bed.kubelet_root)?;
    let file = bed.kubelet_root.join("config.yaml");
    let (direct, own) = (
        bed.node.containerd.socket().to_owned(),
        bed.served.socket.clone(),
    );
    let endpoint =
        |socket: &Path| format!("containerRuntimeEndpoint: unix://{}\n", socket.display());
    fs::write(&file, endpoint(&direct) + "runtimeRequestTimeout: 10s\n")?;
    let found = bed.doctor(&[])?;
    found.assert_found(&["kubelet.endpoint", "kubelet.timeout"])?;
    let flag = format!("--container-runtime-endpoint=unix://{}", own.display());
    found.assert_way_out("kubelet.endpoint", &["past resnap"], &[&flag])?;
    found.assert_way_out("kubelet.timeout", &["10s"], &["2m"])?;
    // The arguments of the process override its file.
    let program = bed.node.containerd.scratch().join("kubelet.bin/kubelet");
    fs::create_dir(program.with_file_name(""))?;
    fs::write(&program, "#!/bin/sh\nread -r _\n")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let root = format!("--root-dir={}", bed.kubelet_root.display());
    // A process in a container can have any name.
    let mut strange = Command::new("unshare")
        .arg("--mount")
        .arg(&program)
        .args([&*root, "--config", "/dev/zero"])
        .stdin(Stdio::piped())
        .spawn()?;
    let comm = format!("/proc/{}/comm", strange.id());
    let run = || {
        eventually("the stranger runs", DEADLINE, || {
            Ok(fs::read_to_string(&comm)? == "kubelet\n")
        })?;
        bed.doctor(&[])?
            .assert_found(&["kubelet.endpoint", "kubelet.timeout"])
    };
    let ran = run();
    strange.kill()?;
    strange.wait()?;
    ran?;
    let arguments = [&*root, &flag, "--runtime-request-timeout", "2m"];
    let mut kubelet = Command::new(&program)
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()?;
    let run = || {
        eventually("kubelet is well", DEADLINE, || {
            Ok(bed.doctor(&[])?.output.code == Some(0))
        })?;
        bed.assert_well()
    };
    let ran = run();
    kubelet.kill()?;
    kubelet.wait()?;
    ran?;
    fs::write(&file, endpoint(&own))?;
    bed.assert_well()?;

    touch(&bed.served.dir.join("config.toml"))?;
    let found = bed.doctor(&[])?;
    found.assert_found(&["daemon.config-changed"])?;
    found.assert_way_out(
        "daemon.config-changed",
        &["config.toml"],
        &["systemctl restart resnap"],
    )?;
    let mut command = bed.node.in_new_namespace().resnap_command()?;
    command.env("RESNAP_RUNTIME_DIR", &bed.served.dir);
    let found = Examined::by(command.args(["doctor", "--json"]))?;
    found.assert_way_out("daemon.target", &["k8s.io"], &["--namespace k8s.io doctor"])?;
    fs::remove_file(&own)?;
    let found = bed.doctor(&[])?;
    found.assert_found(&["daemon.config-changed", "daemon.cri"])?;
    found.assert_way_out("daemon.cri", &["cri.sock"], &["systemctl restart resnap"])?;

    bed.served.kill()?;
    let found = bed.doctor(&[])?;
    found.assert_found(&["daemon.api", "kubelet.endpoint"])?;
    let start = ["systemctl start resnap"];
    found.assert_way_out("daemon.api", &["nothing answers"], &start)?;
    found.assert_way_out("kubelet.endpoint", &["no pod starts"], &start)?;
    bed.served = bed.served.again(&bed.node, &direct)?;
    bed.wait_for_daemon()?;
    let config = bed.served.dir.join("config.toml");
    edit(&config, fs::read(&config)?)?;
    bed.assert_well()?;

    bed.node.containerd.kill()?;
    let down = run_to_end(bed.command()?.args(["doctor", "--json"]))?;
    ensure!(down.kind()? == "Unavailable", "{down:?}");
    bed.node.containerd.restart()?;
    bed.served.stop()
}
