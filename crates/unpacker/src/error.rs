// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Errors: what failed, and why.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use resnap_core::{ChainId, Digest, Error, Kind, Platform, SnapshotKey, error_chain};

use crate::sources::Tried;

/// The reason why an image could not be unpacked or checked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// No record, normalised name or image ID matches.
    #[error("no image {image:?} in namespace {namespace}{}", there(tags))]
    NoSuchImage {
        /// As the caller wrote it.
        image: String,
        /// The namespace that was searched.
        namespace: String,
        /// Existing names that may be meant, the nearest first, each with its digest.
        tags: Vec<(String, Digest)>,
    },
    /// The image is not a container image.
    #[error("image {image} is no container image: the type of its {part} is {media_type:?}")]
    NotAnImage {
        /// The image.
        image: String,
        /// The part of the image with the unexpected type.
        part: &'static str,
        /// The type, which no part of a container image has.
        media_type: String,
    },
    /// Several image IDs have this prefix.
    #[error("image ID {prefix} fits {}", ids.join(" and "))]
    AmbiguousId {
        /// As the caller wrote it.
        prefix: String,
        /// The IDs with this prefix.
        ids: Vec<String>,
    },
    /// The image has no manifest for the platform.
    #[error(
        "image {image} has no manifest for {wanted}; it has {}",
        list(available)
    )]
    NoManifest {
        /// The image.
        image: String,
        /// The requested platform.
        wanted: String,
        /// The platforms of the image.
        available: Vec<Platform>,
    },
    /// The snapshotter does not support the image.
    #[error(
        "snapshotter {snapshotter} does not support platform {platform} of image {image} (config {config}){}",
        instead(snapshotter, unknown, takers, others)
    )]
    Unsupported {
        /// The image.
        image: String,
        /// The config of the manifest.
        config: Digest,
        /// The platform, with all required OS features.
        platform: String,
        /// The snapshotter.
        snapshotter: String,
        /// OS features that no known snapshotter supports.
        unknown: Vec<String>,
        /// Snapshotters that support the image.
        takers: Vec<String>,
        /// Platforms of the image that the snapshotter supports.
        others: Vec<Platform>,
    },
    /// containerd has no such snapshotter, or it did not load.
    #[error("no snapshotter {snapshotter:?}{}; there are {}", because(failure), available.join(", "))]
    NoSuchSnapshotter {
        /// As the caller wrote it.
        snapshotter: String,
        /// The reason why it did not load, if containerd knows it.
        failure: Option<String>,
        /// The snapshotters that work.
        available: Vec<String>,
    },
    /// Only the image's ID is known, which cannot be pulled by.
    #[error(
        "image {image} is known by its ID only, and snapshotter {snapshotter} needs a reference to pull it by"
    )]
    NoReference {
        /// The image.
        image: String,
        /// The snapshotter.
        snapshotter: String,
    },
    /// The manifest and the config do not match.
    #[error(
        "image {image} has {layers} layers in manifest {manifest} and {diff_ids} diff IDs in its config"
    )]
    LayerCount {
        /// The image.
        image: String,
        /// The manifest.
        manifest: Digest,
        /// Layers of the manifest.
        layers: usize,
        /// Diff IDs of the config.
        diff_ids: usize,
    },
    /// A label exceeds the limit of containerd.
    #[error(
        "label {key:?} of layer {digest} of image {image} is {bytes} bytes long with its value, and containerd takes {}",
        resnap_core::labels::MAX_BYTES
    )]
    LabelTooLong {
        /// The image.
        image: String,
        /// The layer's blob.
        digest: Digest,
        /// The label.
        key: String,
        /// Bytes of key and value.
        bytes: usize,
    },
    /// A layer has an unsupported form.
    #[error("layer {digest} of image {image}: {why}")]
    LayerNotTaken {
        /// The image.
        image: String,
        /// The layer's blob.
        digest: Digest,
        /// The reason.
        why: String,
    },
    /// A layer carries no valid diff ID, or another one than the config.
    #[error("layer {digest} of image {image}: {why}")]
    DiffIdDisagrees {
        /// The image.
        image: String,
        /// The layer's blob.
        digest: Digest,
        /// The two diff IDs, or the reason why there is none.
        why: String,
    },
    /// A layer's blob is missing, and the snapshotter needs it.
    #[error(
        "layer {digest} of image {image} is not in the content store, and snapshotter {snapshotter} needs it{}",
        attempts(tried)
    )]
    MissingBlob {
        /// The image.
        image: String,
        /// The layer's blob.
        digest: Digest,
        /// The snapshotter.
        snapshotter: String,
        /// The arguments for fetching it.
        fetch: Fetch,
        /// The sources that were tried.
        tried: Vec<Tried>,
    },
    /// The blob of a foreign layer, which registries do not serve, is missing.
    #[error(
        "layer {digest} of image {image} is a foreign layer, which registries do not have; it is not in the content store, snapshotter {snapshotter} needs it, and {}{}",
        places(urls),
        attempts(tried)
    )]
    MissingForeignBlob {
        /// The image.
        image: String,
        /// The layer's blob.
        digest: Digest,
        /// The snapshotter.
        snapshotter: String,
        /// The places named by the image.
        urls: Vec<String>,
        /// The sources that were tried.
        tried: Vec<Tried>,
    },
    /// An image ID is shared by several images, none of which is complete.
    #[error("image ID {id} is that of {}, and none of them is complete", images.join(" and of "))]
    Incomplete {
        /// The ID.
        id: Digest,
        /// The images, each with its manifest and its missing layer.
        images: Vec<String>,
        /// The arguments for fetching the first image.
        fetch: Fetch,
    },
    /// The written content does not match the config.
    #[error(
        "layer {digest} of image {image} unpacks to {computed}, but the image's config says {expected}"
    )]
    WrongDiffId {
        /// The image.
        image: String,
        /// The layer's blob.
        digest: Digest,
        /// The config's diff ID.
        expected: Digest,
        /// The diff ID of the written content.
        computed: Digest,
    },
    /// A layer exists without the labels that its snapshotter needs.
    #[error("layer {chain_id} of image {image} is on {snapshotter} without the labels it needs there ({})", missing.join(", "))]
    Unlabelled {
        /// The image.
        image: String,
        /// The layer's snapshot.
        chain_id: ChainId,
        /// The snapshotter.
        snapshotter: String,
        /// The missing labels.
        missing: Vec<&'static str>,
    },
    /// A layer exists without the proof that the layers of its snapshotter need.
    #[error(
        "layer {chain_id} of image {image} is on {snapshotter} without the proof it needs there (integrity = {integrity:?}): {why}"
    )]
    Unproven {
        /// The image.
        image: String,
        /// The layer's snapshot.
        chain_id: ChainId,
        /// The snapshotter.
        snapshotter: String,
        /// The proof that is needed, as in the configuration.
        integrity: &'static str,
        /// The reason.
        why: &'static str,
    },
    /// Layers on the snapshotter need a signature, and there is none that is accepted.
    #[error(
        "{} no signature that {snapshotter} needs (integrity = \"signed\"){}: {why}",
        unsigned(image, digest.as_ref()),
        of_root(root_hash.as_deref())
    )]
    Unsigned {
        /// The image.
        image: String,
        /// The snapshotter.
        snapshotter: String,
        /// The layer's blob, if one layer is the reason.
        digest: Option<Digest>,
        /// Its root hash, if it is known.
        root_hash: Option<String>,
        /// The reason.
        why: String,
    },
    /// Layers on the snapshotter need a proof, and none can be given there.
    #[error("layers of image {image} need a proof on {snapshotter}")]
    NoProof {
        /// The image.
        image: String,
        /// The snapshotter.
        snapshotter: String,
        /// The reason.
        source: Error,
    },
    /// The snapshotter reports that a layer exists, but containerd has no such snapshot.
    #[error(
        "snapshotter {snapshotter} says layer {chain_id} of image {image} exists, but containerd has no such snapshot"
    )]
    Disagreement {
        /// The image.
        image: String,
        /// The layer's snapshot.
        chain_id: ChainId,
        /// The snapshotter.
        snapshotter: String,
    },
    /// Making a layer failed.
    #[error("unpack layer {number} of {of} ({digest}) of image {image} on {snapshotter}")]
    Layer {
        /// The image.
        image: String,
        /// The layer, the base being 1.
        number: usize,
        /// Layers of the image.
        of: usize,
        /// The layer's blob.
        digest: Digest,
        /// The snapshotter.
        snapshotter: String,
        /// The error of the backend.
        source: Error,
    },
    /// The image's index, manifest or config cannot be used.
    #[error("image {image}")]
    Documents {
        /// The image.
        image: String,
        /// The error of the backend.
        source: Error,
        /// The arguments for fetching missing content.
        fetch: Fetch,
        /// The sources that were tried for a missing one, in order.
        tried: Vec<Tried>,
    },
    /// Another operation on an image failed.
    #[error("image {image}")]
    Image {
        /// The image.
        image: String,
        /// The error of the backend.
        source: Error,
    },
    /// An operation that concerns no single image failed.
    #[error(transparent)]
    Backend(#[from] Error),
    /// An error, after which removing the active snapshot failed as well.
    #[error(
        "{}; its snapshot {left} stays until its lease ends, as removing it failed ({})",
        error_chain(cause.as_ref()),
        error_chain(cleanup)
    )]
    Unclean {
        /// The first error.
        cause: Box<UnpackError>,
        /// The remaining snapshot.
        left: SnapshotKey,
        /// The reason.
        cleanup: Error,
    },
    /// A layer cannot be removed for a repair, since it is in use.
    #[error(
        "layer {chain_id} of image {image} is in use on {snapshotter}, by {by}{}",
        why.as_ref().map(|why| format!(", and gets no proof as it is: {why}")).unwrap_or_default()
    )]
    InUse {
        /// The image.
        image: String,
        /// The layer's snapshot.
        chain_id: ChainId,
        /// The snapshotter.
        snapshotter: String,
        /// The container that uses it, or else the snapshot on top of it.
        by: String,
        /// The reason why it cannot get its proof without being removed.
        why: Option<String>,
    },
    /// A layer without labels has no child, but containerd refuses to remove it.
    #[error(
        "layer {chain_id} of image {image} cannot be removed from {snapshotter}, though nothing is left that stands on it"
    )]
    Unremovable {
        /// The image.
        image: String,
        /// The layer's snapshot.
        chain_id: ChainId,
        /// The snapshotter.
        snapshotter: String,
        /// The error of containerd.
        source: Error,
    },
    /// The image failed by a limit, and is not tried again yet.
    #[error("{}; it is tried again in {seconds} s", error_chain(cause.as_ref()))]
    BackedOff {
        /// The error of the last attempt.
        cause: Box<UnpackError>,
        /// The time until the next attempt.
        seconds: u64,
    },
    /// The job was cancelled.
    #[error("unpacking image {image} for {snapshotter} was cancelled")]
    Cancelled {
        /// The image.
        image: String,
        /// The snapshotter.
        snapshotter: String,
    },
    /// The directory for locks cannot be used.
    #[error("use {} for locks between processes", dir.display())]
    RuntimeDir {
        /// The directory.
        dir: PathBuf,
        /// The reason.
        source: Arc<io::Error>,
    },
    /// No running job has this number.
    #[error("no job {id} is running")]
    NoSuchJob {
        /// The number.
        id: u64,
    },
    /// The job has other waiters, and was to be cancelled only without.
    #[error("unpacking image {image} for {snapshotter} goes on: others wait for it")]
    SharedJob {
        /// Its number.
        id: u64,
        /// The image.
        image: String,
        /// The snapshotter.
        snapshotter: String,
    },
    /// The job's task ended without a result.
    #[error("the job for image {image} broke off: {reason}")]
    Broken {
        /// The image.
        image: String,
        /// The error of the runtime.
        reason: String,
    },
}

/// The arguments for fetching an image's missing content from a registry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Fetch {
    /// The reference; `None` if the image has none with a registry.
    pub reference: Option<String>,
    /// The platform, unless it is this machine's.
    pub platform: Option<String>,
}

impl Fetch {
    /// Returns the arguments for `reference`, for this machine's platform.
    pub fn new(reference: Option<String>) -> Self {
        Self {
            reference,
            platform: None,
        }
    }
}

fn unsigned(image: &str, digest: Option<&Digest>) -> String {
    match digest {
        Some(digest) => format!("layer {digest} of image {image} has"),
        None => format!("image {image} has"),
    }
}

fn of_root(root_hash: Option<&str>) -> String {
    let of = |root_hash| format!(" of its root hash {root_hash}");
    root_hash.map(of).unwrap_or_default()
}

fn there(tags: &[(String, Digest)]) -> String {
    let tags = tags.iter().enumerate();
    let tags = tags.map(|(index, (name, digest))| {
        let separator = if index == 0 { "; there " } else { ", " };
        format!("{separator}{name} is {digest}")
    });
    tags.collect()
}

/// Returns the sources that were tried, for the end of a message.
pub(crate) fn attempts(tried: &[Tried]) -> String {
    let tried = tried
        .iter()
        .map(|Tried { source, error, .. }| format!("; {source}: {}", error_chain(error)));
    tried.collect()
}

fn places(urls: &[String]) -> String {
    match urls {
        [] => "the image does not say where it is".to_owned(),
        urls => format!("the image says it is at {}", urls.join(", ").escape_debug()),
    }
}

/// Lists the alternatives.
fn instead(
    snapshotter: &str,
    unknown: &[String],
    takers: &[String],
    others: &[Platform],
) -> String {
    let mut text = String::new();
    for feature in unknown {
        text += &format!("; no snapshotter is known to take OS feature {feature:?}");
    }
    if !takers.is_empty() {
        text += &format!("; it is supported by {}", takers.join(", "));
    }
    if !others.is_empty() {
        text += &format!("; of this image {snapshotter} takes {}", list(others));
    }
    text
}

fn list(platforms: &[Platform]) -> String {
    if platforms.is_empty() {
        return "none".to_owned();
    }
    platforms
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

fn because(failure: &Option<String>) -> String {
    failure
        .as_ref()
        .map(|why| format!(" (it failed to load: {why})"))
        .unwrap_or_default()
}

impl UnpackError {
    /// Returns the kind of the error, which also is the gRPC code.
    pub fn kind(&self) -> Kind {
        match self {
            Self::NoSuchImage { .. }
            | Self::NoManifest { .. }
            | Self::MissingBlob { .. }
            | Self::MissingForeignBlob { .. }
            | Self::Incomplete { .. }
            | Self::NoSuchJob { .. } => Kind::NotFound,
            Self::AmbiguousId { .. }
            | Self::NotAnImage { .. }
            | Self::LayerCount { .. }
            | Self::DiffIdDisagrees { .. }
            | Self::LabelTooLong { .. } => Kind::InvalidArgument,
            Self::LayerNotTaken { .. } => Kind::Unimplemented,
            Self::NoSuchSnapshotter { .. }
            | Self::Unsupported { .. }
            | Self::NoReference { .. }
            | Self::Unlabelled { .. }
            | Self::Unproven { .. }
            | Self::NoProof { .. }
            | Self::Unsigned { .. }
            | Self::InUse { .. }
            | Self::Unremovable { .. }
            | Self::RuntimeDir { .. }
            | Self::SharedJob { .. }
            | Self::Disagreement { .. } => Kind::FailedPrecondition,
            Self::WrongDiffId { .. } => Kind::DataLoss,
            Self::Layer { source, .. }
            | Self::Documents { source, .. }
            | Self::Image { source, .. } => source.kind(),
            Self::Backend(error) => error.kind(),
            Self::Unclean { cause, .. } | Self::BackedOff { cause, .. } => cause.kind(),
            Self::Cancelled { .. } => Kind::Cancelled,
            Self::Broken { .. } => Kind::Internal,
        }
    }

    /// The [`UnpackError::reason`] of a job that was cancelled, cleanly or not.
    pub const CANCELLED: &str = "CANCELLED";

    /// Returns a name of the error for programs, such as `MISSING_BLOB`. An error that wraps
    /// another one has the name of that.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoSuchImage { .. } => "NO_SUCH_IMAGE",
            Self::NotAnImage { .. } => "NOT_AN_IMAGE",
            Self::AmbiguousId { .. } => "AMBIGUOUS_ID",
            Self::NoManifest { .. } => "NO_MANIFEST",
            Self::NoSuchSnapshotter { .. } => "NO_SUCH_SNAPSHOTTER",
            Self::Unsupported { .. } => "UNSUPPORTED",
            Self::NoReference { .. } => "NO_REFERENCE",
            Self::LayerCount { .. } => "LAYER_COUNT",
            Self::LabelTooLong { .. } => "LABEL_TOO_LONG",
            Self::LayerNotTaken { .. } => "LAYER_NOT_TAKEN",
            Self::DiffIdDisagrees { .. } => "DIFF_ID_DISAGREES",
            Self::MissingBlob { .. } => "MISSING_BLOB",
            Self::MissingForeignBlob { .. } => "MISSING_FOREIGN_BLOB",
            Self::Incomplete { .. } => "INCOMPLETE",
            Self::WrongDiffId { .. } => "WRONG_DIFF_ID",
            Self::Unlabelled { .. } => "UNLABELLED",
            Self::Unproven { .. } => "UNPROVEN",
            Self::NoProof { .. } => "NO_PROOF",
            Self::Unsigned { .. } => "UNSIGNED",
            Self::Disagreement { .. } => "DISAGREEMENT",
            Self::Layer { .. } => "LAYER",
            Self::Documents { .. } => "DOCUMENTS",
            Self::Image { .. } => "IMAGE",
            Self::Backend(_) => "BACKEND",
            Self::InUse { .. } => "IN_USE",
            Self::Unremovable { .. } => "UNREMOVABLE",
            Self::Cancelled { .. } => Self::CANCELLED,
            Self::RuntimeDir { .. } => "RUNTIME_DIR",
            Self::NoSuchJob { .. } => "NO_SUCH_JOB",
            Self::SharedJob { .. } => "SHARED_JOB",
            Self::Broken { .. } => "BROKEN",
            Self::Unclean { cause, .. } | Self::BackedOff { cause, .. } => cause.reason(),
        }
    }

    /// Returns whether content is missing and a source asks for credentials, or for other ones.
    pub fn is_denied(&self) -> bool {
        match self {
            Self::MissingBlob { tried, .. }
            | Self::MissingForeignBlob { tried, .. }
            | Self::Documents { tried, .. } => tried.iter().any(Tried::is_denied),
            Self::Unclean { cause, .. } | Self::BackedOff { cause, .. } => cause.is_denied(),
            _ => false,
        }
    }

    /// Returns whether the job was cancelled, cleanly or not.
    pub fn is_cancelled(&self) -> bool {
        match self {
            Self::Cancelled { .. } => true,
            Self::Unclean { cause, .. } => cause.is_cancelled(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::SIBLING;

    #[test]
    fn only_missing_content_that_a_source_guards_is_denied() {
        let failed = |kind| Error::new(kind, "fetch", "a");
        let missing = |kinds: &[Kind]| UnpackError::MissingBlob {
            image: "web".to_owned(),
            digest: Digest::sha256(b""),
            snapshotter: "erofs".to_owned(),
            fetch: Fetch::default(),
            tried: kinds
                .iter()
                .map(|kind| Tried::new("registry", failed(*kind)))
                .collect(),
        };
        let backed_off = |cause| UnpackError::BackedOff {
            cause: Box::new(cause),
            seconds: 1,
        };
        for kind in [Kind::Unauthenticated, Kind::PermissionDenied] {
            let error = missing(&[Kind::NotFound, kind, Kind::Unavailable]);
            assert!(error.is_denied(), "{error}");
            assert!(backed_off(error).is_denied());
            assert!(!UnpackError::Backend(failed(kind)).is_denied());
        }
        assert!(!missing(&[]).is_denied());
        assert!(!missing(&[Kind::NotFound, Kind::Unavailable]).is_denied());
        // A file system may deny access to layers that are copied.
        let mut error = missing(&[Kind::NotFound]);
        if let UnpackError::MissingBlob { tried, .. } = &mut error {
            tried.push(Tried::new(SIBLING, failed(Kind::PermissionDenied)));
        }
        assert!(!error.is_denied());
    }

    #[test]
    fn an_unclean_end_says_everything_once() {
        let cause = UnpackError::Image {
            image: "web".to_owned(),
            source: Error::new(Kind::Unavailable, "prepare", "a").with_source("cut"),
        };
        let unclean = UnpackError::Unclean {
            cause: Box::new(cause),
            left: SnapshotKey::from("b".to_owned()),
            cleanup: Error::new(Kind::DeadlineExceeded, "remove", "b").with_source("too slow"),
        };
        let says = "image web: prepare a: cut; its snapshot b stays until its lease ends, \
                    as removing it failed (remove b: too slow)";
        assert_eq!(error_chain(&unclean), says);
        assert_eq!(unclean.kind(), Kind::Unavailable);
    }
}
