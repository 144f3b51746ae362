// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Changes to a node that can be undone.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result, anyhow, bail};
use serde::Serialize;
use tempfile::NamedTempFile;
use tokio_util::sync::CancellationToken;

use super::files::NodeFile;
use super::host::Host;

/// A change, as it is told to the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Step {
    /// A file was written.
    Write {
        path: PathBuf,
        /// The text, if it was made for this node.
        text: Option<String>,
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

/// The content of a file, with its mode.
#[derive(PartialEq)]
struct Content {
    bytes: Vec<u8>,
    mode: u32,
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
        let there = content(&self.host.at(&file.path))?;
        Ok(!there.is_some_and(|there| there.bytes == file.bytes && there.mode == file.mode))
    }

    /// Writes a file, unless it is there already.
    pub(super) fn write(&mut self, file: &NodeFile) -> Result<()> {
        if !self.is_new(file)? {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&file.bytes);
        self.start(Step::Write {
            path: file.path.clone(),
            text: file.is_own_text.then(|| text.into_owned()),
        })?;
        if self.dry_run {
            return Ok(());
        }
        let path = self.host.at(&file.path);
        self.make_directories(path.parent().context("a file has no directory")?)?;
        self.undo.push(Undo::Restore(path.clone(), content(&path)?));
        put(&path, &file.bytes, file.mode)
    }

    /// Removes a file, if it is there.
    pub(super) fn remove(&mut self, path: &Path) -> Result<()> {
        let place = self.host.at(path);
        let Some(there) = content(&place)? else {
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
        self.undo.push(run_to_undo(words));
        Ok(())
    }

    /// Has a command run when all other changes are undone.
    pub(super) fn on_undo_last(&mut self, words: &[&str]) -> Result<()> {
        self.go_on()?;
        self.undo.insert(0, run_to_undo(words));
        Ok(())
    }

    /// Undoes the changes, the last one first. Returns the error that they ended with, and what could not be undone.
    pub(super) async fn undo(mut self, error: Error) -> Error {
        let mut failures = Vec::new();
        while let Some(undo) = self.undo.pop() {
            let undone = match undo {
                Undo::Restore(path, Some(there)) => put(&path, &there.bytes, there.mode),
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

/// Returns the content of a file, if it is there.
fn content(path: &Path) -> Result<Option<Content>> {
    let read = || {
        let mode = fs::metadata(path)?.permissions().mode() & 0o7777;
        Ok(Content {
            bytes: fs::read(path)?,
            mode,
        })
    };
    match read() {
        Ok(content) => Ok(Some(content)),
        Err(error) if io::Error::kind(&error) == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {path:?}")),
    }
}

/// Puts a whole file in the place of what is there.
fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let write = || {
        let directory = path.parent().unwrap_or(Path::new("/"));
        let mut file = NamedTempFile::new_in(directory)?;
        file.write_all(bytes)?;
        let file_mode = Permissions::from_mode(mode);
        file.as_file().set_permissions(file_mode)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        io::Result::Ok(())
    };
    write().with_context(|| format!("write {path:?}"))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
