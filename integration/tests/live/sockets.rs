// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The sockets of `resnap serve` as files: who may open, replace and remove them.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, ensure};
use resnap_integration::cri::Cri;
use resnap_integration::image::hello;
use resnap_integration::tap::{Method, Point};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::{UnixSocket, UnixStream};

use crate::command::{CommandOutput, run_to_end};
use crate::node::{Node, unique};
use crate::poll::{DEADLINE, eventually};
use crate::proxy::pulled;
use crate::served::Served;
use crate::suite::live_tests;

live_tests! {
    Containerd: sockets_are_closed_to_others,
    Containerd: sockets_in_an_open_directory_are_refused,
    Containerd: sockets_of_a_busy_process_are_not_replaced,
    Containerd: sockets_of_a_killed_process_are_replaced,
    Containerd: sockets_of_others_are_not_removed,
    ErofsHandler: sockets_are_handed_over_while_calls_end,
}

/// Returns an unused path for a runtime directory.
fn nowhere(node: &Node) -> PathBuf {
    node.containerd.socket().with_file_name(unique("d"))
}

fn mode(path: &Path) -> Result<u32> {
    let there = fs::symlink_metadata(path).with_context(|| format!("{path:?}"))?;
    Ok(there.permissions().mode() & 0o777)
}

/// Waits until the file has another inode than `before`, and returns the inode.
fn inode_after(path: &Path, before: Option<u64>) -> Result<u64> {
    let mut inode = None;
    eventually(&format!("{path:?} is replaced"), DEADLINE, || {
        let found = fs::symlink_metadata(path).ok().map(|found| found.ino());
        inode = found.filter(|_| found != before);
        Ok(inode.is_some())
    })?;
    inode.context("no inode")
}

/// `resnap serve`, started by these words.
fn serve_by(node: &Node, words: &[&str]) -> Result<Command> {
    let resnap = node.resnap_command()?;
    let mut command = Command::new("/usr/bin/env");
    command
        .args(words)
        .arg(resnap.get_program())
        .args(resnap.get_args())
        .arg("serve");
    for (key, value) in resnap.get_envs() {
        command.env(key, value.context("an environment that is taken away")?);
    }
    Ok(command)
}

/// Returns the result of a `resnap serve` that must fail.
fn refused(node: &Node, dir: &Path) -> Result<CommandOutput> {
    let mut command = serve_by(node, &["timeout", "20"])?;
    let output = run_to_end(command.env("RESNAP_RUNTIME_DIR", dir))?;
    ensure!(output.code == Some(2), "{output:#?}");
    Ok(output)
}

fn sockets_are_closed_to_others(node: &Node) -> Result<()> {
    let dir = nowhere(node);
    let mut open = serve_by(node, &["sh", "-c", "umask 0; exec \"$@\"", "sh"])?;
    let served = Served::begin(&mut open, &dir)?;
    for name in ["cri.sock", "api.sock"] {
        inode_after(&dir.join(name), None)?;
    }
    ensure!(mode(&dir)? == 0o700, "{:o}", mode(&dir)?);
    for entry in fs::read_dir(&dir)? {
        let path = entry?.path();
        let want = if path == served.socket { 0o660 } else { 0o600 };
        ensure!(mode(&path)? == want, "{path:?}: {:o}", mode(&path)?);
    }
    served.stop()
}

fn sockets_in_an_open_directory_are_refused(node: &Node) -> Result<()> {
    let dir = nowhere(node);
    fs::create_dir(&dir)?;
    for mode in [0o777, 0o770, 0o1777] {
        fs::set_permissions(&dir, Permissions::from_mode(mode))?;
        let output = refused(node, &dir)?;
        for says in [&dir.display().to_string(), "others may write to it"] {
            ensure!(output.stderr.contains(says), "{output:#?}");
        }
        ensure!(fs::read_dir(&dir)?.next().is_none(), "it left something");
    }
    fs::set_permissions(&dir, Permissions::from_mode(0o755))?;
    std::os::unix::fs::chown(&dir, Some(1), Some(1))?;
    let output = refused(node, &dir)?;
    for says in [&dir.display().to_string(), "it belongs to user 1"] {
        ensure!(output.stderr.contains(says), "{output:#?}");
    }
    Ok(())
}

fn sockets_of_a_busy_process_are_not_replaced(node: &Node) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let _entered = runtime.enter();
    for name in ["cri.sock", "api.sock"] {
        let dir = nowhere(node);
        fs::create_dir(&dir)?;
        let path = dir.join(name);
        let socket = UnixSocket::new_stream()?;
        socket.bind(&path)?;
        let _busy = socket.listen(1)?;
        let inode = fs::metadata(&path)?.ino();
        let mut waiting = Vec::new();
        let full = loop {
            match runtime.block_on(UnixStream::connect(&path)) {
                Ok(client) => waiting.push(client),
                Err(error) => break error,
            }
        };
        ensure!(full.kind() == ErrorKind::WouldBlock, "{full}");

        let output = refused(node, &dir)?;
        let says = format!("another process serves at {path:?}");
        ensure!(output.stderr.contains(&says), "{output:#?}");
        ensure!(fs::metadata(&path)?.ino() == inode, "{path:?} was replaced");
    }
    Ok(())
}

fn sockets_of_a_killed_process_are_replaced(node: &Node) -> Result<()> {
    let backend = node.containerd.socket();
    let mut first = Served::start(node)?;
    let inode = inode_after(&first.socket, None)?;
    inode_after(&first.dir.join("api.sock"), None)?;
    first.kill()?;
    // Leftovers of a process that was killed before it could serve are replaced, too.
    for name in ["cri.sock.new", "api.sock.new"] {
        drop(UnixListener::bind(first.dir.join(name))?);
    }
    // Older versions leave no owner file.
    fs::remove_file(first.dir.join("api.sock.owner"))?;
    let second = first.again(node, backend)?;
    inode_after(&second.socket, Some(inode))?;
    Cri::connect(&second.socket, &node.containerd.scratch())?;
    second.stop()
}

fn sockets_of_others_are_not_removed(node: &Node) -> Result<()> {
    let served = Served::start(node)?;
    inode_after(&served.socket, None)?;
    inode_after(&served.dir.join("api.sock"), None)?;
    let aside = served.dir.join("aside");
    let mut others = Vec::new();
    for name in ["cri.sock", "api.sock"] {
        let path = served.dir.join(name);
        let other = UnixListener::bind(&aside)?;
        fs::rename(&aside, &path)?;
        others.push((fs::metadata(&path)?.ino(), path, other));
    }
    served.terminate()?;
    for (inode, path, _other) in &others {
        let there = fs::metadata(path).with_context(|| format!("{path:?} was removed"))?;
        ensure!(there.ino() == *inode, "{path:?} was replaced");
    }
    Ok(())
}

fn sockets_are_handed_over_while_calls_end(node: &Node) -> Result<()> {
    pulled(node)?;
    let back = node.containerd.tap()?;
    let mut old = Served::before(node, back.socket())?;
    let cri = Cri::connect(&old.socket, &node.containerd.scratch())?;
    let sandbox = cri.run_pod_sandbox("erofs", "pod")?;
    let inode = inode_after(&old.socket, None)?;
    let reference = &hello()?.reference;
    let held = back.hold(Method::APPLY, 1, Point::Before);
    let new = std::thread::scope(|scope| {
        let create = scope.spawn(|| cri.create_container(&sandbox, "c", reference, &[]));
        held.wait()?;
        let pid = i32::try_from(old.process.id())?;
        kill_process(Pid::from_raw(pid).context("no process")?, Signal::TERM)?;
        let new = successor(&old, node, inode)?;
        // New clients are served although the old process still has calls.
        Cri::connect(&new.socket, &node.containerd.scratch())?;
        ensure!(old.process.try_wait()?.is_none(), "the old one has ended");
        held.release();
        let created = create.join().map_err(|_| anyhow!("a client panicked"))?;
        created.context("the old one did not serve its last call")?;
        anyhow::Ok(new)
    })?;
    let status = old.process.wait()?;
    ensure!(status.success(), "resnap serve ended with {status}");
    let after = Cri::connect(&new.socket, &node.containerd.scratch())?;
    after.remove_all()?;
    drop((cri, after));
    new.stop()?;
    back.finish()
}

/// Starts the next one; it is refused until the old one has received its signal.
fn successor(old: &Served, node: &Node, inode: u64) -> Result<Served> {
    let mut new = old.again(node, node.containerd.socket())?;
    eventually("a successor takes the socket over", DEADLINE, || {
        if new.process.try_wait()?.is_some() {
            new = old.again(node, node.containerd.socket())?;
        }
        Ok(fs::symlink_metadata(&new.socket).is_ok_and(|found| found.ino() != inode))
    })?;
    Ok(new)
}
