// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The requests that meet faults, and the state of the node before and after each.

use crate::missing::NO_SIBLING;
use crate::node::{Node, differ_config};

/// The layers of an image before a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// Their blobs alone.
    Blobs,
    /// On overlayfs, too, without labels.
    Bare,
    /// On overlayfs, too, by resnap.
    Unpacked,
    /// Nothing.
    Nothing,
    /// On overlayfs alone, by resnap.
    Discarded,
}

impl Before {
    pub(crate) fn has_blobs(self) -> bool {
        !matches!(self, Self::Nothing | Self::Discarded)
    }
}

/// A command of resnap.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) name: String,
    pub(crate) config: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) before: Before,
    /// The snapshotters on which the image is ready afterwards.
    pub(crate) ready: Vec<&'static str>,
    /// Whether resnap writes files, so that its system calls matter.
    pub(crate) writes: bool,
}

impl Scenario {
    /// Returns whether it keeps all layers that are there, and reports them.
    pub(crate) fn keeps_layers(&self) -> bool {
        self.arguments[0] == "unpack" && self.before != Before::Bare
    }
}

/// Returns all commands for an image.
pub(crate) fn commands(node: &Node, image: &str) -> Vec<Scenario> {
    let other = match node.containerd.has_erofs() {
        true => "erofs",
        false => "native",
    };
    let scenario = |name: &str, arguments: &[&str], before, ready: &[&'static str]| Scenario {
        name: format!("{name} {}", ready.join(" ")),
        config: NO_SIBLING.to_owned(),
        arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
        before,
        ready: ready.to_vec(),
        writes: true,
    };
    let unpack = |name: &str, on, before| {
        scenario(
            name,
            &["unpack", "--json", image, "--snapshotter", on],
            before,
            &[on],
        )
    };
    let mut all: Vec<Scenario> = node
        .targets()
        .map(|on| unpack("unpack on", on, Before::Blobs))
        .collect();
    all.extend(["overlayfs", other].map(|on| Scenario {
        config: differ_config("containerd"),
        writes: false,
        ..unpack("unpack by containerd on", on, Before::Blobs)
    }));
    all.push(scenario(
        "repair on",
        &[
            "unpack",
            "--json",
            "--repair",
            image,
            "--snapshotter",
            "overlayfs",
        ],
        Before::Bare,
        &["overlayfs"],
    ));
    let room = ["--min-free", "1 KiB"];
    let migrate = [
        "migrate",
        "--json",
        "--from",
        "overlayfs",
        "--to",
        other,
        "--evict",
        image,
    ];
    all.push(scenario(
        "migrate to",
        &[&migrate[..], &room].concat(),
        Before::Unpacked,
        &[other],
    ));
    all.push(unpack("fetch for", other, Before::Nothing));
    all.push(Scenario {
        config: "sources.order = [\"sibling\"]\n".to_owned(),
        ready: vec![other, "overlayfs"],
        ..unpack("copy to", other, Before::Discarded)
    });
    let warm = [
        "warm",
        "--json",
        image,
        "--snapshotter",
        "overlayfs",
        "--snapshotter",
        other,
    ];
    all.push(scenario(
        "warm",
        &[&warm[..], &room].concat(),
        Before::Blobs,
        &["overlayfs", other],
    ));
    all
}
