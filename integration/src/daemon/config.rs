// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The configuration files of containerd and of nydus.

use std::path::Path;

use super::options::Options;
use crate::image::host_platform;

/// The name of the diff plugin's socket.
pub(super) const DIFF_SOCKET: &str = "d.sock";

/// The input of both configuration files.
pub(super) struct Plan<'a> {
    pub(super) version: (u32, u32, u32),
    pub(super) options: &'a Options,
    /// The daemon's folder on disk.
    pub(super) root: &'a Path,
    /// The daemon's folder for sockets, whose paths have to be short.
    pub(super) sockets: &'a Path,
    /// The folder with runc.
    pub(super) tools: &'a Path,
}

impl Plan<'_> {
    /// erofs came with containerd 2.1.
    fn erofs(&self) -> bool {
        self.version >= (2, 1, 0)
    }

    /// A runtime's own snapshotter came with containerd 1.7.
    fn snapshotter_by_runtime(&self) -> bool {
        self.version >= (1, 7, 0)
    }

    fn diff_order(&self) -> &[&str] {
        match self.options.diff_order {
            _ if self.options.diff_plugin && self.erofs() => &["resnap", "erofs", "walking"],
            _ if self.options.diff_plugin => &["resnap", "walking"],
            Some(order) => order,
            None if self.erofs() => &["erofs", "walking"],
            None => &["walking"],
        }
    }

    pub(super) fn containerd(&self) -> String {
        let version2 = self.version.0 >= 2;
        let (root, sockets) = (self.root.display(), self.sockets.display());
        // containerd names lower directories from where all of an overlay's directories lie, and has
        // no more than a page for them: `state` is there, so that they begin with its own folders.
        let mut text = format!(
            r#"version = {}
root = "{root}/root"
state = "{root}"
[grpc]
  address = "{sockets}/c.sock"
[ttrpc]
  address = "{sockets}/c.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt"
[plugins."io.containerd.service.v1.diff-service"]
  default = {:?}
# Subtracts one from each byte of a layer.
[stream_processors.unshift]
  accepts = ["application/vnd.oci.image.layer.v1.tar+gzip+shifted"]
  returns = "application/vnd.oci.image.layer.v1.tar+gzip"
  path = "tr"
  args = ['\001-\377\000', '\000-\377']
  env = ["LC_ALL=C"]
"#,
            if version2 { 3 } else { 2 },
            self.diff_order(),
        );
        if self.options.nydus {
            text += &format!(
                "[proxy_plugins.nydus]\n  type = \"snapshot\"\n  address = \"{sockets}/nydus.sock\"\n"
            );
        }
        if let Some(count) = self.options.parallel_unpacks {
            text += &format!(
                "[plugins.\"io.containerd.transfer.v1.local\"]\n  max_concurrent_unpacks = {count}\n"
            );
        }
        if self.options.diff_plugin {
            text += &self.diff_plugin();
        }
        text += &if version2 { self.cri2() } else { self.cri1() };
        text
    }

    /// The lines of `examples/containerd` for the plugin and the transfer service. That of 1.7 passes no
    /// namespace on, and has to name a differ.
    fn diff_plugin(&self) -> String {
        let (os, architecture) = host_platform();
        let address = self.sockets.join(DIFF_SOCKET);
        let mut text =
            format!("[proxy_plugins.resnap]\n  type = \"diff\"\n  address = {address:?}\n");
        let entries: &[_] = match self.erofs() {
            false => &[("overlayfs", "walking")],
            true => &[
                ("overlayfs", "resnap"),
                ("native", "resnap"),
                ("erofs", "resnap"),
            ],
        };
        for (snapshotter, differ) in entries {
            text += &format!(
                "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n  \
                 platform = \"{os}/{architecture}\"\n  snapshotter = \"{snapshotter}\"\n  \
                 differ = \"{differ}\"\n"
            );
        }
        text
    }

    fn cri1(&self) -> String {
        let cri = r#"plugins."io.containerd.grpc.v1.cri""#;
        let nydus_only = self.options.nydus && !self.snapshotter_by_runtime();
        format!(
            r#"[{cri}]
  sandbox_image = "{}"
  disable_apparmor = true
  restrict_oom_score_adj = true
[{cri}.cni]
  conf_dir = "{}/cni"
[{cri}.containerd]
  snapshotter = "{}"
  disable_snapshot_annotations = {}
  discard_unpacked_layers = {}
{}"#,
            self.options.pause_image,
            self.root.display(),
            if nydus_only { "nydus" } else { "overlayfs" },
            !self.labels_pulls(),
            self.options.discard_layers,
            self.runtimes(cri),
        )
    }

    fn cri2(&self) -> String {
        let images = r#"plugins."io.containerd.cri.v1.images""#;
        let runtime = r#"plugins."io.containerd.cri.v1.runtime""#;
        format!(
            r#"[plugins."io.containerd.nri.v1.nri"]
  disable = true
[{images}]
  snapshotter = "overlayfs"
  disable_snapshot_annotations = {}
  discard_unpacked_layers = {}
[{images}.pinned_images]
  sandbox = "{}"
{}[{runtime}]
  disable_apparmor = true
  restrict_oom_score_adj = true
[{runtime}.cni]
  conf_dir = "{}/cni"
{}"#,
            !self.labels_pulls(),
            self.options.discard_layers,
            self.options.pause_image,
            self.runtime_platforms(images),
            self.root.display(),
            self.runtimes(runtime),
        )
    }

    /// Returns whether containerd labels what it pulls, as nydus wants it.
    fn labels_pulls(&self) -> bool {
        self.options.nydus || self.options.pull_for_handlers
    }

    /// Returns the snapshotters for which the CRI of containerd 2 pulls.
    fn runtime_platforms(&self, images: &str) -> String {
        let (os, architecture) = host_platform();
        let handlers = self.handlers().into_iter();
        let tables = handlers
            .filter(|_| self.options.pull_for_handlers)
            .map(|name| {
                format!(
                    "[{images}.runtime_platforms.{name}]\n  platform = \"{os}/{architecture}\"\n  \
                 snapshotter = \"{name}\"\n"
                )
            });
        tables.collect()
    }

    /// Returns the handlers that have the snapshotters of their names.
    fn handlers(&self) -> Vec<&'static str> {
        let by_runtime = self.snapshotter_by_runtime();
        let all = [
            ("nydus", self.options.nydus && by_runtime),
            ("native", self.options.native && by_runtime),
            ("erofs", self.erofs()),
        ];
        let all = all.into_iter().filter(|(_, exists)| *exists);
        all.map(|(name, _)| name).collect()
    }

    fn runtimes(&self, plugin: &str) -> String {
        let mut handlers = vec![("runc", None)];
        handlers.extend(self.handlers().into_iter().map(|name| (name, Some(name))));
        let mut text = String::new();
        for (name, snapshotter) in handlers {
            let handler = format!("{plugin}.containerd.runtimes.{name}");
            text += &format!("[{handler}]\n  runtime_type = \"io.containerd.runc.v2\"\n");
            if let Some(snapshotter) = snapshotter {
                text += &format!("  snapshotter = \"{snapshotter}\"\n");
            }
            text += &format!(
                "[{handler}.options]\n  BinaryName = \"{}/runc\"\n  Root = \"{}/runc\"\n",
                self.tools.display(),
                self.sockets.display(),
            );
        }
        text
    }

    pub(super) fn nydus(&self) -> String {
        format!(
            r#"version = 1
root = "{}/nydus"
address = "{}/nydus.sock"
daemon_mode = "none"
[system]
enable = false
[daemon]
fs_driver = "proxy"
recover_policy = "none"
[cgroup]
enable = false
[log]
log_to_stdout = true
# Says which labels every Prepare had.
level = "debug"
[snapshot]
enable_kata_volume = true
sync_remove = true
[cache_manager]
gc_period = "24h"
"#,
            self.root.display(),
            self.sockets.display(),
        )
    }
}
