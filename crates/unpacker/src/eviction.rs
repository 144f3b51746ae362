// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Evictions: which images are to leave a snapshotter, and what came of it.

use resnap_core::{Digest, ManifestPreference, SnapshotKey, Usage, labels};
use serde::{Serialize, Serializer};

use crate::error::attempts;
use crate::sources::Tried;

/// A request to evict images from a snapshotter: nothing keeps their snapshots there any more but
/// containers.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EvictRequest {
    /// Exact names, Docker names, or image IDs or prefixes of them.
    pub images: Vec<String>,
    /// The snapshotter.
    pub snapshotter: String,
    /// Whether nothing is changed.
    pub dry_run: bool,
    /// The images of sandboxes, which are not evicted.
    pub sandbox_images: Vec<String>,
    /// Whether resnap makes images ready on the snapshotter before containers need them, with the
    /// sources of the engine. Otherwise an image is only evicted if the blobs of its layers exist.
    pub is_prepared: bool,
    /// Another snapshotter, on which a chain must exist before it is evicted.
    pub moved_to: Option<String>,
    /// The preference by which containerd chooses the manifest of a container.
    pub pick: ManifestPreference,
}

impl EvictRequest {
    /// Returns a request to evict `images`, if the blobs of all their layers exist.
    pub fn new(images: Vec<String>, snapshotter: impl Into<String>) -> Self {
        Self {
            images,
            snapshotter: snapshotter.into(),
            dry_run: false,
            sandbox_images: Vec::new(),
            is_prepared: false,
            moved_to: None,
            pick: ManifestPreference::default(),
        }
    }
}

/// The result of an eviction, or with [`EvictRequest::dry_run`] what it would be.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct Eviction {
    /// The chains of the images.
    pub chains: Vec<EvictedChain>,
    /// The number of removed snapshots.
    pub snapshots: usize,
    /// The bytes of the removed snapshots.
    pub bytes: u64,
    /// The inodes of the removed snapshots.
    pub inodes: u64,
}

/// A chain of snapshots, and the images that have it.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct EvictedChain {
    /// The names of all images that have the chain, whether or not they were requested. They are
    /// evicted together.
    pub images: Vec<String>,
    /// The snapshot of the top layer; `None` if the image has no chain on the snapshotter.
    pub chain_id: Option<SnapshotKey>,
    /// Whether it was evicted.
    pub state: EvictState,
    /// The reason why it was refused.
    pub refusal: Option<Refusal>,
    /// The number of removed snapshots.
    pub snapshots: usize,
    /// The bytes of the removed snapshots.
    pub bytes: u64,
    /// The number of snapshots that stay, for other images or for [`EvictedChain::in_use_by`].
    pub kept: usize,
    /// The containers and leases that keep the chain until they end.
    pub in_use_by: Vec<String>,
    #[serde(skip)]
    pub(crate) removed: Vec<(SnapshotKey, Usage)>,
}

impl EvictedChain {
    pub(crate) fn new(
        images: Vec<String>,
        chain_id: Option<&SnapshotKey>,
        state: EvictState,
    ) -> Self {
        Self {
            images,
            chain_id: chain_id.cloned(),
            state,
            refusal: None,
            snapshots: 0,
            bytes: 0,
            kept: 0,
            in_use_by: Vec::new(),
            removed: Vec::new(),
        }
    }
}

/// The state of a chain after an eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EvictState {
    /// It was evicted.
    Evicted,
    /// It would be evicted.
    WouldEvict,
    /// It was not evicted.
    Refused,
    /// The image has no chain on the snapshotter.
    Absent,
}

/// The reason why a chain is not evicted.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// An image is pinned.
    #[error(
        "image {image} is pinned: it must stay usable; if it need not, unpin it \
         (`ctr --namespace {namespace} images label {image} {}=`)",
        labels::PINNED
    )]
    Pinned {
        /// The image.
        image: String,
        /// Its namespace.
        namespace: String,
    },
    /// Sandboxes need an image.
    #[error(
        "image {image} is the sandbox image: without it on {snapshotter}, no pod there starts if it cannot be \
         unpacked again; it stays as long as containerd's configuration names it"
    )]
    Sandbox {
        /// The image.
        image: String,
        /// The snapshotter.
        snapshotter: String,
    },
    /// The chain is not on the other snapshotter.
    #[error(
        "image {image} is not on {snapshotter}: make it ready there first (`resnap unpack {image} --snapshotter {snapshotter}`)"
    )]
    NotMoved {
        /// The image.
        image: String,
        /// The other snapshotter.
        snapshotter: String,
    },
    /// A layer could not be unpacked again.
    #[error(
        "layer {digest} of image {image} is not in the content store, and {snapshotter} needs it for the next pod{}: {}",
        attempts(tried),
        missing_step(*is_prepared)
    )]
    MissingLayer {
        /// The image.
        image: String,
        /// The layer's blob.
        digest: Digest,
        /// The snapshotter.
        snapshotter: String,
        /// Whether resnap makes images ready on the snapshotter.
        is_prepared: bool,
        /// The sources that were tried.
        tried: Vec<Tried>,
    },
    /// It is unknown which layers an image needs.
    #[error("the layers of image {image} are unknown ({reason}): pull it again")]
    Unreadable {
        /// The image.
        image: String,
        /// The reason.
        reason: String,
    },
}

impl Refusal {
    /// Returns whether the image is never evicted, as it is pinned or a sandbox image.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Pinned { .. } | Self::Sandbox { .. })
    }
}

impl Serialize for Refusal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn missing_step(is_prepared: bool) -> &'static str {
    match is_prepared {
        true => "pull the image again, or add a source that has it ([sources])",
        false => {
            "pull the image again, or let `resnap serve` make images ready there ([cri] always = true)"
        }
    }
}
