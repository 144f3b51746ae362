// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The settings of a containerd that a test starts.

/// The settings in which the containerds of tests differ.
#[derive(Debug, Clone)]
pub struct Options {
    /// Starts nydus-snapshotter in proxy mode too, as the snapshotter `nydus`
    /// and the runtime handler `nydus`; containerd 1.6 has no snapshotter for
    /// one handler, there it becomes the CRI's snapshotter.
    pub nydus: bool,
    /// The diff service's order; `None` is erofs before walking where there is
    /// an erofs differ.
    pub diff_order: Option<&'static [&'static str]>,
    /// Whether layers are written by a diff plugin at [`Containerd::diff_socket`](super::Containerd), first of
    /// all by the diff service, and on containerd 2 by the transfer service alone.
    pub diff_plugin: bool,
    /// The CRI's sandbox image.
    pub pause_image: String,
    /// Whether the CRI discards the layers of an image once it has unpacked them.
    pub discard_layers: bool,
    /// Whether there is a runtime handler `native` with the native snapshotter.
    pub native: bool,
    /// Whether the CRI of containerd 2 pulls for runtime handlers, too (`runtime_platforms`), and labels
    /// the layers that it pulls.
    pub pull_for_handlers: bool,
    /// The layers that the transfer service unpacks at once, where containerd can (2.2); one, if this is `None`.
    pub parallel_unpacks: Option<u32>,
    /// Puts all of its files on a tmpfs of this size, such as `6g`.
    pub tmpfs: Option<&'static str>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nydus: false,
            diff_order: None,
            diff_plugin: false,
            pause_image: "docker.io/library/pause:1".to_owned(),
            discard_layers: false,
            native: false,
            pull_for_handlers: false,
            parallel_unpacks: None,
            tmpfs: None,
        }
    }
}
