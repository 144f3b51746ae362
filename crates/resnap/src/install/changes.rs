// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Changes to a node that can be undone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result, anyhow, bail};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::content::{Content, put};
use super::difference;
use super::files::NodeFile;
use super::host::Host;

/// A change, as it is told to the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Step {
    /// A file was written.
    Write {
        path: PathBuf,
        /// The text of a file that is new: if it was made for this node, or is only listed.
        text: Option<String>,
        /// The differences from the file that was there, if they are only listed.
        difference: Option<String>,
    },
    /// A file was removed.
    Remove { path: PathBuf },
    /// A command was run.
    Run { command: String },
}

/// The way back from a change.
enum Undo {
    Restore(PathBuf, Option<Content>),
    RemoveDirectory(PathBuf),
    Run(Vec<String>),
}

/// The changes of a run.
pub(super) struct Changes<'a> {
    pub(super) host: &'a Host,
    /// Whether steps are only listed.
    pub(super) dry_run: bool,
    stop: CancellationToken,
    steps: Vec<Step>,
    undo: Vec<Undo>,
}

impl<'a> Changes<'a> {
    pub(super) fn new(host: &'a Host, dry_run: bool, stop: CancellationToken) -> Self {
        Self {
            host,
            dry_run,
            stop,
            steps: Vec::new(),
            undo: Vec::new(),
        }
    }

    pub(super) fn into_steps(self) -> Vec<Step> {
        self.steps
    }

    /// Returns whether the node has another file at the path, or none.
    pub(super) fn is_new(&self, file: &NodeFile) -> Result<bool> {
        let there = Content::read(&self.host.at(&file.path))?;
        Ok(!there.is_some_and(|there| there.is_of(file)))
    }

    /// Writes a file, unless it is there already.
    pub(super) fn write(&mut self, file: &NodeFile) -> Result<()> {
        let path = self.host.at(&file.path);
        let there = Content::read(&path)?;
        if there.as_ref().is_some_and(|there| there.is_of(file)) {
            return Ok(());
        }
        let difference = there.as_ref().filter(|_| self.dry_run);
        let difference = difference.map(|there| difference::of(there, file));
        let is_shown = file.is_own_text || self.dry_run && difference.is_none();
        self.start(Step::Write {
            path: file.path.clone(),
            text: file.text().filter(|_| is_shown).map(str::to_owned),
            difference,
        })?;
        if self.dry_run {
            return Ok(());
        }
        self.make_directories(path.parent().context("a file has no directory")?)?;
        self.undo.push(Undo::Restore(path.clone(), there));
        put(&path, &Content::of(file))
    }

    /// Removes a file, if it is there.
    pub(super) fn remove(&mut self, path: &Path) -> Result<()> {
        let place = self.host.at(path);
        let Some(there) = Content::read(&place)? else {
            return Ok(());
        };
        self.start(Step::Remove {
            path: path.to_owned(),
        })?;
        if self.dry_run {
            return Ok(());
        }
        fs::remove_file(&place).with_context(|| format!("remove {path:?}"))?;
        self.undo.push(Undo::Restore(place, Some(there)));
        Ok(())
    }

    /// Removes a directory with all that is in it, if it is there. This cannot be undone.
    pub(super) fn remove_all(&mut self, path: &Path) -> Result<()> {
        let place = self.host.at(path);
        if !place.exists() {
            return Ok(());
        }
        self.start(Step::Remove {
            path: path.to_owned(),
        })?;
        if self.dry_run {
            return Ok(());
        }
        fs::remove_dir_all(place).with_context(|| format!("remove {path:?}"))
    }

    /// Runs a command.
    pub(super) async fn run(&mut self, words: &[&str]) -> Result<()> {
        self.start(Step::Run {
            command: words.join(" "),
        })?;
        if !self.dry_run {
            self.host.programs.run(words).await?;
        }
        Ok(())
    }

    /// Has a command run when the changes are undone: after the changes that follow, before those so far.
    pub(super) fn on_undo(&mut self, words: &[&str]) -> Result<()> {
        self.go_on()?;
        if !self.dry_run {
            self.undo.push(run_to_undo(words));
        }
        Ok(())
    }

    /// Has a command run when all other changes are undone.
    pub(super) fn on_undo_last(&mut self, words: &[&str]) -> Result<()> {
        self.go_on()?;
        if !self.dry_run {
            self.undo.insert(0, run_to_undo(words));
        }
        Ok(())
    }

    /// Undoes the changes, the last one first. Returns the error that they ended with, and what could not be undone.
    pub(super) async fn undo(mut self, error: Error) -> Error {
        let mut failures = Vec::new();
        while let Some(undo) = self.undo.pop() {
            let undone = match undo {
                Undo::Restore(path, Some(there)) => put(&path, &there),
                Undo::Restore(path, None) => {
                    remove_if_there(&path).with_context(|| format!("remove {path:?}"))
                }
                // Somebody else uses it now.
                Undo::RemoveDirectory(path) => fs::remove_dir(path).or(Ok(())),
                Undo::Run(words) => {
                    let words: Vec<&str> = words.iter().map(String::as_str).collect();
                    self.host.programs.run(&words).await.map(drop)
                }
            };
            failures.extend(undone.err().map(|failure| format!("{failure:#}")));
        }
        match failures.as_slice() {
            [] => error.context("nothing was changed"),
            failures => anyhow!(
                "{error:#}; this could not be undone: {}",
                failures.join("; ")
            ),
        }
    }

    fn start(&mut self, step: Step) -> Result<()> {
        self.go_on()?;
        self.steps.push(step);
        Ok(())
    }

    fn go_on(&self) -> Result<()> {
        if self.stop.is_cancelled() {
            bail!("stopped by a signal");
        }
        Ok(())
    }

    fn make_directories(&mut self, directory: &Path) -> Result<()> {
        let missing = directory.ancestors().take_while(|dir| !dir.exists());
        let missing: Vec<&Path> = missing.collect();
        for directory in missing.into_iter().rev() {
            fs::create_dir(directory).with_context(|| format!("create {directory:?}"))?;
            self.undo.push(Undo::RemoveDirectory(directory.to_owned()));
        }
        Ok(())
    }
}

fn run_to_undo(words: &[&str]) -> Undo {
    Undo::Run(words.iter().map(|&word| word.to_owned()).collect())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
