// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Faults of commands.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::image::Built;
use resnap_integration::registry::Registry;
use resnap_integration::tap::{Call, Tap};

use super::fault::{CallFault, Fault};
use super::image::image;
use super::process::{Helper, run, supervise};
use super::scenario::{Before, Scenario, commands};
use super::state::{Labelled, State, names};
use super::stored::Layers;
use super::sweep::sweep;
use super::syscalls;
use crate::missing::pushed;
use crate::node::{Node, unique};
use crate::suite::live_tests;

live_tests! {
    Alone: faults_injected_into_commands,
}

/// A request without faults, as it was observed.
struct Clean {
    /// The stored layers on each snapshotter that has some afterwards.
    stored: BTreeMap<&'static str, Layers>,
    faults: Vec<Fault>,
}

struct Setup<'a> {
    node: &'a Node,
    image: Built,
    state: State,
    runtime_dir: PathBuf,
    scratch: PathBuf,
    has_blobs: Cell<bool>,
    _registry: Registry,
}

impl Helper for Setup<'_> {
    fn is_dead(&self) -> bool {
        UnixStream::connect(self.node.containerd.socket()).is_err()
    }

    fn restart(&self) -> Result<()> {
        self.node.containerd.kill()?;
        self.node.containerd.restart()?;
        self.state.reconnect()
    }

    fn expire(&self) -> Result<()> {
        self.state.expire()
    }
}

impl<'a> Setup<'a> {
    fn new(node: &'a Node) -> Result<Self> {
        let scratch = node.containerd.scratch();
        let registry = Registry::start(node.containerd.dist(), &scratch.join(unique("registry")))?;
        let image = pushed(node, &registry, &image(node)?, "faults:1")?;
        node.ctr(&["content", "fetch", "--plain-http", &image.reference])?;
        Ok(Self {
            state: State::new(node, &image)?,
            node,
            image,
            runtime_dir: node.containerd.socket().with_file_name("r"),
            scratch,
            has_blobs: Cell::new(true),
            _registry: registry,
        })
    }

    /// Brings the node to the state before a request.
    fn prepare(&self, before: Before) -> Result<()> {
        let targets: Vec<_> = self.node.targets().collect();
        self.state.clear(&targets)?;
        if !self.has_blobs.replace(before.has_blobs()) && (before != Before::Nothing) {
            self.node
                .ctr(&["content", "fetch", "--plain-http", &self.image.reference])?;
        }
        match before {
            Before::Blobs | Before::Nothing => {}
            Before::Bare => self.state.unpack_bare("overlayfs")?,
            Before::Unpacked | Before::Discarded => {
                self.node.unpack("overlayfs", &self.image.reference)?;
            }
        }
        if !before.has_blobs() {
            let mut remove = vec!["content", "rm"];
            remove.extend(self.image.layers.iter().map(|layer| &*layer.digest));
            // Some may be missing already.
            let _ = self.node.ctr(&remove);
            self.state.collect_garbage()?;
        }
        Ok(())
    }

    fn command(&self, scenario: &Scenario, tap: &Tap) -> Result<Command> {
        let mut command = self.node.configured_command(&scenario.config)?;
        command
            .env("CONTAINERD_ADDRESS", tap.socket())
            .args(&scenario.arguments);
        Ok(command)
    }

    /// Runs the request without a fault.
    fn succeeds(&self, scenario: &Scenario) -> Result<(Vec<Call>, String)> {
        let tap = self.node.containerd.tap()?;
        let ended = supervise(self.command(scenario, &tap)?, &self.scratch, |_| Ok(()))?;
        ensure!(ended.is_success(), "the request fails: {ended:#?}");
        let calls = tap.calls();
        tap.finish()?;
        Ok((calls, ended.stdout))
    }

    /// Learns what a request does.
    fn learn(&self, scenario: &Scenario) -> Result<Clean> {
        self.prepare(scenario.before)?;
        let (calls, _) = self.succeeds(scenario)?;
        let stored = scenario
            .ready
            .iter()
            .map(|&on| Ok((on, self.state.stored(on)?)));
        let stored = stored.collect::<Result<_>>()?;
        let mut syscalls = Default::default();
        if scenario.writes {
            self.prepare(scenario.before)?;
            let log = self.scratch.join(unique("strace"));
            let tap = self.node.containerd.tap()?;
            let traced = syscalls::traced(&self.command(scenario, &tap)?, &log);
            let ended = supervise(traced, &self.scratch, |_| Ok(()))?;
            ensure!(ended.is_success(), "{ended:#?}");
            tap.finish()?;
            // Where all that belongs to a containerd of the suite lies.
            syscalls = syscalls::of_files(&log, ended.process, &["/run/resnap-data/"])?;
        }
        let clean = Clean {
            stored,
            faults: Fault::all(&calls, &syscalls),
        };
        self.is_done(scenario, &clean)?;
        Ok(clean)
    }

    /// Checks that the request is done and nothing of it is left, or what is left is taken over by the next job.
    fn is_done(&self, scenario: &Scenario, clean: &Clean) -> Result<()> {
        if !self.state.leases()?.is_empty() || !self.locks()?.is_empty() {
            for snapshotter in &scenario.ready {
                self.node.unpack(snapshotter, &self.image.reference)?;
            }
        }
        let layers = self.image.layers.len();
        for snapshotter in self.node.targets() {
            let ready = scenario.ready.contains(&snapshotter);
            self.state
                .has_only(snapshotter, if ready { layers } else { 0 }, None)?;
        }
        for (snapshotter, stored) in &clean.stored {
            self.state.is_right(snapshotter, stored, Labelled::Fully)?;
        }
        self.state.is_clean()?;
        let files = self.locks()?;
        ensure!(files.is_empty(), "files are left: {files:?}");
        Ok(())
    }

    /// Returns the files in the runtime directory that are not for later requests.
    fn locks(&self) -> Result<Vec<String>> {
        let mut files = names(&self.runtime_dir)?;
        files.retain(|name| name != "documents");
        Ok(files)
    }

    /// Checks that no staging directory is left, or that the next batch removes it.
    fn is_staged_nothing(&self, scenario: &Scenario) -> Result<()> {
        for snapshotter in self.node.targets() {
            let left = self.node.staged(snapshotter)?;
            if left.is_empty() {
                continue;
            }
            self.prepare(Before::Blobs)?;
            self.node.unpack(snapshotter, &self.image.reference)?;
            let left = self.node.staged(snapshotter)?;
            ensure!(left.is_empty(), "{}: {left:?}", scenario.name);
        }
        Ok(())
    }

    /// Returns whether the fault happened.
    fn inject(&self, scenario: &Scenario, clean: &Clean, fault: &Fault) -> Result<bool> {
        self.prepare(scenario.before)?;
        let tap = self.node.containerd.tap()?;
        let command = self.command(scenario, &tap)?;
        let ended = run(command, &tap, fault, &self.scratch, self);
        let place = fault.place(&tap);
        // It tells of a fault that did not happen, too.
        let _ = tap.finish();
        let ended = ended.with_context(|| place.clone())?;
        if ended.happened {
            ended.is_orderly(fault).with_context(|| place.clone())?;
        }
        for (snapshotter, stored) in &clean.stored {
            let labelled = match scenario.before {
                Before::Bare => Labelled::FullyOrNot,
                _ => Labelled::Fully,
            };
            self.state
                .is_right(snapshotter, stored, labelled)
                .with_context(|| format!("before the next request, after {ended:#?}"))?;
        }
        if ended.is_terminated() {
            let leases = self.state.leases()?;
            ensure!(leases.is_empty(), "{place}: stopped with {leases:?}");
        }
        if ended.happened && ended.is_success() && !fault.is(CallFault::Expire) {
            for &snapshotter in &scenario.ready {
                let committed = self.state.committed(snapshotter)?;
                ensure!(
                    committed == self.image.layers.len(),
                    "it succeeded with {committed} layers"
                );
            }
        }
        let made = self.state.committed(scenario.ready[0])?;
        self.state.collect_garbage()?;
        let existed = self.state.committed(scenario.ready[0])?;
        if scenario.keeps_layers() && !fault.is(CallFault::Expire) {
            ensure!(
                existed == made,
                "{made} layers were made, {existed} kept, after {ended:#?}"
            );
        }
        let (_, report) = self
            .succeeds(scenario)
            .with_context(|| format!("{place}, after {ended:#?}"))?;
        if scenario.keeps_layers() {
            let report = report.lines().last().unwrap_or_default();
            let kept = report.matches("\"outcome\":\"existed\"").count();
            ensure!(
                kept == existed,
                "{kept} of {existed} layers were kept: {report}"
            );
        }
        self.is_done(scenario, clean)
            .with_context(|| format!("{place}, after {ended:#?}"))?;
        self.is_staged_nothing(scenario)?;
        Ok(ended.happened)
    }
}

fn faults_injected_into_commands(node: &Node) -> Result<()> {
    let setup = Setup::new(node)?;
    let scenarios = commands(node, &setup.image.reference);
    let mut faults = Vec::new();
    let mut cleans = Vec::new();
    for (place, scenario) in scenarios.iter().enumerate() {
        let clean = setup
            .learn(scenario)
            .with_context(|| scenario.name.clone())?;
        faults.extend(clean.faults.iter().map(|fault| (place, fault.clone())));
        cleans.push(clean);
    }
    let names: Vec<String> = scenarios
        .iter()
        .map(|scenario| scenario.name.clone())
        .collect();
    sweep(&names, faults, 1, |place, fault| {
        setup.inject(&scenarios[place], &cleans[place], fault)
    })
}
