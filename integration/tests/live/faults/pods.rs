// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Faults while a pod starts through the proxy.

use std::cell::RefCell;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use resnap_integration::cri::Cri;
use resnap_integration::image::pause;
use resnap_integration::tap::{Call, Side, Tap};

use super::fault::{CallFault, Fault};
use super::image::image;
use super::state::{Labelled, State};
use super::stored::Layers;
use super::sweep::sweep;
use crate::command::run_to_end;
use crate::node::{Node, unique};
use crate::poll::{DEADLINE, eventually};
use crate::served::Served;
use crate::suite::live_tests;

live_tests! {
    ErofsHandler: faults_injected_into_pods,
}

/// A pod takes a while, with its processes.
const PART: usize = 5;

/// The handler and its snapshotter.
const HANDLER: &str = "erofs";

/// The limit to a call, and the time in which kubelet's attempts succeed.
const CALL: Duration = Duration::from_secs(20);

/// The number of descriptors that connections and logs may add.
const SPARE: usize = 8;

struct Setup<'a> {
    node: &'a Node,
    /// The states of the sandbox image and of the container's.
    states: [State; 2],
    tap: Tap,
    served: RefCell<Served>,
    direct: Cri,
}

impl<'a> Setup<'a> {
    fn new(node: &'a Node) -> Result<Self> {
        let images = [pause()?, image(node)?];
        for image in &images {
            node.import(image)?;
            node.unpack_by_containerd("overlayfs", &image.reference)?;
        }
        let tap = node.containerd.tap()?;
        Ok(Self {
            node,
            states: [State::new(node, &images[0])?, State::new(node, &images[1])?],
            served: RefCell::new(Served::configured(node, tap.socket(), "")?),
            direct: Cri::connect(node.containerd.socket(), &node.containerd.scratch())?,
            tap,
        })
    }

    fn prepare(&self) -> Result<()> {
        self.direct.remove_all()?;
        self.states
            .iter()
            .try_for_each(|state| state.clear(&[HANDLER]))
    }

    /// Returns the socket and the directory for logs of a client.
    fn client(&self) -> (PathBuf, PathBuf) {
        let socket = self.served.borrow().socket.clone();
        (socket, self.node.containerd.scratch())
    }

    fn connect(&self) -> Result<Cri> {
        let (socket, logs) = self.client();
        connect(&socket, &logs)
    }

    fn learn(&self) -> Result<(Vec<Call>, [Layers; 2])> {
        self.prepare()?;
        let cri = self.connect()?;
        self.tap.reset();
        pod(&cri, &self.states[1].image.reference)?;
        let calls = self.tap.calls();
        let [pause, image] = &self.states;
        let stored = [pause.stored(HANDLER)?, image.stored(HANDLER)?];
        self.is_done(&stored)?;
        Ok((calls, stored))
    }

    fn is_done(&self, stored: &[Layers; 2]) -> Result<()> {
        self.direct.remove_all()?;
        for state in &self.states {
            // The next job takes over what a failed one has left.
            let mut unpack = self.node.resnap_command()?;
            unpack.env("RESNAP_RUNTIME_DIR", &self.served.borrow().dir);
            unpack.args(["unpack", "--json", "--snapshotter", HANDLER]);
            run_to_end(unpack.arg(&state.image.reference))?.ok()?;
        }
        for ((state, stored), other) in self.states.iter().zip(stored).zip(self.states.iter().rev())
        {
            state.has_only(HANDLER, state.image.layers.len(), Some(&other.image))?;
            // Where the proxy cannot know what a pod needs, containerd unpacks, without labels.
            state.is_right(HANDLER, stored, Labelled::FullyOrNot)?;
            state.is_clean()?;
        }
        let staged = self.node.staged(HANDLER)?;
        ensure!(staged.is_empty(), "{staged:?} is left");
        Ok(())
    }

    /// Attempts to start the pod until that succeeds, as kubelet does.
    fn starts(&self, fault: &Fault) -> Result<()> {
        let mut helped = false;
        let begin = Instant::now();
        let mut errors = Vec::new();
        loop {
            let (socket, logs) = self.client();
            let result = thread::scope(|scope| {
                let image = &self.states[1].image.reference;
                // The fault may come while it connects.
                let attempt = scope.spawn(move || pod(&connect(&socket, &logs)?, image));
                while !attempt.is_finished() {
                    helped = helped || self.help(fault)?;
                    thread::sleep(Duration::from_millis(3));
                }
                attempt.join().map_err(|_| anyhow!("the client panicked"))
            })?;
            if self.tap.pending() == 0 {
                eventually("who was killed is dead", DEADLINE, || {
                    helped = helped || self.help(fault)?;
                    Ok(helped)
                })?;
            }
            let Err(error) = result else {
                return Ok(());
            };
            errors.push(format!("{error:#}"));
            if begin.elapsed() > DEADLINE {
                bail!("the pod does not start: {errors:#?}");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Does what the fault needs of others: starts again who was killed. Returns whether that is done.
    fn help(&self, fault: &Fault) -> Result<bool> {
        if self.tap.pending() > 0 {
            return Ok(false);
        }
        if fault.is(CallFault::Kill(Side::Backend)) {
            if UnixStream::connect(self.node.containerd.socket()).is_ok() {
                return Ok(false);
            }
            self.node.containerd.kill()?;
            self.node.containerd.restart()?;
            self.states.iter().try_for_each(State::reconnect)?;
            eventually("the CRI answers again", DEADLINE, || {
                Ok(self.direct.status().is_ok())
            })?;
        } else if fault.is(CallFault::Expire) {
            self.states[0].expire()?;
        } else if fault.is(CallFault::Kill(Side::Client)) {
            let mut served = self.served.borrow_mut();
            if served.process.try_wait()?.is_none() {
                return Ok(false);
            }
            let next = served.again(self.node, self.tap.socket())?;
            *served = next;
        }
        Ok(true)
    }

    fn inject(&self, stored: &[Layers; 2], fault: &Fault) -> Result<bool> {
        self.prepare()?;
        drop(self.connect()?);
        fault.arm(&self.tap);
        let started = self.starts(fault);
        let happened = self.tap.pending() == 0;
        let place = fault.place(&self.tap);
        self.tap.disarm();
        self.tap.reset();
        started?;
        let ended = self.served.borrow_mut().process.try_wait()?;
        ensure!(ended.is_none(), "resnap serve ended: {ended:?}");
        self.is_done(stored).context(place)?;
        Ok(happened)
    }

    /// Returns the numbers of descriptors that resnap has.
    fn descriptors(&self) -> Result<usize> {
        let pid = self.served.borrow().process.id();
        Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
    }
}

fn connect(socket: &Path, logs: &Path) -> Result<Cri> {
    Ok(Cri::connect(socket, logs)?.with_timeout(CALL))
}

/// Starts a pod as kubelet does; its container is created only.
fn pod(cri: &Cri, image: &str) -> Result<()> {
    let sandbox = cri.run_pod_sandbox(HANDLER, &unique("pod"))?;
    cri.create_container(&sandbox, "container", image, &["/d/bulk"])?;
    Ok(())
}

fn faults_injected_into_pods(node: &Node) -> Result<()> {
    let setup = Setup::new(node)?;
    let (calls, stored) = setup.learn().context("a pod without faults")?;
    let mut faults = Fault::all(&calls, &Default::default());
    // A job whose call hangs goes on without its callers, as long as a call may take.
    faults.retain(|fault| !fault.is(CallFault::Hang));
    let faults = faults.into_iter().map(|fault| (0, fault)).collect();
    let before = setup.descriptors()?;
    sweep(&["pod".to_owned()], faults, PART, |_, fault| {
        setup.inject(&stored, fault)
    })?;
    let after = setup.descriptors()?;
    ensure!(
        after <= before + SPARE,
        "{before} descriptors became {after}"
    );
    setup.direct.remove_all()?;
    setup.served.into_inner().terminate()?;
    let _ = setup.tap.finish();
    Ok(())
}
