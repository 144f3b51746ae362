// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap install` and `resnap uninstall` on machines with systemd, and the service that they install.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use resnap_integration::cri::Cri;
use resnap_integration::image::{HELLO_SAYS, hello, pause};
use resnap_integration::machine::{Files, Machine, PROGRAM};
use serde_json::Value;

use crate::command::{CommandOutput, resnap, run_to_end};
use crate::node::Node;
use crate::suite::live_tests;

live_tests! {
    Containerd: install_is_undone_to_the_byte,
    Erofs: install_gives_handlers_snapshotters_and_a_service,
}

const CRI: &str = "/run/resnap/cri.sock";
const FLAG: &str = "--container-runtime-endpoint=unix:///run/resnap/cri.sock";

/// Runs a test on a machine. Its error has the end of the machine's journal.
fn on_machine(node: &Node, test: impl FnOnce(&Machine) -> Result<()>) -> Result<()> {
    let program = resnap()?;
    let machine = Machine::start(node.containerd.dist(), program.get_program().as_ref())?;
    test(&machine).map_err(|error| {
        let journal =
            "journalctl --lines 60 --output short-precise --unit resnap.service --unit kubelet.service";
        let journal = machine.run(journal).unwrap_or_default();
        anyhow!("{error:#}\n--- the machine's journal ends ---\n{journal}")
    })?;
    machine.stop()
}

fn run(machine: &Machine, line: &str) -> Result<CommandOutput> {
    run_to_end(&mut machine.command(line))
}

/// Checks that the files of a machine are as before.
fn assert_same(machine: &Machine, before: &Files) -> Result<()> {
    let after = machine.files()?;
    let mut paths = before.keys().chain(after.keys());
    let other = paths.find(|path| before.get(*path) != after.get(*path));
    ensure!(other.is_none(), "{other:?} is not as before");
    Ok(())
}

/// Returns whether the kubelet of a machine talks to resnap.
fn kubelet_uses_resnap(machine: &Machine) -> Result<bool> {
    let active = machine.property("kubelet.service", "ActiveState")?;
    ensure!(active == "active", "kubelet is {active}");
    let arguments = machine.run("cat /proc/$(systemctl show kubelet -P MainPID)/cmdline")?;
    Ok(arguments.split('\0').any(|argument| argument == FLAG))
}

/// Checks that a run says what has to be done by hand, and changes nothing.
fn assert_by_hand(machine: &Machine, before: &Files, arguments: &str, says: &[&str]) -> Result<()> {
    let refused = run(machine, &format!("{PROGRAM} {arguments}"))?;
    ensure!(refused.code == Some(1), "{refused:#?}");
    for text in says {
        ensure!(refused.stdout.contains(text), "no {text:?}: {refused:#?}");
    }
    assert_same(machine, before)
}

fn install_is_undone_to_the_byte(node: &Node) -> Result<()> {
    on_machine(node, |machine| {
        let version = node.containerd.version();
        says_what_it_cannot_do(machine, version)?;
        is_undone(machine)
    })
}

/// Steps that have to be done by hand are printed, and nothing is changed.
fn says_what_it_cannot_do(machine: &Machine, version: (u32, u32, u32)) -> Result<()> {
    let before = machine.files()?;
    let handler = format!("{PROGRAM} install --handler other=native");
    if version < (1, 7, 0) {
        let refused = run(machine, &handler)?;
        ensure!(refused.code == Some(2), "{refused:#?}");
        ensure!(refused.stderr.contains("before 1.7"), "{refused:#?}");
    } else if version < (2, 0, 0) {
        let line = "containerd.runtimes.other]";
        assert_by_hand(machine, &before, "install --handler other=native", &[line])?;
    }
    // A variable that beats the drop-in.
    let environment = machine.path("/etc/default");
    fs::create_dir_all(&environment)?;
    let environment = environment.join("kubelet");
    fs::write(&environment, "KUBELET_EXTRA_ARGS=\n")?;
    let says = ["/etc/default/kubelet sets KUBELET_EXTRA_ARGS", FLAG];
    assert_by_hand(machine, &machine.files()?, "install", &says)?;
    fs::remove_file(&environment)?;
    Ok(())
}

fn is_undone(machine: &Machine) -> Result<()> {
    // A unit of the operator, with the same text.
    let unit = machine.path("/etc/systemd/system/resnap.socket");
    fs::write(
        &unit,
        include_str!("../../../examples/systemd/resnap.socket"),
    )?;
    fs::set_permissions(&unit, Permissions::from_mode(0o640))?;
    chown(&unit, Some(1), Some(2))?;
    let before = machine.files()?;
    let listed = run(machine, &format!("{PROGRAM} install --dry-run"))?.ok()?;
    for line in [
        "    ExecStart=/usr/local/bin/resnap serve",
        "    Environment=\"KUBELET_EXTRA_ARGS=",
    ] {
        ensure!(listed.contains(line), "no {line:?} in {listed}");
    }
    assert_same(machine, &before)?;
    // The last step fails.
    machine.run("echo >/run/kubelet-fails")?;
    let failed = run(machine, &format!("{PROGRAM} install"))?;
    ensure!(failed.code == Some(2), "{failed:#?}");
    ensure!(
        failed
            .stderr
            .contains("nothing was changed: `systemctl restart kubelet"),
        "{failed:#?}"
    );
    machine.run("rm /run/kubelet-fails")?;
    assert_same(machine, &before)?;
    ensure!(!kubelet_uses_resnap(machine)?);
    ensure!(machine.property("resnap.service", "LoadState")? == "not-found");

    let installed = run(machine, &format!("{PROGRAM} install"))?.ok()?;
    let steps = |text: &str| {
        let steps = text
            .lines()
            .filter(|line| line.starts_with("write ") || line.starts_with("run "));
        steps.map(str::to_owned).collect::<Vec<_>>()
    };
    ensure!(
        steps(&listed) == steps(&installed),
        "{listed}\nis not\n{installed}"
    );
    ensure!(installed.contains("resnap uninstall"), "{installed}");
    ensure!(kubelet_uses_resnap(machine)?);
    Cri::connect(&machine.path(CRI), &machine.shared())?.status()?;
    let journal = machine.run("journalctl --unit resnap.service --output cat")?;
    ensure!(journal.contains("serving"), "{journal}");

    let after = machine.files()?;
    let process = machine.property("resnap.service", "MainPID")?;
    let again = run(machine, "/usr/local/bin/resnap install")?.ok()?;
    ensure!(again.trim() == "nothing is to be changed", "{again}");
    ensure!(
        machine.property("resnap.service", "MainPID")? == process,
        "it was restarted"
    );
    assert_same(machine, &after)?;

    let removed = run(machine, "/usr/local/bin/resnap uninstall")?.ok()?;
    let steps: Vec<&str> = removed.lines().collect();
    let at = |step: &str| {
        let position = steps.iter().position(|line| *line == step);
        position.with_context(|| format!("no {step:?} in {removed}"))
    };
    let kubelet = at("run systemctl restart kubelet.service")?;
    let service = at("run systemctl disable --now resnap.socket resnap.service")?;
    ensure!(kubelet < service, "{removed}");
    ensure!(!kubelet_uses_resnap(machine)?);
    ensure!(!machine.path("/run/resnap").exists());
    assert_same(machine, &before)?;
    let again = run(machine, &format!("{PROGRAM} uninstall"))?.ok()?;
    ensure!(again.trim() == "nothing is to be changed", "{again}");
    Ok(())
}

/// resnap has to write layers itself: nothing is left to containerd.
const CONFIG: &str = "snapshotters.overlayfs.differ = \"resnap\"
snapshotters.native.differ = \"resnap\"
snapshotters.erofs.differ = \"resnap\"
";

fn install_gives_handlers_snapshotters_and_a_service(node: &Node) -> Result<()> {
    on_machine(node, serves_handlers)
}

fn serves_handlers(machine: &Machine) -> Result<()> {
    fs::create_dir_all(machine.path("/etc/resnap"))?;
    fs::write(machine.path("/etc/resnap/config.toml"), CONFIG)?;
    fs::create_dir_all(machine.path("/etc/containerd/conf.d"))?;
    use_other_file(machine)?;
    let before = machine.files()?;
    let (hello, pause) = (hello()?, pause()?);
    for image in [&hello, &pause] {
        let archive = image.archive.display();
        let import = "ctr --namespace k8s.io images import --all-platforms --no-unpack";
        machine.run(&format!("{import} {archive}"))?;
    }
    let refused = run(
        machine,
        &format!("{PROGRAM} install --handler erofs=erofsx"),
    )?;
    ensure!(refused.code == Some(2), "{refused:#?}");
    ensure!(
        refused.stderr.contains("no snapshotter erofsx; it has")
            && refused.stderr.contains(" overlayfs"),
        "{refused:#?}"
    );
    assert_same(machine, &before)?;
    let installed = run(machine, &format!("{PROGRAM} install --handler erofs=erofs"))?.ok()?;
    ensure!(installed.contains("snapshotter = \"erofs\""), "{installed}");
    let again = run(machine, &format!("{PROGRAM} install --handler erofs=erofs"))?.ok()?;
    ensure!(again.trim() == "nothing is to be changed", "{again}");

    // By the service, confined as it is, with all rights of files.
    for snapshotter in ["overlayfs", "native"] {
        for command in ["unpack", "verify"]
            .into_iter()
            .take(if snapshotter == "native" { 1 } else { 2 })
        {
            let line = format!(
                "resnap {command} {} --snapshotter {snapshotter}",
                hello.reference
            );
            run(machine, &line)?.ok()?;
        }
    }
    for handler in ["", "erofs"] {
        let said = run_pod(machine, handler, &format!("pod-{handler}"))?;
        ensure!(said == HELLO_SAYS, "{said:?} on {handler:?}");
    }
    let verify = format!("resnap verify {} --snapshotter erofs", hello.reference);
    run(machine, &verify)?.ok()?;

    let doctor: Value = serde_json::from_str(&run(machine, "resnap --json doctor")?.stdout)?;
    let findings = doctor["findings"].as_array().context("no findings")?;
    let faults: Vec<&Value> = findings
        .iter()
        .filter(|finding| finding["severity"] == "fault")
        .collect();
    ensure!(faults.is_empty(), "{faults:#?}");

    restarts_by_itself(machine)?;
    is_reloaded(machine)?;

    run(machine, "resnap uninstall")?.ok()?;
    ensure!(!kubelet_uses_resnap(machine)?);
    let dump = machine.run("containerd --config /etc/other/main.toml config dump")?;
    ensure!(!dump.contains("runtimes.erofs"), "{dump}");
    assert_same(machine, &before)?;
    goes_without_kubelet(machine)
}

/// Starts containerd with another main file, which has names that are relative.
fn use_other_file(machine: &Machine) -> Result<()> {
    fs::create_dir_all(machine.path("/etc/other/conf.d"))?;
    let config = fs::read_to_string(machine.path("/etc/containerd/config.toml"))?;
    let config = config.replace("/etc/containerd/conf.d", "conf.d");
    fs::write(machine.path("/etc/other/main.toml"), config)?;
    let drop_in = machine.path("/etc/systemd/system/containerd.service.d");
    fs::create_dir_all(&drop_in)?;
    let text = "[Service]\nWorkingDirectory=/etc/other\nExecStart=\n\
                ExecStart=/opt/containerd/containerd --config main.toml\n";
    fs::write(drop_in.join("other.conf"), text)?;
    machine.run("systemctl daemon-reload && systemctl restart containerd.service")?;
    Ok(())
}

/// On nodes whose kubelet does not run yet, and on those without its unit.
fn goes_without_kubelet(machine: &Machine) -> Result<()> {
    let before = machine.files()?;
    let install = format!("{PROGRAM} install");
    // As before kubeadm has run: systemd starts it again and again.
    fs::write(machine.path("/usr/bin/kubelet"), "#!/bin/sh\nexit 1\n")?;
    let drop_in = "/run/systemd/system/kubelet.service.d";
    fs::create_dir_all(machine.path(drop_in))?;
    let text = "[Service]\nRestart=always\nRestartSec=60\n";
    fs::write(machine.path(drop_in).join("test.conf"), text)?;
    machine.run("systemctl daemon-reload && systemctl restart kubelet.service")?;
    run(machine, &install)?.ok()?;
    let environment = machine.property("kubelet.service", "Environment")?;
    ensure!(environment.contains(FLAG), "{environment}");
    run(machine, "resnap uninstall")?.ok()?;
    assert_same(machine, &before)?;

    let unit = "/etc/systemd/system/kubelet.service";
    machine.run(&format!(
        "systemctl stop kubelet.service && rm {unit} && systemctl daemon-reload"
    ))?;
    let before = machine.files()?;
    let installed = run(machine, &install)?.ok()?;
    ensure!(installed.contains("kubelet was not moved"), "{installed}");
    let client = UnixStream::connect(machine.path(CRI))?;
    let says = ["Something is connected to /run/resnap/cri.sock"];
    assert_by_hand(machine, &machine.files()?, "uninstall", &says)?;
    drop(client);
    let deadline = Instant::now() + Duration::from_secs(10);
    while run(machine, "resnap uninstall")?.code != Some(0) {
        ensure!(Instant::now() < deadline, "the client is not forgotten");
    }
    assert_same(machine, &before)
}

/// Returns what a pod says that is started through resnap.
fn run_pod(machine: &Machine, handler: &str, name: &str) -> Result<String> {
    let cri = Cri::connect(&machine.path(CRI), &machine.shared())?;
    let sandbox = cri.run_pod_sandbox(handler, name)?;
    let exit = cri.run(&sandbox, "container", &hello()?.reference, &[])?;
    cri.remove_all()?;
    Ok(exit.output.trim().to_owned())
}

/// The service comes back after its watchdog, and when its socket is asked.
fn restarts_by_itself(machine: &Machine) -> Result<()> {
    let drop_in = machine.path("/run/systemd/system/resnap.service.d");
    fs::create_dir_all(&drop_in)?;
    fs::write(drop_in.join("test.conf"), "[Service]\nWatchdogSec=1\n")?;
    machine.run("systemctl daemon-reload && systemctl restart resnap.service")?;
    let process = machine.property("resnap.service", "MainPID")?;
    machine.run(&format!("kill -STOP {process}"))?;
    // The call waits at the socket meanwhile.
    Cri::connect(&machine.path(CRI), &machine.shared())?.status()?;
    let journal = machine.run("journalctl --unit resnap.service --output cat")?;
    ensure!(journal.contains("Watchdog timeout"), "{journal}");
    ensure!(machine.property("resnap.service", "MainPID")? != process);
    fs::remove_dir_all(&drop_in)?;
    machine.run("systemctl daemon-reload && systemctl stop resnap.service")?;
    ensure!(machine.property("resnap.service", "ActiveState")? == "inactive");
    Cri::connect(&machine.path(CRI), &machine.shared())?.status()?;
    ensure!(machine.property("resnap.service", "ActiveState")? == "active");
    Ok(())
}

/// A reload takes in the configuration and roots that are new, and is refused with a configuration that is wrong.
fn is_reloaded(machine: &Machine) -> Result<()> {
    let process = machine.property("resnap.service", "MainPID")?;
    let config = machine.path("/etc/resnap/config.toml");
    fs::write(&config, "prewarm_jobs = \"many\"\n")?;
    let refused = run(machine, "systemctl reload resnap.service")?;
    ensure!(refused.code == Some(1), "{refused:#?}");
    ensure!(machine.property("resnap.service", "MainPID")? == process);
    fs::write(&config, CONFIG)?;
    machine.run("systemctl reload resnap.service")?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while machine.property("resnap.service", "ActiveState")? != "active"
        || machine.property("resnap.service", "MainPID")? == process
    {
        if Instant::now() > deadline {
            bail!("it is not started again");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Cri::connect(&machine.path(CRI), &machine.shared())?.status()?;
    Ok(())
}
