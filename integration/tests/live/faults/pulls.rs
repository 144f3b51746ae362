// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Faults while containerd pulls an image, whose layers resnap writes as its diff plugin.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use resnap_integration::registry::Registry;
use resnap_integration::tap::{Side, Tap};
use tonic::Code;

use super::fault::{CallFault, Fault};
use super::image::image;
use super::process::supervise;
use super::state::{Labelled, State};
use super::stored::Layers;
use super::sweep::sweep;
use super::syscalls::{self, Effect, Syscall};
use crate::missing::pushed;
use crate::node::{Node, unique};
use crate::poll::{DEADLINE, eventually};
use crate::served::Served;
use crate::suite::live_tests;

live_tests! {
    DiffPlugin: faults_injected_into_pulls,
}

/// A pull takes a while, with its processes.
const PART: usize = 5;

struct Setup<'a> {
    node: &'a Node,
    state: State,
    /// Between containerd and resnap.
    tap: Tap,
    dir: PathBuf,
    served: RefCell<Served>,
    _registry: Registry,
}

impl<'a> Setup<'a> {
    fn new(node: &'a Node) -> Result<Self> {
        let scratch = node.containerd.scratch();
        let registry = Registry::start(node.containerd.dist(), &scratch.join(unique("registry")))?;
        let image = pushed(node, &registry, &image(node)?, "faults:1")?;
        let dir = node.containerd.socket().with_file_name(unique("d"));
        fs::create_dir(&dir)?;
        let socket = dir.join("diff.sock");
        let tap = Tap::start(&node.containerd.diff_socket(), &socket)?;
        let this = Self {
            state: State::new(node, &image)?,
            node,
            tap,
            served: RefCell::new(start(node, &dir, Ok)?),
            dir,
            _registry: registry,
        };
        this.is_served()?;
        Ok(this)
    }

    fn is_served(&self) -> Result<()> {
        let socket = self.dir.join("diff.sock");
        eventually("the diff plugin answers", DEADLINE, || {
            // By a fault at its start.
            let ended = self.served.borrow_mut().process.try_wait()?.is_some();
            Ok(ended || UnixStream::connect(&socket).is_ok())
        })
    }

    /// Starts the daemon again, by what is made of its command.
    fn serve(&self, wrap: impl FnOnce(Command) -> Result<Command>) -> Result<()> {
        let mut served = self.served.borrow_mut();
        served.kill()?;
        *served = start(self.node, &self.dir, wrap)?;
        drop(served);
        self.is_served()
    }

    fn prepare(&self, snapshotter: &str) -> Result<()> {
        let image = &self.state.image.reference;
        let _ = self.node.ctr(&["images", "rm", "--sync", image]);
        self.state.expire()?;
        let left = self.state.snapshots(snapshotter)?;
        ensure!(left.is_empty(), "{left:?} of an image that was removed");
        Ok(())
    }

    fn pull(&self, snapshotter: &str) -> Command {
        let mut command = self.node.containerd.ctr(&self.node.namespace);
        command.args([
            "images",
            "pull",
            "--plain-http",
            "--snapshotter",
            snapshotter,
        ]);
        command.arg(&self.state.image.reference);
        command
    }

    /// Pulls until that succeeds: containerd asks a plugin that was away again only after seconds.
    fn pulls(&self, snapshotter: &str, mut help: impl FnMut() -> Result<()>) -> Result<()> {
        let begin = Instant::now();
        loop {
            let ended = supervise(
                self.pull(snapshotter),
                &self.node.containerd.scratch(),
                |_| help(),
            )?;
            help()?;
            if ended.is_success() {
                return Ok(());
            }
            if begin.elapsed() > DEADLINE {
                bail!("the pull fails: {ended:#?}");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn is_done(&self, snapshotter: &str, stored: &Layers) -> Result<()> {
        self.state
            .has_only(snapshotter, self.state.image.layers.len(), None)?;
        self.state.is_right(snapshotter, stored, Labelled::Anyhow)?;
        if !self.node.staged(snapshotter)?.is_empty() {
            // What could not be removed is removed by the next pull.
            self.prepare(snapshotter)?;
            self.pulls(snapshotter, || Ok(()))?;
        }
        eventually("no staged layer is left", DEADLINE, || {
            Ok(self.node.staged(snapshotter)?.is_empty())
        })
    }

    /// Returns what a pull without faults makes, and all faults that it can meet.
    fn learn(&self, snapshotter: &str) -> Result<(Layers, Vec<Fault>)> {
        self.prepare(snapshotter)?;
        self.tap.reset();
        self.pulls(snapshotter, || Ok(()))?;
        let calls = self.tap.calls();
        let stored = self.state.stored(snapshotter)?;
        self.is_done(snapshotter, &stored)?;
        let log = self.node.containerd.scratch().join(unique("strace"));
        self.serve(|command| Ok(syscalls::traced(&command, &log)))?;
        let process = self.served.borrow().process.id();
        self.prepare(snapshotter)?;
        self.pulls(snapshotter, || Ok(()))?;
        self.serve(Ok)?;
        let syscalls: BTreeSet<Syscall> =
            syscalls::of_files(&log, process, &["/run/resnap-data/"])?;
        let mut faults = Fault::all(&calls, &syscalls);
        faults.retain(happens);
        Ok((stored, faults))
    }

    fn inject(&self, snapshotter: &str, stored: &Layers, fault: &Fault) -> Result<bool> {
        self.prepare(snapshotter)?;
        let log = self.node.containerd.scratch().join(unique("strace"));
        if let Fault::Syscall { call, effect } = fault
            && let Err(error) =
                self.serve(|command| Ok(syscalls::faulty(&command, &log, call, *effect)))
        {
            let process = self.served.borrow().process.id();
            self.serve(Ok)?;
            return match syscalls::injected(&log, process, *effect)? {
                Some(true) => Err(error),
                _ => Ok(false),
            };
        }
        let process = self.served.borrow().process.id();
        fault.arm(&self.tap);
        let killed = Cell::new(false);
        let result = self.pulls(snapshotter, || {
            let ended = self.served.borrow_mut().process.try_wait()?;
            if ended.is_some() {
                ensure!(!killed.replace(true), "it ended twice");
                self.serve(Ok)?;
            }
            Ok(())
        });
        let happened = self.tap.pending() == 0;
        self.tap.disarm();
        self.tap.reset();
        result?;
        if let Fault::Syscall { effect, .. } = fault {
            // Each thread of the daemon meets it.
            if !killed.get() {
                self.serve(Ok)?;
            }
            self.is_done(snapshotter, stored)?;
            return Ok(syscalls::injected(&log, process, *effect)? == Some(true));
        }
        self.is_done(snapshotter, stored)?;
        Ok(happened)
    }
}

/// Returns whether a fault can be one of a pull. containerd waits without a limit, takes a layer that exists
/// for one of its own, and is the other side of the tap; a daemon whose disk stays full writes nothing.
fn happens(fault: &Fault) -> bool {
    let others = [
        CallFault::Hang,
        CallFault::Expire,
        CallFault::Fail(Code::AlreadyExists),
        CallFault::Kill(Side::Client),
    ];
    let stays = matches!(
        fault,
        Fault::Syscall {
            effect: Effect::Always(_),
            ..
        }
    );
    !stays && !others.into_iter().any(|other| fault.is(other))
}

fn start(node: &Node, dir: &Path, wrap: impl FnOnce(Command) -> Result<Command>) -> Result<Served> {
    let socket = dir.join("diff.sock");
    let config = format!("diff.socket = {socket:?}\nsources.order = []\n");
    let mut command = node.configured_command(&config)?;
    command.arg("serve");
    Served::begin(&mut wrap(command)?, dir)
}

fn faults_injected_into_pulls(node: &Node) -> Result<()> {
    // The CRI gives images of its namespace more names.
    let node = node.in_new_namespace();
    let setup = Setup::new(&node)?;
    let snapshotters: Vec<&str> = node.targets().collect();
    let mut faults = Vec::new();
    let mut cleans = Vec::new();
    for (place, snapshotter) in snapshotters.iter().enumerate() {
        let (stored, all) = setup
            .learn(snapshotter)
            .with_context(|| format!("a pull for {snapshotter}"))?;
        faults.extend(all.into_iter().map(|fault| (place, fault)));
        cleans.push(stored);
    }
    let names: Vec<String> = snapshotters
        .iter()
        .map(|on| format!("pull for {on}"))
        .collect();
    sweep(&names, faults, PART, |place, fault| {
        setup.inject(snapshotters[place], &cleans[place], fault)
    })?;
    setup.served.into_inner().terminate()?;
    let _ = setup.tap.finish();
    Ok(())
}
