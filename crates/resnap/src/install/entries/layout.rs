// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The places of runtime handlers in containerd's configuration.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use resnap_platforms::Platform;
use toml::{Table, Value};

use super::containerd::Containerd;
use super::handler::Handler;
use crate::toml_table::{at, insert, stated};

/// The plugin with the runtime handlers, since containerd 2.0 and before.
pub(super) const RUNTIME: &str = "io.containerd.cri.v1.runtime";
pub(super) const RUNTIME_BEFORE_2: &str = "io.containerd.grpc.v1.cri";

/// The plugin with the snapshotters for pulls and for statistics.
const IMAGES: &str = "io.containerd.cri.v1.images";

/// The directory that containerd 2.2 and later imports by itself.
const IMPORTED: &str = "/etc/containerd/conf.d";

/// The place of the runtime handlers.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Layout {
    Before2,
    Since2,
}

impl Layout {
    pub(super) fn of(dump: &Table) -> Result<Self> {
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
    pub(super) fn has(self, dump: &Table, handler: &Handler) -> Result<bool> {
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
    pub(super) fn entries(
        self,
        dump: &Table,
        handlers: &[Handler],
        version: Option<i64>,
    ) -> Result<Table> {
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
                    copied.filter_map(|key| Some((key.to_owned(), stated(default.get(key)?)?))),
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
    pub(super) fn own<'a>(self, before: &Table, handler: &'a Handler) -> Vec<Vec<&'a str>> {
        let name = handler.name.as_str();
        let mut runtime = vec!["plugins", self.plugin(), "containerd", "runtimes", name];
        if at(before, &runtime).is_some() {
            runtime.push("snapshotter");
        }
        vec![runtime, vec!["plugins", IMAGES, "runtime_platforms", name]]
    }

    /// Returns the reason why no file can be added to the main one.
    pub(super) fn why_nothing_is_imported(self, has_version: bool) -> &'static str {
        match self {
            Self::Before2 => {
                "Before containerd 2.0, a file that is imported replaces whole tables of the main one"
            }
            Self::Since2 if has_version => {
                "containerd's main file does not import all files of a directory (imports = [\"DIR/*.toml\"])"
            }
            Self::Since2 => "containerd's main file is not there, or states no version",
        }
    }

    /// Returns a directory of whose files the main file imports all, if containerd merges them.
    pub(super) fn imported(self, containerd: &Containerd, main: &Table) -> Option<PathBuf> {
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
