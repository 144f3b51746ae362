// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Runtime handlers in containerd's configuration: a file in a directory that the main file imports, never a change of
//! that file. Where a handler has erofs, the file also has containerd ask its EROFS differ before the walking one.
//!
//! containerd merges such files since 2.0; before, a file with a plugin's table replaces all of it. So the result is
//! compared before containerd is restarted: without the entries, it has to be as it was.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use toml::{Table, Value};

use super::changes::Changes;
use super::files::NodeFile;
use super::host::Host;
use super::record::Record;
use crate::differ_order;
use crate::toml_table::{difference, insert, merge, remove, texts};
pub(crate) use containerd::Containerd;
pub(crate) use handler::Handler;
use layout::Layout;

mod containerd;
mod handler;
mod layout;

const FILE: &str = "resnap.toml";
const UNIT: &str = "containerd.service";
const RESTART: [&str; 3] = ["systemctl", "restart", UNIT];

/// The snapshotter that has a differ of its own, by the name of both.
const EROFS: &str = "erofs";

/// The result of a look at containerd's configuration.
pub(super) enum Plan {
    /// It has all entries.
    Nothing,
    Write(Box<Entries>),
    /// The text of what has to be done by hand.
    ByHand(String),
}

/// Entries that are to be written.
pub(super) struct Entries {
    pub(super) file: NodeFile,
    containerd: Containerd,
    /// The configuration without them.
    before: Table,
    handlers: Vec<Handler>,
    /// The order of differs, if it is another one.
    differs: Option<Vec<String>>,
}

impl Entries {
    /// Looks at the configuration, and plans the file with what is missing for the handlers.
    ///
    /// # Errors
    /// A handler has another snapshotter, or its snapshotter is not there.
    pub(super) async fn plan(
        host: &Host,
        containerd: &Containerd,
        handlers: &[Handler],
        record: &Record,
    ) -> Result<Plan> {
        if containerd.version < (1, 7) {
            bail!("--handler: containerd before 1.7 has one snapshotter for all handlers");
        }
        let before = containerd.dump(host).await?;
        let layout = Layout::of(&before)?;
        let mut missing = Vec::new();
        for handler in handlers {
            handler.require_snapshotter(containerd)?;
            if !layout.has(&before, handler)? {
                missing.push(handler.clone());
            }
        }
        let differs = order_of_differs(&before, containerd, handlers);
        if missing.is_empty() && differs.is_none() {
            return Ok(Plan::Nothing);
        }
        let main = host.read(&containerd.config)?.unwrap_or_default();
        let main: Table = String::from_utf8_lossy(&main)
            .parse()
            .with_context(|| format!("parse {:?}", containerd.config))?;
        let version = main.get("version").and_then(Value::as_integer);
        let mut entries = layout.entries(&before, &missing, version)?;
        if let Some(differs) = &differs {
            insert(&mut entries, &differ_order::PATH, differs.clone().into());
        }
        let path = match place(host, containerd, layout, &main).await? {
            Place::Imported(path) => path,
            Place::ByHand { why, path } => {
                let is_main = path == containerd.config;
                let version = version.filter(|_| !is_main);
                let lines = toml::to_string(&with_version(version, entries))?;
                return Ok(Plan::ByHand(format!(
                    "{why}. So add these lines to {}, restart containerd, and run this again:\n\n{lines}",
                    path.display()
                )));
            }
        };
        if record.has(&path)
            && let Some(there) = host.read(&path)?
        {
            let there: Table = String::from_utf8_lossy(&there)
                .parse()
                .with_context(|| format!("parse {path:?}"))?;
            merge(&mut entries, there);
        }
        let text = "# Written by `resnap install`, removed by `resnap uninstall`.\n".to_owned()
            + &toml::to_string(&with_version(version, entries))?;
        Ok(Plan::Write(Box::new(Self {
            file: NodeFile::generated(&path, text),
            containerd: containerd.clone(),
            before,
            handlers: missing,
            differs,
        })))
    }

    /// Writes the file, and restarts containerd if that changes the entries and nothing else.
    pub(super) async fn install(&self, changes: &mut Changes<'_>) -> Result<()> {
        changes.write(&self.file)?;
        if !changes.dry_run {
            let after = self.containerd.dump(changes.host).await?;
            self.check(&after).with_context(|| {
                let config = &self.containerd.config;
                format!(
                    "containerd does not merge {:?} into {config:?}",
                    self.file.path
                )
            })?;
        }
        changes.on_undo_last(&RESTART)?;
        changes.run(&RESTART).await
    }

    /// Checks that a configuration has the entries, and is as before otherwise.
    fn check(&self, after: &Table) -> Result<()> {
        let layout = Layout::of(after)?;
        let (mut before, mut after) = (self.before.clone(), after.clone());
        for handler in &self.handlers {
            if !layout.has(&after, handler)? {
                bail!("handler {:?} is not there with it", handler.name);
            }
            for path in layout.own(&self.before, handler) {
                remove(&mut before, &path);
                remove(&mut after, &path);
            }
        }
        if let Some(differs) = &self.differs {
            if texts(&after, &differ_order::PATH) != *differs {
                bail!("the order of its differs is not {}", differs.join(", "));
            }
            remove(&mut before, &differ_order::PATH);
            remove(&mut after, &differ_order::PATH);
        }
        // containerd lists the files.
        remove(&mut before, &["imports"]);
        remove(&mut after, &["imports"]);
        match difference(&before, &after) {
            None => Ok(()),
            Some(path) => bail!("`containerd config dump` differs in {path} with it"),
        }
    }
}

/// Removes the files of the entries, of which there are several if containerd's imports have changed, and restarts
/// containerd.
pub(super) async fn uninstall(changes: &mut Changes<'_>, record: &Record) -> Result<()> {
    let host = changes.host;
    let files = record.files().filter(|file| file.ends_with(FILE));
    let files = files.filter(|file| matches!(host.read(file), Ok(Some(_))));
    let mut files = files.peekable();
    if files.peek().is_none() {
        return Ok(());
    }
    changes.on_undo(&RESTART)?;
    for file in files {
        changes.remove(file)?;
    }
    changes.run(&RESTART).await
}

/// The file for entries.
enum Place {
    /// containerd imports it, and merges it.
    Imported(PathBuf),
    ByHand {
        why: String,
        path: PathBuf,
    },
}

async fn place(
    host: &Host,
    containerd: &Containerd,
    layout: Layout,
    main: &Table,
) -> Result<Place> {
    let has_version = main.contains_key("version");
    let directory = layout.imported(containerd, main);
    let Some(directory) = directory.filter(|_| has_version) else {
        return Ok(Place::ByHand {
            why: layout.why_nothing_is_imported(has_version).to_owned(),
            path: containerd.config.clone(),
        });
    };
    let path = directory.join(FILE);
    let unit = host.unit(UNIT, "MainPID").await?;
    if unit.get("MainPID") == Some(&containerd.pid.to_string()) {
        return Ok(Place::Imported(path));
    }
    let why = format!(
        "containerd (process {}) does not run as {UNIT}, so it cannot be restarted here",
        containerd.pid
    );
    Ok(Place::ByHand { why, path })
}

fn with_version(version: Option<i64>, mut entries: Table) -> Table {
    let version = version.map(|version| ("version".to_owned(), Value::from(version)));
    entries.extend(version);
    entries
}

/// Returns the order of differs in which layers on erofs are written by the differ for them, if it is another one than
/// that of the configuration, and if that differ works: containerd writes no layer while it lists another.
fn order_of_differs(
    dump: &Table,
    containerd: &Containerd,
    handlers: &[Handler],
) -> Option<Vec<String>> {
    let is_used = handlers.iter().any(|handler| handler.snapshotter == EROFS);
    let works = containerd.differs.iter().any(|differ| differ == EROFS);
    (is_used && works).then(|| differ_order::with_erofs_first(&texts(dump, &differ_order::PATH)))?
}

#[cfg(test)]
mod tests;
