// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Runtime handlers in containerd's configuration: a file in a directory that the main file imports, never a change of
//! that file.
//!
//! containerd merges such files since 2.0; before, a file with a plugin's table replaces all of it. So the result is
//! compared before containerd is restarted: without the entries, it has to be as it was.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result, anyhow, bail};
use resnap_platforms::Platform;
use toml::{Table, Value};

use super::changes::Changes;
use super::files::NodeFile;
use super::host::Host;
use super::record::Record;
use table::{at, insert, merge, remove};

mod table;

const FILE: &str = "resnap.toml";
const UNIT: &str = "containerd.service";
const RESTART: [&str; 3] = ["systemctl", "restart", UNIT];

/// The plugin with the runtime handlers, since containerd 2.0 and before.
const RUNTIME: &str = "io.containerd.cri.v1.runtime";
const RUNTIME_BEFORE_2: &str = "io.containerd.grpc.v1.cri";

/// The plugin with the snapshotters for pulls and for statistics.
const IMAGES: &str = "io.containerd.cri.v1.images";

/// The directory that containerd 2.2 and later imports by itself.
const IMPORTED: &str = "/etc/containerd/conf.d";

/// A runtime handler with a snapshotter of its own, written `HANDLER=SNAPSHOTTER`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handler {
    name: String,
    snapshotter: String,
}

impl FromStr for Handler {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, snapshotter)) if !name.is_empty() && !snapshotter.is_empty() => Ok(Self {
                name: name.to_owned(),
                snapshotter: snapshotter.to_owned(),
            }),
            _ => Err("it is not HANDLER=SNAPSHOTTER".to_owned()),
        }
    }
}

/// The containerd of the node.
#[derive(Debug, Clone)]
pub(crate) struct Containerd {
    pub(crate) program: PathBuf,
    /// The main configuration file.
    pub(crate) config: PathBuf,
    pub(crate) version: (u32, u32),
    /// Its process.
    pub(crate) pid: u32,
}

impl Containerd {
    /// Returns the configuration that it would start with.
    async fn dump(&self, host: &Host) -> Result<Table> {
        let program = self.program.to_string_lossy();
        let config = self.config.to_string_lossy();
        let dump = [&program, "-c", &config, "config", "dump"];
        let dump = host.programs.run(&dump).await?;
        let parsed = dump.parse();
        parsed.with_context(|| format!("parse what `{program} -c {config} config dump` prints"))
    }
}

/// The result of a look at containerd's configuration.
pub(super) enum Plan {
    /// It has all entries.
    Nothing,
    Write(Entries),
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
}

impl Entries {
    /// Looks at the configuration, and plans the file with what is missing for the handlers.
    ///
    /// # Errors
    /// A handler has another snapshotter, or can have none.
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
            if !layout.has(&before, handler)? {
                missing.push(handler.clone());
            }
        }
        if missing.is_empty() {
            return Ok(Plan::Nothing);
        }
        let main = host.read(&containerd.config)?.unwrap_or_default();
        let main: Table = String::from_utf8_lossy(&main)
            .parse()
            .with_context(|| format!("parse {:?}", containerd.config))?;
        let version = main.get("version").and_then(Value::as_integer);
        let mut entries = layout.entries(&before, &missing, version)?;
        let unit = host.unit(UNIT, "MainPID").await?;
        let is_of_unit = unit.get("MainPID") == Some(&containerd.pid.to_string());
        let Some(directory) = layout
            .imported(containerd, &main)
            .filter(|_| version.is_some() && is_of_unit)
        else {
            return Ok(Plan::ByHand(by_hand(containerd, &entries)?));
        };
        let path = directory.join(FILE);
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
        Ok(Plan::Write(Self {
            file: NodeFile::generated(&path, text),
            containerd: containerd.clone(),
            before,
            handlers: missing,
        }))
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
        // containerd lists the files.
        remove(&mut before, &["imports"]);
        remove(&mut after, &["imports"]);
        match table::difference(&before, &after) {
            None => Ok(()),
            Some(path) => bail!("`containerd config dump` differs in {path} with it"),
        }
    }
}

/// Removes the file of the entries, and restarts containerd.
pub(super) async fn uninstall(changes: &mut Changes<'_>, record: &Record) -> Result<()> {
    let file = record.files().find(|file| file.ends_with(FILE));
    let Some(file) = file.filter(|file| matches!(changes.host.read(file), Ok(Some(_)))) else {
        return Ok(());
    };
    changes.on_undo(&RESTART)?;
    changes.remove(file)?;
    changes.run(&RESTART).await
}

/// The place of the runtime handlers.
#[derive(Clone, Copy, PartialEq)]
enum Layout {
    Before2,
    Since2,
}

impl Layout {
    fn of(dump: &Table) -> Result<Self> {
        let has = |plugin| at(dump, &["plugins", plugin]).is_some();
        match (has(RUNTIME), has(RUNTIME_BEFORE_2)) {
            (true, _) => Ok(Self::Since2),
            (false, true) => Ok(Self::Before2),
            (false, false) => Err(anyhow!("containerd's configuration has no CRI plugin")),
        }
    }

    fn plugin(self) -> &'static str {
        match self {
            Self::Before2 => RUNTIME_BEFORE_2,
            Self::Since2 => RUNTIME,
        }
    }

    /// Returns the snapshotters of a handler: the one for its containers, and that for its pulls and statistics.
    fn snapshotters<'a>(self, dump: &'a Table, name: &str) -> [Option<&'a str>; 2] {
        let containers = [
            "plugins",
            self.plugin(),
            "containerd",
            "runtimes",
            name,
            "snapshotter",
        ];
        let pulls = ["plugins", IMAGES, "runtime_platforms", name, "snapshotter"];
        [&containers[..], &pulls[..]].map(|path| {
            let text = at(dump, path).and_then(Value::as_str);
            text.filter(|text| !text.is_empty())
        })
    }

    /// Returns whether a configuration has all for the handler.
    fn has(self, dump: &Table, handler: &Handler) -> Result<bool> {
        let [containers, pulls] = self.snapshotters(dump, &handler.name);
        let other = [containers, pulls].into_iter().flatten();
        if let Some(other) = other
            .into_iter()
            .find(|found| **found != handler.snapshotter)
        {
            bail!(
                "--handler: containerd's configuration has snapshotter {other:?} for handler {:?}",
                handler.name
            );
        }
        Ok(containers.is_some() && (pulls.is_some() || self == Self::Before2))
    }

    /// Returns the entries for handlers. A handler that is not there is like the default one.
    fn entries(self, dump: &Table, handlers: &[Handler], version: Option<i64>) -> Result<Table> {
        let containerd = ["plugins", self.plugin(), "containerd"];
        let runtimes = [&containerd[..], &["runtimes"]].concat();
        let default = [&containerd[..], &["default_runtime_name"]].concat();
        let default = at(dump, &default).and_then(Value::as_str).unwrap_or("runc");
        // Files of version 2 have the names of before.
        let plugin = match version {
            Some(2) => RUNTIME_BEFORE_2,
            _ => self.plugin(),
        };
        let mut entries = Table::new();
        for Handler { name, snapshotter } in handlers {
            let mut runtime = Table::new();
            if at(dump, &[&runtimes[..], &[name]].concat()).is_none() {
                let default = at(dump, &[&runtimes[..], &[default]].concat());
                let default = default.and_then(Value::as_table);
                let default = default.context("containerd has no default runtime handler")?;
                let copied = ["runtime_type", "options"].into_iter();
                runtime.extend(
                    copied.filter_map(|key| {
                        Some((key.to_owned(), table::stated(default.get(key)?)?))
                    }),
                );
            }
            let snapshotter = Value::from(snapshotter.clone());
            runtime.insert("snapshotter".to_owned(), snapshotter.clone());
            let path = ["plugins", plugin, "containerd", "runtimes", name];
            insert(&mut entries, &path, runtime.into());
            if self == Self::Since2 {
                let mut platform = Table::new();
                platform.insert("platform".to_owned(), Platform::host().to_string().into());
                platform.insert("snapshotter".to_owned(), snapshotter);
                let path = ["plugins", IMAGES, "runtime_platforms", name];
                insert(&mut entries, &path, platform.into());
            }
        }
        Ok(entries)
    }

    /// Returns where the entries of a handler are in a configuration.
    fn own<'a>(self, before: &Table, handler: &'a Handler) -> Vec<Vec<&'a str>> {
        let name = handler.name.as_str();
        let mut runtime = vec!["plugins", self.plugin(), "containerd", "runtimes", name];
        if at(before, &runtime).is_some() {
            runtime.push("snapshotter");
        }
        vec![runtime, vec!["plugins", IMAGES, "runtime_platforms", name]]
    }

    /// Returns a directory of whose files the main file imports all, if containerd merges them.
    fn imported(self, containerd: &Containerd, main: &Table) -> Option<PathBuf> {
        if self == Self::Before2 {
            return None;
        }
        let Some(imports) = main.get("imports").and_then(Value::as_array) else {
            return (containerd.version >= (2, 2)).then(|| PathBuf::from(IMPORTED));
        };
        let mut directories = imports.iter().filter_map(|pattern| {
            let directory = Path::new(pattern.as_str()?.strip_suffix("/*.toml")?);
            let is_pattern = directory.to_string_lossy().contains(['*', '?', '[']);
            // Relative to the main file.
            (!is_pattern).then(|| containerd.config.with_file_name("").join(directory))
        });
        directories.next()
    }
}

fn with_version(version: Option<i64>, mut entries: Table) -> Table {
    let version = version.map(|version| ("version".to_owned(), Value::from(version)));
    entries.extend(version);
    entries
}

/// Returns what an operator has to do where no file can be added.
fn by_hand(containerd: &Containerd, entries: &Table) -> Result<String> {
    let config = containerd.config.display();
    Ok(format!(
        "These lines have to be in {config}, which imports no directory for them, or is not merged by this \
         containerd. Add them, restart containerd, and run this again:\n\n{}",
        toml::to_string(entries)?
    ))
}

#[cfg(test)]
mod tests;
