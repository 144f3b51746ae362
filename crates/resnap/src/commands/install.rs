// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap install` and `resnap uninstall`.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use resnap_core::major_minor;
use resnap_unpacker::Engine;
use serde::Serialize;

use super::signals;
use crate::args::{InstallArguments, UninstallArguments};
use crate::config::{Config, Source};
use crate::connect::{self, engine};
use crate::doctor::{Process, main_file};
use crate::exit_status::ExitStatus;
use crate::install::{Containerd, Facts, Host, Outcome, Run, Step, SystemPrograms};
use crate::output::{Output, Table};

/// The directory of units, which is locked while they are changed.
const UNITS: &str = "/etc/systemd/system";

#[derive(Serialize)]
struct Document<'a> {
    dry_run: bool,
    steps: &'a [Step],
    /// The steps to be done by hand before. Nothing was changed.
    by_hand: Option<&'a str>,
    /// The text of what is left to the operator, after the steps.
    left: Option<&'a str>,
}

pub(crate) async fn install(
    config: &Config,
    arguments: InstallArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    let _lock = lock()?;
    let engine = engine(config).await?;
    let facts = facts(config, &engine).await?;
    let containerd = match arguments.handlers.is_empty() {
        true => None,
        false => Some(containerd(config, &engine).await?),
    };
    let entries = containerd
        .as_ref()
        .map(|containerd| (containerd, arguments.handlers.as_slice()));
    let (_, stop) = signals::listen()?;
    let host = host();
    let run = Run {
        host: &host,
        dry_run: arguments.dry_run,
        stop: stop.clone(),
    };
    let outcome = run.install(&facts, entries).await;
    let undo = "to undo it: resnap uninstall";
    report(outcome, &run, undo, output)
}

pub(crate) async fn uninstall(
    config: &Config,
    arguments: UninstallArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    let _lock = lock()?;
    let (_, stop) = signals::listen()?;
    let host = host();
    let run = Run {
        host: &host,
        dry_run: arguments.dry_run,
        stop: stop.clone(),
    };
    let outcome = run.uninstall(&diff_plugins(config).await).await;
    let stays = "the configuration in /etc/resnap and the images stay";
    report(outcome, &run, stays, output)
}

fn host() -> Host {
    Host {
        root: PathBuf::from("/"),
        programs: Box::new(SystemPrograms),
    }
}

/// Keeps other runs out until the lock is dropped.
fn lock() -> Result<File> {
    if !rustix::process::geteuid().is_root() {
        bail!("units and kubelet are changed by root: run this with sudo");
    }
    if !Path::new("/run/systemd/system").exists() {
        bail!("systemd does not run this machine, so resnap cannot be a service of it");
    }
    // The directory itself, so that no file stays.
    let lock = File::open(UNITS).with_context(|| format!("open {UNITS}"))?;
    lock.try_lock()
        .context("another `resnap install` or `resnap uninstall` is running")?;
    Ok(lock)
}

async fn facts(config: &Config, engine: &Engine) -> Result<Facts> {
    let address = &config.address.value;
    if address.ends_with("/run/resnap/cri.sock") {
        bail!("{address} is the socket of resnap itself: name that of containerd by --address");
    }
    // kubelet needs more of containerd than its own API.
    let proxy = connect::proxy(config, engine.clone(), None, None);
    if let Err(reason) = proxy.facts().await {
        bail!(
            "the CRI of the containerd at {address} does not answer, which kubelet needs: {reason}"
        );
    }
    let snapshotters = engine.snapshotters().await?;
    let written = snapshotters
        .into_iter()
        .filter(|found| config.applier.writes(&found.name) && found.failure.is_none());
    // The service reads the configuration file itself.
    let is_given = matches!(config.address.source, Source::Flag | Source::Environment);
    Ok(Facts {
        // Also if it was replaced, or is in a container's mount namespace.
        program: PathBuf::from("/proc/self/exe"),
        containerd: address.clone(),
        address: is_given.then(|| config.address.value.clone()),
        roots: written
            .filter_map(|found| found.root)
            .map(PathBuf::from)
            .collect(),
    })
}

/// Finds the process of containerd, which knows its program and configuration.
async fn containerd(config: &Config, engine: &Engine) -> Result<Containerd> {
    let version = connect::version(config).await?;
    let Some(version) = major_minor(&version) else {
        bail!("containerd has the version {version:?}, which is none");
    };
    let socket = config.backend();
    let process = Process::listening_at(socket).await;
    let process = process.with_context(|| format!("find the process of {socket:?}"))?;
    let pid = process.pid;
    let program = process.program();
    Ok(Containerd {
        program: program
            .with_context(|| format!("find the program of process {pid}, containerd"))?,
        config: main_file(&process),
        version,
        pid,
        snapshotters: engine.snapshotters().await?,
        differs: connect::differs(config).await?,
    })
}

/// Returns the sockets of containerd's diff plugins; none, if it does not run.
async fn diff_plugins(config: &Config) -> Vec<String> {
    let plugins = connect::diff_plugins(config).await.unwrap_or_default();
    plugins.into_iter().map(|plugin| plugin.address).collect()
}

/// Prints what was done, or has to be done.
fn report(
    outcome: Result<Outcome>,
    run: &Run<'_>,
    hint: &str,
    output: &mut Output,
) -> Result<ExitStatus> {
    let outcome = match outcome {
        Err(error) if run.stop.is_cancelled() => {
            output.error(&error, None);
            return Ok(ExitStatus::Cancelled);
        }
        outcome => outcome?,
    };
    let (steps, by_hand, left) = match &outcome {
        Outcome::Done { steps, left } => (steps.as_slice(), None, *left),
        Outcome::ByHand(text) => (&[][..], Some(text.as_str()), None),
    };
    let document = Document {
        dry_run: run.dry_run,
        steps,
        by_hand,
        left,
    };
    output.document(&document, |table| match by_hand {
        Some(text) => {
            table.line("nothing was changed: something has to be done by hand before".to_owned());
            text.lines().for_each(|line| table.line(line.to_owned()));
        }
        None => {
            show(steps, run.dry_run, hint, table);
            left.iter().for_each(|left| table.line((*left).to_owned()));
        }
    })?;
    Ok(match by_hand {
        Some(_) => ExitStatus::Negative,
        None => ExitStatus::Done,
    })
}

fn show(steps: &[Step], dry_run: bool, hint: &str, table: &mut Table) {
    if steps.is_empty() {
        table.line("nothing is to be changed".to_owned());
        return;
    }
    if dry_run {
        table.line("this would be done:".to_owned());
    }
    for step in steps {
        match step {
            Step::Write {
                path,
                text,
                difference,
            } => {
                table.line(format!("write {}", path.display()));
                let texts = text.iter().chain(difference);
                let lines = texts.flat_map(|text| text.lines());
                lines.for_each(|line| table.line(format!("    {line}")));
            }
            Step::Remove { path } => table.line(format!("remove {}", path.display())),
            Step::Run { command } => table.line(format!("run {command}")),
        }
    }
    if !dry_run {
        table.line(hint.to_owned());
    }
}
