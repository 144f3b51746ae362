// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Faults of kubelet, the daemon, and a containerd that comes back.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::UNIX_EPOCH;

use anyhow::{Context as _, Result, ensure};
use resnap_containerd::Client;
use resnap_core::Scope;
use resnap_integration::daemon::Options;
use resnap_integration::image::pause;
use resnap_integration::tap::{Action, Answer, Method, Point, Tap};

use super::{Bed, Examined, behind, edit, touch};
use crate::command::run_to_end;
use crate::node::Node;
use crate::poll::{DEADLINE, eventually};
use crate::suite::live_tests;

live_tests! {
    One: doctor_finds_faults_of_kubelet_and_the_daemon,
}

fn doctor_finds_faults_of_kubelet_and_the_daemon(shared: &Node) -> Result<()> {
    let options = Options {
        pull_for_handlers: true,
        ..crate::suite::options()
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

    finds_another_version(&bed)?;
    let found = bed.doctor_with("cri.sandbox_image = \"quay.io/none:1\"\n", &[])?;
    found.assert_found(&[])?;
    found.assert_way_out(
        "images.sandbox",
        &["not on the node"],
        &["crictl pull quay.io/none:1"],
    )?;
    let config = bed.config().display().to_string();
    let step = format!("resnap --config {config} doctor");
    found.assert_way_out("daemon.config", &[&config], &[&step])?;

    touch(&bed.config())?;
    let found = bed.doctor(&[])?;
    found.assert_found(&["daemon.config-changed"])?;
    found.assert_way_out(
        "daemon.config-changed",
        &["config.toml"],
        &["systemctl restart resnap"],
    )?;
    // So says who gives it work.
    let unpack = run_to_end(bed.command()?.args(["unpack", &pause()?.reference]))?;
    for part in [&*config, "goes by what it was", "systemctl restart resnap"] {
        ensure!(unpack.stderr.contains(part), "{part} is not in {unpack:?}");
    }
    unpack.ok()?;
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
    let unit = "mount -t tmpfs none /etc/systemd; mkdir /etc/systemd/system; >/etc/systemd/system/resnap.service";
    let mut installed = bed.command()?;
    installed.args(["doctor", "--json"]);
    let installed = Examined::by(&mut behind(unit, &installed))?;
    for (found, step) in [
        (found, "resnap install"),
        (installed, "systemctl start resnap"),
    ] {
        found.assert_way_out("daemon.api", &["nothing answers"], &[step])?;
        found.assert_way_out("kubelet.endpoint", &["no pod starts"], &[step])?;
    }
    fs::remove_file(bed.served.dir.join("api.sock"))?;
    let found = bed.doctor_with("cri.handlers.other = \"native\"\n", &[])?;
    found.assert_way_out(
        "daemon.api",
        &["no daemon runs", "other"],
        &["resnap install"],
    )?;
    bed.served = bed.served.again(&bed.node, &direct)?;
    bed.wait_for_daemon()?;
    edit(&bed.config(), fs::read(bed.config())?)?;
    bed.assert_well()?;

    finds_what_restarts_bring(&bed)?;
    bed.served.stop()
}

/// Has a tap answer for the daemon, as one of another version does.
fn finds_another_version(bed: &Bed) -> Result<()> {
    let socket = bed.served.dir.join("other.sock");
    let tap = Tap::start(&socket, &bed.served.dir.join("api.sock"))?;
    // The fields of a `GetInfoResponse`, each shorter than 128 bytes.
    let mut message = Vec::new();
    let address = bed.node.containerd.socket().to_string_lossy();
    for (number, text) in [(1_u8, "0.0.1"), (2, &*address), (3, "k8s.io")] {
        message.extend([number << 3 | 2, u8::try_from(text.len())?]);
        message.extend(text.as_bytes());
    }
    let mut answer = Answer::default();
    answer
        .headers
        .insert("content-type", "application/grpc".parse()?);
    answer.body = [&[0, 0, 0, 0, u8::try_from(message.len())?], &*message]
        .concat()
        .into();
    answer.trailers.insert("grpc-status", "0".parse()?);
    let info = Method::new("/resnap.v1.ResnapService/GetInfo");
    tap.on(info, 1, Point::Before, Action::Answer(Box::new(answer)));
    let found = bed.doctor_with(&format!("api.socket = {socket:?}\n"), &[])?;
    found.assert_found(&["daemon.version"])?;
    let about = ["the daemon is resnap 0.0.1"];
    found.assert_way_out("daemon.version", &about, &["systemctl restart resnap"])?;
    tap.finish()
}

/// Kills containerd, and starts it without its CRI and with a lease that a client has forgotten long ago.
fn finds_what_restarts_bring(bed: &Bed) -> Result<()> {
    let node = &bed.node;
    node.ctr(&["leases", "create", "--id", "stray", "--expires", "0"])?;
    let created = tokio::runtime::Runtime::new()?.block_on(async {
        let socket = node.containerd.socket().to_string_lossy();
        let leases = Client::connect(&socket).await?.ports().leases;
        let leases = leases.list(&Scope::new(&node.namespace), None).await?;
        let stray = leases.into_iter().find(|lease| &*lease.id.0 == "stray");
        anyhow::Ok(stray.context("no lease")?.created)
    })?;
    node.containerd.kill()?;
    let down = run_to_end(bed.command()?.args(["doctor", "--json"]))?;
    ensure!(down.kind()? == "Unavailable", "{down:?}");

    // As Go's time.Time writes itself: a version, and the seconds of year 1.
    let time = |seconds: u64| [&[1][..], &(seconds + 62_135_596_800).to_be_bytes()].concat();
    let seconds = created.duration_since(UNIX_EPOCH)?.as_secs();
    let (own, earlier) = (time(seconds), time(seconds - 7200));
    let path = node
        .containerd
        .root()
        .join("io.containerd.metadata.v1.bolt/meta.db");
    let mut records = fs::read(&path)?;
    let places: Vec<usize> = records
        .windows(own.len())
        .enumerate()
        .filter(|(_, bytes)| *bytes == own)
        .map(|(place, _)| place)
        .collect();
    ensure!(!places.is_empty(), "the lease is not in {path:?}");
    for place in places {
        records[place..place + earlier.len()].copy_from_slice(&earlier);
    }
    fs::write(&path, records)?;
    let path = node.containerd.root().with_file_name("containerd.toml");
    let text = fs::read_to_string(&path)?;
    let (version, rest) = text.split_once('\n').context("no lines")?;
    edit(
        &path,
        format!("{version}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n{rest}"),
    )?;
    node.containerd.restart()?;
    let found = bed.doctor(&[])?;
    let steps = ["ctr --namespace k8s.io leases rm stray"];
    found.assert_way_out("orphans.foreign-leases", &["stray"], &steps)?;
    found.assert_unknown("containerd.handlers", "")?;
    node.ctr(&["leases", "rm", "stray"])?;
    edit(&path, text)?;
    node.containerd.restart()?;
    eventually("the node is well again", DEADLINE, || {
        Ok(bed.assert_well().is_ok())
    })
}
