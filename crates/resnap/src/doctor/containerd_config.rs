// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! containerd's configuration, as its own program prints it: with the files that it imports, and with what it
//! has by default.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use toml::{Table, Value};

use super::process::Process;
use crate::arguments::last_value;
use crate::differ_order;
use crate::toml_table;

/// The file that containerd reads if it is started with no other one.
pub(crate) const DEFAULT_FILE: &str = "/etc/containerd/config.toml";

const IMAGES: &str = "io.containerd.cri.v1.images";
const RUNTIME: &str = "io.containerd.cri.v1.runtime";
const EROFS_SNAPSHOTTER: &str = "io.containerd.snapshotter.v1.erofs";
const EROFS_DIFFER: &str = "io.containerd.differ.v1.erofs";
/// The CRI plugin of containerd 1.
const CRI: &str = "io.containerd.grpc.v1.cri";

/// The configuration of a running containerd.
#[derive(Debug)]
pub(crate) struct ContainerdConfig {
    /// The file.
    pub(crate) path: PathBuf,
    /// The files of it that have changed since containerd was started.
    pub(crate) changed: BTreeSet<PathBuf>,
    table: Table,
}

impl ContainerdConfig {
    /// Reads the configuration with which this process was started.
    ///
    /// # Errors
    /// A text that names the file and the reason.
    pub(crate) async fn of(process: &Process) -> Result<Self, String> {
        let path = main_file(process);
        let file = path.to_string_lossy();
        let failed = |why: &dyn std::fmt::Display| {
            format!("containerd's configuration {file} could not be read by its program: {why}")
        };
        let text = process.print(&["--config", &file, "config", "dump"]).await;
        let text = text.map_err(|error| failed(&error))?;
        let mut this = Self::parse(&text).map_err(|error| failed(&error))?;
        this.path = path;
        // The file itself may be among those that it imports.
        let imports = this.texts(&["imports"]);
        let mut files: BTreeSet<PathBuf> = imports.into_iter().map(PathBuf::from).collect();
        files.insert(this.path.clone());
        files.retain(|path| changed_since(path, process.started));
        this.changed = files;
        Ok(this)
    }

    pub(super) fn parse(text: &str) -> Result<Self, toml::de::Error> {
        Ok(Self {
            path: PathBuf::new(),
            changed: BTreeSet::new(),
            table: text.parse()?,
        })
    }

    fn get(&self, keys: &[&str]) -> Option<&Value> {
        toml_table::at(&self.table, keys)
    }

    fn texts(&self, keys: &[&str]) -> Vec<String> {
        toml_table::texts(&self.table, keys)
    }

    /// Returns a switch of a plugin; `None` if this containerd does not have it.
    fn switch(&self, plugin: &str, name: &str) -> Option<bool> {
        self.get(&["plugins", plugin, name])?.as_bool()
    }

    /// Returns the directories with caches of EROFS layers.
    pub(crate) fn layer_caches(&self) -> Vec<String> {
        self.texts(&["plugins", EROFS_SNAPSHOTTER, "layer_content_caches"])
    }

    /// Returns a switch of the CRI's images.
    pub(crate) fn images_switch(&self, name: &str) -> Option<bool> {
        let old = self.get(&["plugins", CRI, "containerd", name]);
        self.switch(IMAGES, name)
            .or_else(|| old.and_then(Value::as_bool))
    }

    /// Returns the sandbox image.
    pub(crate) fn sandbox_image(&self) -> Option<&str> {
        let old = self.get(&["plugins", CRI, "sandbox_image"]);
        let new = self.get(&["plugins", IMAGES, "pinned_images", "sandbox"]);
        new.or(old)?.as_str()
    }

    /// Returns whether containers get SELinux labels.
    pub(crate) fn enables_selinux(&self) -> bool {
        let name = "enable_selinux";
        let switch = self
            .switch(RUNTIME, name)
            .or_else(|| self.switch(CRI, name));
        switch == Some(true)
    }

    /// Returns the snapshotter of a handler for pulls and statistics.
    pub(crate) fn platform_snapshotter(&self, handler: &str) -> Option<&str> {
        let keys = [
            "plugins",
            IMAGES,
            "runtime_platforms",
            handler,
            "snapshotter",
        ];
        self.get(&keys)?.as_str()
    }

    /// Returns the directory of one of containerd's own snapshotters.
    pub(crate) fn snapshotter_root(&self, name: &str) -> Option<PathBuf> {
        let root = Path::new(self.get(&["root"])?.as_str()?);
        (!self.is_proxy(name)).then(|| root.join(format!("io.containerd.snapshotter.v1.{name}")))
    }

    /// Returns whether a snapshotter or a differ is another program.
    pub(crate) fn is_proxy(&self, name: &str) -> bool {
        self.get(&["proxy_plugins", name]).is_some()
    }

    /// Returns the differs that are other programs.
    pub(crate) fn diff_plugins(&self) -> Vec<&str> {
        let plugins = self.get(&["proxy_plugins"]).and_then(Value::as_table);
        let plugins = plugins.into_iter().flatten();
        let is_differ = |value: &Value| value.get("type").and_then(Value::as_str) == Some("diff");
        plugins
            .filter(|(_, value)| is_differ(value))
            .map(|(name, _)| name.as_str())
            .collect()
    }

    /// Returns the root directory that a proxy plugin exports.
    pub(crate) fn exported_root(&self, name: &str) -> Option<&str> {
        let root = self.get(&["proxy_plugins", name, "exports", "root"])?;
        root.as_str().filter(|root| !root.is_empty())
    }

    /// Returns the differs in the order in which the diff service tries them.
    pub(crate) fn differs(&self) -> Vec<String> {
        self.texts(&differ_order::PATH)
    }

    /// Returns the snapshotters of the transfer service with their differs, which may be empty; `None` if they
    /// are containerd's own.
    pub(crate) fn unpack_entries(&self) -> Option<Vec<(&str, &str)>> {
        let keys = [
            "plugins",
            "io.containerd.transfer.v1.local",
            "unpack_config",
        ];
        let entries = self.get(&keys)?.as_array()?.iter();
        let entries = entries.map(|entry| {
            let text = |key| entry.get(key).and_then(Value::as_str).unwrap_or_default();
            (text("snapshotter"), text("differ"))
        });
        Some(entries.collect())
    }

    /// Returns whether the EROFS differ makes dm-verity trees.
    pub(crate) fn makes_verity_trees(&self) -> bool {
        self.switch(EROFS_DIFFER, "enable_dmverity") == Some(true)
    }

    /// Returns whether the EROFS differ makes images with blocks of 512 bytes.
    pub(crate) fn makes_tar_indexes(&self) -> bool {
        self.switch(EROFS_DIFFER, "enable_tar_index") == Some(true)
    }

    /// Returns whether the EROFS snapshotter mounts only layers with dm-verity trees.
    pub(crate) fn requires_verity(&self) -> bool {
        let keys = [
            "plugins",
            "io.containerd.snapshotter.v1.erofs",
            "dmverity_mode",
        ];
        self.get(&keys).and_then(Value::as_str) == Some("on")
    }

    /// Returns whether the EROFS differ passes options to `mkfs.erofs`.
    pub(crate) fn has_mkfs_options(&self) -> bool {
        !self
            .texts(&["plugins", EROFS_DIFFER, "mkfs_options"])
            .is_empty()
    }
}

/// Returns the main file with which a containerd was started.
pub(crate) fn main_file(process: &Process) -> PathBuf {
    process.absolute(file_argument(&process.arguments).unwrap_or(DEFAULT_FILE))
}

/// Returns the argument with the main file, by any of its names.
fn file_argument<S: AsRef<str>>(arguments: &[S]) -> Option<&str> {
    last_value(arguments, &["--config", "-config", "--c", "-c"])
}

/// Returns whether a file was changed after this time. `stat` tells the start of a process to a hundredth of a
/// second, and that of the machine to a second.
pub(crate) fn changed_since(path: &Path, started: SystemTime) -> bool {
    let changed = path.metadata().and_then(|metadata| metadata.modified());
    let later = changed.ok().and_then(|at| at.duration_since(started).ok());
    later.is_some_and(|later| later.as_secs() >= 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: &str = r#"
        imports = ["/a.toml"]
        root = "/c"
        [plugins.'io.containerd.cri.v1.images']
        discard_unpacked_layers = true
        [plugins.'io.containerd.cri.v1.images'.pinned_images]
        sandbox = "pause:3"
        [plugins.'io.containerd.cri.v1.images'.runtime_platforms.kata]
        snapshotter = "nydus"
        [plugins.'io.containerd.cri.v1.runtime']
        enable_selinux = true
        [plugins.'io.containerd.service.v1.diff-service']
        default = ["erofs", "walking"]
        [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
        snapshotter = "overlayfs"
        [proxy_plugins.nydus]
        type = "snapshot"
        [proxy_plugins.nydus.exports]
        root = "/nydus"
        [proxy_plugins.resnap]
        type = "diff"
        [plugins.'io.containerd.snapshotter.v1.erofs']
        layer_content_caches = ["/cache"]
    "#;

    const OLD: &str = r#"
        [plugins."io.containerd.grpc.v1.cri"]
        enable_selinux = true
        sandbox_image = "pause:3"
        [plugins."io.containerd.grpc.v1.cri".containerd]
        discard_unpacked_layers = true
    "#;

    #[test]
    fn the_main_file_is_that_of_the_command_line() {
        for (line, file) in [
            ("containerd", None),
            ("containerd --log-level debug", None),
            ("containerd -c /a.toml", Some("/a.toml")),
            (
                "containerd --config=/a.toml --log-level=debug",
                Some("/a.toml"),
            ),
            (
                "containerd --log-level debug --config /a.toml",
                Some("/a.toml"),
            ),
            ("containerd -config a.toml", Some("a.toml")),
            ("containerd --config", None),
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            assert_eq!(file_argument(&words), file, "{line}");
        }
    }

    #[test]
    fn both_forms_of_the_cri_are_read() {
        for text in [NEW, OLD] {
            let config = ContainerdConfig::parse(text).unwrap();
            assert!(config.enables_selinux());
            assert_eq!(config.sandbox_image(), Some("pause:3"));
            assert_eq!(config.images_switch("discard_unpacked_layers"), Some(true));
            assert_eq!(config.images_switch("disable_snapshot_annotations"), None);
        }
    }

    #[test]
    fn plugins_are_read() {
        let config = ContainerdConfig::parse(NEW).unwrap();
        assert_eq!(config.layer_caches(), ["/cache"]);
        assert_eq!(config.platform_snapshotter("kata"), Some("nydus"));
        assert_eq!(config.platform_snapshotter("other"), None);
        assert_eq!(config.differs(), ["erofs", "walking"]);
        assert_eq!(config.unpack_entries(), Some(vec![("overlayfs", "")]));
        assert_eq!(config.exported_root("nydus"), Some("/nydus"));
        assert_eq!(config.exported_root("resnap"), None);
        let root = config.snapshotter_root("native").unwrap();
        assert_eq!(root, Path::new("/c/io.containerd.snapshotter.v1.native"));
        assert_eq!(config.snapshotter_root("nydus"), None);
        assert_eq!(config.diff_plugins(), ["resnap"]);
        assert!(config.is_proxy("nydus") && !config.is_proxy("erofs"));
        assert!(!config.requires_verity() && !config.makes_verity_trees());
        let config = ContainerdConfig::parse("").unwrap();
        assert_eq!(config.unpack_entries(), None);
        assert!(config.differs().is_empty());
    }
}
