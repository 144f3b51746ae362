// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Commands about all images of a node.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use resnap_integration::daemon::Options;
use resnap_integration::image::{CROWD_LAYERS, crowd};
use resnap_integration::tap::Tap;

use crate::setup::{Resnap, Setup, time};
use crate::table::{Row, Table};

const COUNTS: [usize; 3] = [10, 100, 1000];
const ROUNDS: usize = 5;

/// The images of an archive.
const AT_ONCE: usize = 250;

/// Enough for a thousand small images on three snapshotters.
const TMPFS: &str = "2g";

pub(crate) fn run(setup: &Setup) -> Result<Table> {
    let setup = setup.another(Options {
        tmpfs: Some(TMPFS),
        ..Options::default()
    })?;
    let mut rows = Vec::new();
    for count in COUNTS {
        rows.extend(Node::new(&setup, count)?.rows()?);
    }
    let table = Table {
        name: "images",
        about: format!(
            "all images of a node, each of {CROWD_LAYERS} layers of which {} are shared, and under two\n\
             names, as the CRI keeps it; all are ready on all snapshotters. First: no document of theirs\n\
             was read before. Other: the least time, to another build's.",
            CROWD_LAYERS - 1
        ),
        containerd: setup.containerd.name(),
        cores: std::thread::available_parallelism()?.get(),
        rows,
    };
    setup.stop()?;
    Ok(table)
}

/// A namespace with so many images.
struct Node<'a> {
    setup: &'a Setup,
    count: usize,
    namespace: String,
    names: Vec<String>,
}

impl<'a> Node<'a> {
    fn new(setup: &'a Setup, count: usize) -> Result<Self> {
        let namespace = format!("images-{count}");
        let path = setup.containerd.scratch().join(&namespace);
        let mut names = Vec::new();
        for first in (0..count).step_by(AT_ONCE) {
            let images = crowd(first..count.min(first + AT_ONCE), &path)?;
            setup.import(&namespace, &images[0])?;
            names.extend(images.into_iter().map(|image| image.reference));
            std::fs::remove_file(&path)?;
        }
        let this = Self {
            setup,
            count,
            namespace,
            names,
        };
        let socket = setup.containerd.socket();
        time(&mut this.warm(&setup.resnap, &socket.to_string_lossy(), &this.dir("made")?))?;
        Ok(this)
    }

    fn rows(&self) -> Result<Vec<Row>> {
        let all = [
            ("images", Self::images as Run<'a>),
            ("check --all", Self::check_all),
            ("check --all, one snapshotter", Self::check_one),
            ("warm --all", Self::warm),
        ];
        let mut rows = Vec::new();
        for (name, command) in all {
            rows.extend(self.of(name, command)?);
        }
        Ok(rows)
    }

    /// Returns the rows of a command: with documents that were not read before, and with those that were.
    fn of(&self, name: &str, command: Run<'a>) -> Result<Vec<Row>> {
        let name = |more: &str| format!("{name}, {more}: {} images", self.count);
        let socket = self
            .setup
            .containerd
            .socket()
            .to_string_lossy()
            .into_owned();
        let resnap = &self.setup.resnap;
        let (mut first, mut again, mut other) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let dir = self.dir("first")?;
            first.push(time(&mut command(self, resnap, &socket, &dir))?);
            again.push(time(&mut command(self, resnap, &socket, &dir))?);
        }
        if let Some(build) = &self.setup.other {
            // It may take a minute each time.
            other.push(time(&mut command(
                self,
                build,
                &socket,
                &self.dir("other")?,
            ))?);
        }
        let dir = self.dir("tapped")?;
        let tap = self.setup.containerd.tap()?;
        let (first, again) = (
            self.row(name("first"), &first, &tap, command, &dir)?,
            self.row(name("again"), &again, &tap, command, &dir)?,
        );
        tap.finish()?;
        let build = self.setup.other.as_ref();
        let other = build.map(|build| Row::timed(build.row(&name("again")), &other));
        let again = match &other {
            Some(other) => again.beside(other),
            None => again,
        };
        Ok([first, again].into_iter().chain(other).collect())
    }

    fn row(
        &self,
        name: String,
        samples: &[Duration],
        tap: &Tap,
        command: Run<'a>,
        dir: &Path,
    ) -> Result<Row> {
        tap.reset();
        let socket = tap.socket().to_string_lossy();
        time(&mut command(self, &self.setup.resnap, &socket, dir))?;
        Ok(Row {
            count: Some(self.count),
            calls: tap.counts(),
            ..Row::timed(name, samples)
        })
    }

    /// Returns a runtime directory in which nothing is kept.
    fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.setup.containerd.scratch().join(name);
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        Ok(dir)
    }

    fn command(&self, resnap: &Resnap, socket: &str, dir: &Path) -> Command {
        let mut command = resnap.on(socket.as_ref());
        command
            .args(["--namespace", &self.namespace, "--runtime-dir"])
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn images(&self, resnap: &Resnap, socket: &str, dir: &Path) -> Command {
        let mut command = self.command(resnap, socket, dir);
        command.arg("images");
        command
    }

    fn check_all(&self, resnap: &Resnap, socket: &str, dir: &Path) -> Command {
        let mut command = self.command(resnap, socket, dir);
        command.arg("check");
        match resnap.is_other() {
            // Builds of before have no --all.
            true => command.args(&self.names),
            false => command.arg("--all"),
        };
        command
    }

    fn check_one(&self, resnap: &Resnap, socket: &str, dir: &Path) -> Command {
        let mut command = self.check_all(resnap, socket, dir);
        command.args(["--snapshotter", self.setup.lazy()]);
        command
    }

    fn warm(&self, resnap: &Resnap, socket: &str, dir: &Path) -> Command {
        let mut command = self.command(resnap, socket, dir);
        command.args(["warm", "--all", "--min-free", "1 KiB"]);
        for snapshotter in self.setup.snapshotters().iter().chain(&["native"]) {
            command.args(["--snapshotter", snapshotter]);
        }
        command
    }
}

/// A command for a build, by a socket, with a runtime directory.
type Run<'a> = fn(&Node<'a>, &Resnap, &str, &Path) -> Command;
