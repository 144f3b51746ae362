// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap serve` under a service manager, of which a socket and a shell play the part.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use resnap_integration::cri::Cri;
use resnap_integration::image::{HELLO_SAYS, hello};

use crate::command::run_to_end;
use crate::node::{Node, unique};
use crate::proxy::pulled;
use crate::served::Served;
use crate::suite::live_tests;

live_tests! {
    Alone: systemd_is_notified,
    Alone: systemd_is_notified_before_containerd_runs,
    Containerd: systemd_passes_sockets,
    ErofsHandler: systemd_hardening_allows_all_work,
}

/// A service manager that receives notifications.
struct Manager {
    socket: UnixDatagram,
    dir: PathBuf,
}

impl Manager {
    fn listen(node: &Node) -> Result<Self> {
        let dir = node.containerd.socket().with_file_name(unique("s"));
        std::fs::create_dir(&dir)?;
        let socket = UnixDatagram::bind(dir.join("notify"))?;
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Self { socket, dir })
    }

    fn start(&self, node: &Node) -> Result<Served> {
        let mut command = node.resnap_command()?;
        command
            .arg("serve")
            .env("NOTIFY_SOCKET", self.dir.join("notify"))
            .env("WATCHDOG_USEC", "400000");
        Served::begin(&mut command, &self.dir)
    }

    fn hear(&self) -> Result<String> {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message)?;
        Ok(String::from_utf8(message[..length].to_vec())?)
    }

    /// Receives until a line begins with `line`; other messages must begin with `meanwhile`.
    fn wait_for(&self, line: &str, meanwhile: &str) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            let message = self.hear()?;
            if message
                .lines()
                .any(|message_line| message_line.starts_with(line))
            {
                return Ok(());
            }
            let expected = message.starts_with(meanwhile) || message == "WATCHDOG=1\n";
            ensure!(expected, "heard {message:?} before {line}");
        }
        bail!("{line} was not received")
    }
}

fn systemd_is_notified(node: &Node) -> Result<()> {
    let manager = Manager::listen(node)?;
    let served = manager.start(node)?;
    manager.wait_for("READY=1", "STATUS=")?;
    // Now, not soon.
    std::os::unix::net::UnixStream::connect(&served.socket)?;

    let since = Instant::now();
    for _ in 0..5 {
        ensure!(manager.hear()? == "WATCHDOG=1\n");
    }
    let took = since.elapsed();
    let all = Duration::from_millis(400) * 5;
    ensure!(took < all, "five times in {took:?}");
    ensure!(took > all / 4, "five times in {took:?}");

    // Not while calls end, but before: nobody is to come any more.
    served.stop()?;
    manager.wait_for("STOPPING=1", "WATCHDOG=1")
}

fn systemd_is_notified_before_containerd_runs(node: &Node) -> Result<()> {
    node.containerd.kill()?;
    let manager = Manager::listen(node)?;
    let served = manager.start(node)?;
    manager.wait_for("STATUS=waiting: connect to containerd at", "")?;
    manager.wait_for("STATUS=waiting: connect to containerd at", "")?;
    node.containerd.restart()?;
    manager.wait_for("READY=1", "STATUS=waiting: ")?;
    served.stop()?;
    manager.wait_for("STOPPING=1", "WATCHDOG=1")?;

    node.containerd.kill()?;
    let served = manager.start(node)?;
    manager.wait_for("STATUS=waiting: ", "WATCHDOG=1")?;
    served.stop()?;
    manager.wait_for("STOPPING=1", "STATUS=waiting: ")
}

/// `resnap serve` as after socket activation with this socket under this name.
fn activated(node: &Node, socket: &UnixListener, name: &str) -> Result<Command> {
    activated_command(node.resnap_command()?.arg("serve"), socket, name)
}

/// A command as after socket activation with this socket under this name.
pub(crate) fn activated_command(
    command: &Command,
    socket: &UnixListener,
    name: &str,
) -> Result<Command> {
    let mut shell = Command::new("/bin/sh");
    shell
        .args([
            "-c",
            "exec 3<&0 </dev/null; LISTEN_PID=$$ exec \"$@\"",
            "sh",
        ])
        .arg(command.get_program())
        .args(command.get_args())
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", name)
        .stdin(Stdio::from(OwnedFd::from(socket.try_clone()?)));
    for (key, value) in command.get_envs() {
        shell.env(key, value.context("an environment that is taken away")?);
    }
    Ok(shell)
}

fn systemd_passes_sockets(node: &Node) -> Result<()> {
    let dir = node.containerd.socket().with_file_name(unique("a"));
    std::fs::create_dir(&dir)?;
    let path = dir.join("elsewhere.sock");
    let socket = UnixListener::bind(&path)?;
    let asks = |path: &Path| Cri::connect(path, &node.containerd.scratch());

    // One that came before the daemon, and one after it came again.
    for _ in 0..2 {
        let early = std::thread::scope(|scope| {
            let early = scope.spawn(|| asks(&path));
            let served = Served::begin(&mut activated(node, &socket, "cri")?, &dir)?;
            let early = early.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
            ensure!(!served.socket.exists(), "it listens at a socket of its own");
            early.status()?;
            drop(early);
            served.terminate()
        });
        early?;
        ensure!(path.exists(), "the socket of another was removed");
    }

    for (name, says) in [
        ("resnap.socket", "socket \"resnap.socket\" was handed over"),
        ("", "socket \"\" was handed over"),
    ] {
        let mut command = activated(node, &socket, name)?;
        let refused = run_to_end(command.env("RESNAP_RUNTIME_DIR", &dir))?;
        ensure!(refused.code == Some(2), "{refused:#?}");
        ensure!(refused.stderr.contains(says), "{refused:#?}");
        ensure!(
            refused.stderr.contains("[\"cri\", \"api\", \"diff\"]"),
            "{refused:#?}"
        );
    }
    Ok(())
}

/// The hardening of the unit with containerd as the writer, as far as it is possible without systemd: everything but
/// the runtime directory is read-only, and there are no capabilities.
const CONFINE: &str = r#"set -e
dir=$1
shift
mount --bind "$dir" "$dir"
while read -r _ _ _ _ at _; do
    [ "$at" = "$dir" ] || mount -o remount,bind,ro "$at" 2>/dev/null || true
done </proc/self/mountinfo
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@""#;

/// A command that is confined so, with this runtime directory.
pub(crate) fn confined(command: &Command, dir: &Path) -> Result<Command> {
    let mut confined = Command::new("unshare");
    confined
        .args(["--mount", "--propagation", "private"])
        .args(["/bin/sh", "-c", CONFINE, "sh"])
        .arg(dir)
        .arg(command.get_program())
        .args(command.get_args());
    for (key, value) in command.get_envs() {
        confined.env(key, value.context("an environment that is taken away")?);
    }
    Ok(confined)
}

fn systemd_hardening_allows_all_work(node: &Node) -> Result<()> {
    let unit = include_str!("../../../examples/systemd/resnap.service");
    let drop_in = include_str!("../../../examples/systemd/20-containerd-writes.conf");
    for line in ["ReadWritePaths=\n", "CapabilityBoundingSet=\n"] {
        ensure!(drop_in.contains(line), "the drop-in has no {line}");
    }
    for line in [
        "NoNewPrivileges=yes\n",
        "ProtectSystem=strict\n",
        "RuntimeDirectory=resnap\n",
        // If it exceeds its memory, only this service is killed.
        "MemoryMax=1G\n",
        "TasksMax=1024\n",
        "OOMScoreAdjust=-500\n",
    ] {
        ensure!(unit.contains(line), "the unit has no {line}");
    }
    pulled(node)?;
    let dir = node.containerd.socket().with_file_name(unique("c"));
    std::fs::create_dir(&dir)?;
    let mut confined = confined(node.resnap_command()?.arg("serve"), &dir)?;
    let served = Served::begin(&mut confined, &dir)?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;

    let proc = PathBuf::from(format!("/proc/{}", served.process.id()));
    let status = std::fs::read_to_string(proc.join("status"))?;
    for line in [
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        ensure!(status.contains(line), "no {line:?} in {status}");
    }
    let mounts = std::fs::read_to_string(proc.join("mounts"))?;
    let writable = mounts.lines().filter(|line| {
        let mut words = line.split(' ').skip(1);
        let at = words.next().unwrap_or_default();
        let options = words.nth(1).unwrap_or_default();
        // The latter systemd leaves as they are, too.
        let may_be = [&*dir.to_string_lossy(), "/proc", "/dev", "/sys"]
            .iter()
            .any(|start| at.starts_with(start));
        options.split(',').any(|option| option == "rw") && !may_be
    });
    let writable: Vec<&str> = writable.collect();
    ensure!(writable.is_empty(), "still writable: {writable:#?}");

    let sandbox = cri.run_pod_sandbox("erofs", "confined")?;
    let exit = cri.run(&sandbox, "container", &hello()?.reference, &[])?;
    ensure!(exit.output.trim() == HELLO_SAYS, "{exit:?}");
    cri.remove_all()?;
    drop(cri);
    served.stop()
}
