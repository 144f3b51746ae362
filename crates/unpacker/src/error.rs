// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What keeps an image from being ready: the thing, the reason, and the next step.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use resnap_core::{ChainId, Digest, Error, Kind, Platform, SnapshotKey, error_chain};

use crate::Failure;
use crate::title::name_in;

/// Why an image could not be unpacked or checked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// No record, normalised name or image ID fits.
    #[error("no image {image:?} in namespace {namespace}{}", there(tags))]
    NoSuchImage {
        /// As the caller wrote it.
        image: String,
        /// Where it was looked for.
        namespace: String,
        /// Of a reference with a digest the names of the same repository that are there, each with
        /// its digest.
        tags: Vec<(String, Digest)>,
    },
    /// It is something else than a container image.
    #[error("image {image} is no container image: the type of its {part} is {media_type:?}")]
    NotAnImage {
        /// The image.
        image: String,
        /// What of it has the type.
        part: &'static str,
        /// The type, that of none of an image's parts.
        media_type: String,
    },
    /// More than one image ID starts like this.
    #[error("image ID {prefix} fits {}", ids.join(" and "))]
    AmbiguousId {
        /// As the caller wrote it.
        prefix: String,
        /// The IDs it fits.
        ids: Vec<String>,
    },
    /// The image has no manifest that runs on the platform.
    #[error(
        "image {image} has no manifest for {wanted}; it has {}",
        list(available)
    )]
    NoManifest {
        /// The image.
        image: String,
        /// What was asked for.
        wanted: String,
        /// What there is.
        available: Vec<Platform>,
    },
    /// The snapshotter does not take what the image is made of.
    #[error(
        "snapshotter {snapshotter} does not support platform {platform} of image {image} (config {config}){}",
        instead(snapshotter, unknown, takers, others)
    )]
    Unsupported {
        /// The image.
        image: String,
        /// The config of the manifest.
        config: Digest,
        /// The platform, with all OS features that would have to be taken.
        platform: String,
        /// The snapshotter.
        snapshotter: String,
        /// Features that no snapshotter is known to take.
        unknown: Vec<String>,
        /// Snapshotters that take it.
        takers: Vec<String>,
        /// Platforms of the image that the snapshotter takes.
        others: Vec<Platform>,
    },
    /// containerd has no such snapshotter, or it did not load.
    #[error("no snapshotter {snapshotter:?} in this containerd{}; it has {}", because(failure), available.join(", "))]
    NoSuchSnapshotter {
        /// As the caller wrote it.
        snapshotter: String,
        /// Why it did not load, if containerd knows it.
        failure: Option<String>,
        /// Those that work.
        available: Vec<String>,
    },
    /// Only the image's ID is known, and nobody can pull by that.
    #[error(
        "image {image} is known by its ID only, and snapshotter {snapshotter} needs a reference to pull it by"
    )]
    NoReference {
        /// The image.
        image: String,
        /// The snapshotter.
        snapshotter: String,
    },
    /// The manifest and the config do not fit.
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
    /// A label would be longer than containerd takes.
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
    /// A layer of a kind that cannot be unpacked.
    #[error("layer {digest} of image {image}: {why}")]
    LayerNotTaken {
        /// The image.
        image: String,
        /// The layer's blob.
        digest: Digest,
        /// What it is.
        why: String,
    },
    /// A layer's own diff ID is none, or another than the config's.
    #[error("layer {digest} of image {image}: {why}")]
    DiffIdDisagrees {
        /// The image.
        image: String,
        /// The layer's blob.
        digest: Digest,
        /// What it says, and what the config says.
        why: String,
    },
    /// A layer's blob is not on the node any more, and the snapshotter wants it.
    #[error(
        "layer {digest} of image {image} is not in the content store, and snapshotter {snapshotter} needs it"
    )]
    MissingBlob {
        /// The image.
        image: String,
        /// The layer's blob.
        digest: Digest,
        /// The snapshotter.
        snapshotter: String,
        /// What brings it.
        fetch: Fetch,
    },
    /// The same of a layer that registries do not hand out.
    #[error(
        "layer {digest} of image {image} is a foreign layer, which registries do not have; it is not in the content store, snapshotter {snapshotter} needs it, and {}",
        places(urls)
    )]
    MissingForeignBlob {
        /// The image.
        image: String,
        /// The layer's blob.
        digest: Digest,
        /// The snapshotter.
        snapshotter: String,
        /// Where the image says it is.
        urls: Vec<String>,
    },
    /// An image ID names the config of several images, and none is all there.
    #[error("image ID {id} is that of {}, and none of them is complete", images.join(" and of "))]
    Incomplete {
        /// The ID.
        id: Digest,
        /// The images, each with its manifest and what is missing.
        images: Vec<String>,
        /// What brings the first.
        fetch: Fetch,
    },
    /// What was unpacked is not what the config says.
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
        /// That of what was written.
        computed: Digest,
    },
    /// A layer is there without the labels its snapshotter needs.
    #[error("layer {chain_id} of image {image} is on {snapshotter} without the labels it needs there ({})", missing.join(", "))]
    Unlabelled {
        /// The image.
        image: String,
        /// The layer's snapshot.
        chain_id: ChainId,
        /// The snapshotter.
        snapshotter: String,
        /// The labels it lacks.
        missing: Vec<&'static str>,
    },
    /// The snapshotter says a layer is there, and containerd knows nothing of it.
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
    /// A layer failed otherwise.
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
        /// What failed.
        source: Error,
    },
    /// The image's index, manifest or config cannot be used.
    #[error("image {image}")]
    Documents {
        /// The image.
        image: String,
        /// What failed.
        source: Error,
        /// What brings what is missing.
        fetch: Fetch,
    },
    /// Something else about an image failed.
    #[error("image {image}")]
    Image {
        /// The image.
        image: String,
        /// What failed.
        source: Error,
    },
    /// Something that concerns no single image failed.
    #[error(transparent)]
    Backend(#[from] Error),
    /// An error, after which the active snapshot could not be removed either.
    #[error(
        "{}; its snapshot {left} stays until its lease ends, as removing it failed ({})",
        error_chain(cause.as_ref()),
        error_chain(cleanup)
    )]
    Unclean {
        /// What failed first.
        cause: Box<UnpackError>,
        /// The snapshot that is left.
        left: SnapshotKey,
        /// Why.
        cleanup: Error,
    },
    /// A layer without labels could be made again only if nothing stood on it.
    #[error("layer {chain_id} of image {image} is in use on {snapshotter}, by {by}")]
    InUse {
        /// The image.
        image: String,
        /// The layer's snapshot.
        chain_id: ChainId,
        /// The snapshotter.
        snapshotter: String,
        /// The container, or else the snapshot that stands on it.
        by: String,
    },
    /// A layer without labels, on which nothing stands, and containerd thinks otherwise.
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
        /// What containerd says.
        source: Error,
    },
    /// It failed by a limit, and it is too early to try again.
    #[error("{}; it is tried again in {seconds} s", error_chain(cause.as_ref()))]
    BackedOff {
        /// What it failed with.
        cause: Box<UnpackError>,
        /// When it is tried again, from when this was said.
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
        /// Why.
        source: Arc<io::Error>,
    },
    /// No job that runs has this number.
    #[error("no job {id} is running")]
    NoSuchJob {
        /// The number.
        id: u64,
    },
    /// A job was to be cancelled only if nobody else waits for it.
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
        /// What the runtime says.
        reason: String,
    },
}

/// What `ctr content fetch` is to be told to bring an image's content; `None` where there is no name
/// to ask a registry by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fetch(pub(crate) Option<String>);

impl Fetch {
    fn step(&self, namespace: &str) -> String {
        match &self.0 {
            Some(arguments) => {
                format!("pull it again: `ctr --namespace {namespace} content fetch {arguments}`")
            }
            None => "pull the image again by its name, or import it again".to_owned(),
        }
    }
}

fn there(tags: &[(String, Digest)]) -> String {
    let tags = tags.iter().enumerate();
    let tags = tags.map(|(index, (name, digest))| {
        let separator = if index == 0 { "; there " } else { ", " };
        format!("{separator}{name} is {digest}")
    });
    tags.collect()
}

fn places(urls: &[String]) -> String {
    match urls {
        [] => "the image does not say where it is".to_owned(),
        urls => format!("the image says it is at {}", urls.join(", ").escape_debug()),
    }
}

/// What would work.
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
    /// The kind to decide by, and the gRPC code to answer with.
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

    /// Which error it is, for programs; of an unclean end the one that came first.
    pub(crate) fn reason(&self) -> &'static str {
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
            Self::Disagreement { .. } => "DISAGREEMENT",
            Self::Layer { .. } => "LAYER",
            Self::Documents { .. } => "DOCUMENTS",
            Self::Image { .. } => "IMAGE",
            Self::Backend(_) => "BACKEND",
            Self::InUse { .. } => "IN_USE",
            Self::Unremovable { .. } => "UNREMOVABLE",
            Self::Cancelled { .. } => Failure::CANCELLED,
            Self::RuntimeDir { .. } => "RUNTIME_DIR",
            Self::NoSuchJob { .. } => "NO_SUCH_JOB",
            Self::SharedJob { .. } => "SHARED_JOB",
            Self::Broken { .. } => "BROKEN",
            Self::Unclean { cause, .. } | Self::BackedOff { cause, .. } => cause.reason(),
        }
    }

    /// Whether the job was cancelled, cleanly or not.
    pub fn is_cancelled(&self) -> bool {
        match self {
            Self::Cancelled { .. } => true,
            Self::Unclean { cause, .. } => cause.is_cancelled(),
            _ => false,
        }
    }

    /// What to do about it, where there is something to say. `namespace` is that of the image.
    pub fn next_step(&self, namespace: &str) -> Option<String> {
        Some(match self {
            Self::NoSuchImage { tags, .. } if !tags.is_empty() => {
                "name one of these tags, or pull the digest".to_owned()
            }
            Self::NotAnImage { .. } => {
                "it is something else, such as a chart or a signature: nothing of it is to be unpacked".to_owned()
            }
            Self::NoSuchImage { .. } => format!(
                "`resnap images --namespace {namespace}` lists what is there; `ctr namespaces ls` the namespaces"
            ),
            Self::AmbiguousId { .. } => "give more of the ID".to_owned(),
            Self::NoManifest { available, .. } if available.is_empty() => {
                "this is not a container image".to_owned()
            }
            Self::NoManifest { .. } => "choose one with --platform".to_owned(),
            Self::Unsupported { takers, others, .. } => match (takers.first(), others.first()) {
                (Some(taker), Some(other)) => {
                    format!("take --snapshotter {taker}, or --platform '{other}'")
                }
                (Some(taker), None) => format!("take --snapshotter {taker}"),
                (None, Some(other)) => format!("take --platform '{other}'"),
                (None, None) => {
                    "name what takes it in the configuration: [snapshotters.NAME] os_features".to_owned()
                }
            },
            Self::NoSuchSnapshotter { .. } => {
                "`resnap snapshotters` tells more; a proxy snapshotter is added in containerd's configuration".to_owned()
            }
            Self::NoReference { image, .. } => {
                format!("name it: `ctr --namespace {namespace} images tag {image} REFERENCE`")
            }
            Self::LayerCount { .. } | Self::DiffIdDisagrees { .. } | Self::LabelTooLong { .. } => {
                "the image is broken: build it again".to_owned()
            }
            Self::LayerNotTaken { .. } => {
                "take a manifest of the image that has none of these, with --platform, or build it without".to_owned()
            }
            Self::MissingBlob { fetch, .. } => format!(
                "{}; containerd's discard_unpacked_layers throws layers away",
                fetch.step(namespace)
            ),
            Self::MissingForeignBlob { digest, .. } => format!(
                "get it and add it: `ctr --namespace {namespace} content ingest --expected-digest {digest} layer < FILE`"
            ),
            Self::Incomplete { fetch, .. } => fetch.step(namespace),
            Self::Layer { source, digest, .. } if source.kind() == Kind::DataLoss => format!(
                "the layer's blob is broken: remove it (`ctr --namespace {namespace} content rm {digest}`) and pull the image again"
            ),
            Self::Layer { source, .. } if layer_step(source.kind()).is_some() => {
                return layer_step(source.kind()).map(str::to_owned);
            }
            Self::WrongDiffId { .. } => {
                "the image is broken or was tampered with: pull it again, and if that does not help build it again".to_owned()
            }
            Self::Unlabelled { image, snapshotter, .. } => format!(
                "somebody unpacked it without labels; `resnap --namespace {namespace} unpack {} --snapshotter {snapshotter} --repair` mends it",
                name_in(image)
            ),
            Self::InUse { by, .. } => format!("nothing was changed; remove {by} and try again"),
            Self::Unremovable { image, .. } => format!(
                "containerd's garbage collection removes it with the image: `ctr --namespace {namespace} images rm --sync {}`, and pull it again",
                name_in(image)
            ),
            Self::Cancelled { .. } => {
                "its finished layers stay for an hour; unpack it again to go on".to_owned()
            }
            Self::RuntimeDir { .. } => {
                "choose another one with --runtime-dir or RESNAP_RUNTIME_DIR".to_owned()
            }
            Self::Disagreement { snapshotter, .. } => format!(
                "containerd's metadata and {snapshotter}'s own disagree: restart {snapshotter}, or remove the snapshot there"
            ),
            Self::Unclean { cause, .. } | Self::BackedOff { cause, .. } => {
                return cause.next_step(namespace);
            }
            Self::Documents { source, fetch, .. } => match source.kind() {
                Kind::NotFound => fetch.step(namespace),
                Kind::InvalidArgument | Kind::ResourceExhausted => {
                    "no such image is taken: build it again".to_owned()
                }
                Kind::DataLoss => format!(
                    "the content store is damaged there: remove it (`ctr --namespace {namespace} content rm DIGEST`) and pull the image again"
                ),
                kind => return backend_step(kind).map(str::to_owned),
            },
            Self::Backend(error) | Self::Image { source: error, .. } | Self::Layer { source: error, .. } => {
                return backend_step(error.kind()).map(str::to_owned);
            }
            Self::NoSuchJob { .. } => "it may be over; `resnap jobs` lists those that run".to_owned(),
            Self::SharedJob { id, .. } => format!("`resnap cancel {id}` ends it for all"),
            Self::Broken { .. } => "this is a bug in resnap: please report it".to_owned(),
        })
    }
}

/// What to do about a layer that was not written although its blob is not known to be broken.
fn layer_step(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::InvalidArgument => {
            Some("if the layer is malformed, a pull brings the same: build the image again")
        }
        Kind::Unimplemented => Some(
            "resnap cannot write such a layer: leave it to containerd, if that can ([snapshotters.NAME] differ), or build the image again",
        ),
        Kind::ResourceExhausted => {
            Some("make room, or raise the limit if it is one of resnap's configuration")
        }
        // containerd tells a broken blob from its own trouble by words only.
        Kind::Unknown => Some(
            "containerd's log may say more; if the layer is broken, pull or build the image again",
        ),
        _ => None,
    }
}

fn backend_step(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Unavailable => Some(
            "is containerd running, and the snapshotter behind it? containerd's socket is given by --address or CONTAINERD_ADDRESS",
        ),
        Kind::PermissionDenied => Some("run as root, or as a user who may use containerd's socket"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_broken_where_a_digest_says_so() {
        let step = |kind| {
            let error = UnpackError::Layer {
                image: "web".to_owned(),
                number: 1,
                of: 1,
                digest: Digest::sha256(b""),
                snapshotter: "native".to_owned(),
                source: Error::new(kind, "apply layer", "a"),
            };
            error.next_step("k8s.io").unwrap_or_default()
        };
        let broken = step(Kind::DataLoss);
        assert!(broken.starts_with("the layer's blob is broken"), "{broken}");
        assert!(broken.contains("content rm sha256:"), "{broken}");
        for (kind, says) in [
            (Kind::InvalidArgument, "build the image again"),
            (Kind::Unimplemented, "leave it to containerd"),
            (Kind::ResourceExhausted, "make room"),
            (Kind::Unknown, "containerd's log"),
            (Kind::FailedPrecondition, ""),
        ] {
            let step = step(kind);
            assert!(step.contains(says), "{kind:?}: {step}");
            assert!(!step.contains("blob"), "{kind:?}: {step}");
        }
    }

    #[test]
    fn what_no_registry_has_is_not_to_be_fetched() {
        let missing = |fetch| UnpackError::MissingBlob {
            image: "web".to_owned(),
            digest: Digest::sha256(b""),
            snapshotter: "native".to_owned(),
            fetch: Fetch(fetch),
        };
        let step = |fetch| missing(fetch).next_step("k8s.io").unwrap();
        let fetch = step(Some("docker.io/library/web:1".to_owned()));
        assert!(fetch.contains("`ctr --namespace k8s.io content fetch docker.io/library/web:1`"));
        assert!(!step(None).contains("ctr"), "{}", step(None));
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
