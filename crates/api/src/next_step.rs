// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The next step for a user of the command line after an error.

use std::error::Error as _;
use std::io;

use resnap_core::{Error, Kind};
use resnap_unpacker::{Fetch, UnpackError, name_in_title};

/// The next step where a file system has too little space.
pub const MAKE_ROOM: &str = "make room: `resnap doctor --disk` shows what takes it, and `resnap evict` removes images \
                             from a snapshotter";

/// Returns what to do about an error that concerns an image of `namespace`, if anything is known.
pub(crate) fn next_step(error: &UnpackError, namespace: &str) -> Option<String> {
    match error {
        UnpackError::Unclean { cause, .. } | UnpackError::BackedOff { cause, .. } => {
            next_step(cause, namespace)
        }
        error => request_step(error, namespace)
            .or_else(|| full_step(error))
            .or_else(|| image_step(error))
            .or_else(|| content_step(error, namespace))
            .or_else(|| snapshot_step(error, namespace))
            .or_else(|| failed_call_step(error)),
    }
}

/// Returns the step for a request that cannot be carried out as it is.
fn request_step(error: &UnpackError, namespace: &str) -> Option<String> {
    Some(match error {
        UnpackError::NoSuchImage { tags, .. } if !tags.is_empty() => {
            "name one of these tags, or pull it".to_owned()
        }
        UnpackError::NoSuchImage { image, .. } if image.contains("oci:") || image.contains("://") => {
            "for an image that is named by where it is, say `--engine local --root DIR`".to_owned()
        }
        UnpackError::NoSuchImage { .. } => format!(
            "`resnap images --namespace {namespace}` lists what is there; `ctr namespaces ls` the namespaces"
        ),
        UnpackError::AmbiguousId { .. } => "give more of the ID".to_owned(),
        UnpackError::NoManifest { available, .. } if available.is_empty() => {
            "this is not a container image".to_owned()
        }
        UnpackError::NoManifest { .. } => "choose one with --platform".to_owned(),
        UnpackError::Unsupported { takers, others, .. } => match (takers.first(), others.first()) {
            (Some(taker), Some(other)) => {
                format!("take --snapshotter {taker}, or --platform '{other}'")
            }
            (Some(taker), None) => format!("take --snapshotter {taker}"),
            (None, Some(other)) => format!("take --platform '{other}'"),
            (None, None) => {
                "name a snapshotter that supports it in the configuration: [snapshotters.NAME] os_features"
                    .to_owned()
            }
        },
        UnpackError::NoSuchSnapshotter { .. } => {
            "`resnap snapshotters` shows more; a proxy snapshotter is added in containerd's configuration"
                .to_owned()
        }
        UnpackError::NoReference { image, .. } => {
            format!("name it: `ctr --namespace {namespace} images tag {image} REFERENCE`")
        }
        UnpackError::Cancelled { .. } => {
            "its finished layers stay for an hour; unpack it again to go on".to_owned()
        }
        UnpackError::RuntimeDir { .. } => {
            "choose another one with --runtime-dir or RESNAP_RUNTIME_DIR".to_owned()
        }
        UnpackError::Unsigned { .. } => {
            "attach a signed artifact to the image in its registry, or configure the certificate that signed it: [integrity] authorities or signers"
                .to_owned()
        }
        UnpackError::NoProof { snapshotter, .. } => {
            format!("mend that, or do without: [snapshotters.{snapshotter}] integrity = \"off\"")
        }
        UnpackError::NoSuchJob { .. } => {
            "it may have ended; `resnap jobs` lists the running ones".to_owned()
        }
        UnpackError::SharedJob { id, .. } => format!("`resnap cancel {id}` ends it for all"),
        _ => return None,
    })
}

/// Returns the step for a file system without space.
fn full_step(error: &UnpackError) -> Option<String> {
    match error {
        UnpackError::Layer { source, .. }
        | UnpackError::Documents { source, .. }
        | UnpackError::Image { source, .. }
        | UnpackError::Backend(source) => is_full(source).then(|| MAKE_ROOM.to_owned()),
        _ => None,
    }
}

/// Returns whether the reason of an error is a file system without space.
fn is_full(error: &Error) -> bool {
    let mut next = error.source();
    while let Some(cause) = next {
        let system = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        if let Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) = system {
            return true;
        }
        next = cause.source();
    }
    false
}

/// Returns the step for an image that cannot be unpacked.
fn image_step(error: &UnpackError) -> Option<String> {
    let step = match error {
        UnpackError::NotAnImage { .. } => {
            "it is something else, such as a chart or a signature: nothing of it is to be unpacked"
        }
        UnpackError::LayerCount { .. }
        | UnpackError::DiffIdDisagrees { .. }
        | UnpackError::LabelTooLong { .. } => "the image is broken: build it again",
        UnpackError::LayerNotTaken { .. } => {
            "take a manifest of the image that has none of these, with --platform, or build it without"
        }
        UnpackError::WrongDiffId { .. } => {
            "the image is broken or was tampered with: pull it again, and if that does not help build it again"
        }
        UnpackError::Documents { source, .. } => match source.kind() {
            Kind::InvalidArgument | Kind::ResourceExhausted => {
                "such an image is not supported: build it again"
            }
            _ => return None,
        },
        _ => return None,
    };
    Some(step.to_owned())
}

/// Returns the step for content that is missing or damaged.
fn content_step(error: &UnpackError, namespace: &str) -> Option<String> {
    Some(match error {
        UnpackError::MissingBlob { fetch, .. } => format!(
            "{}, or add an archive of the image (`resnap unpack --from FILE`); containerd's discard_unpacked_layers removes layers",
            fetch_step(fetch, namespace)
        ),
        UnpackError::MissingForeignBlob { digest, .. } => format!(
            "get it and add it: `ctr --namespace {namespace} content ingest --expected-digest {digest} layer < FILE`"
        ),
        UnpackError::Incomplete { fetch, .. } => fetch_step(fetch, namespace),
        UnpackError::Documents { source, fetch, .. } => match source.kind() {
            Kind::NotFound => fetch_step(fetch, namespace),
            Kind::DataLoss => format!(
                "the content store is damaged there: remove it (`ctr --namespace {namespace} content rm DIGEST`) and pull the image again"
            ),
            _ => return None,
        },
        UnpackError::Layer { source, digest, .. } if source.kind() == Kind::DataLoss => format!(
            "the layer's blob is broken: remove it (`ctr --namespace {namespace} content rm {digest}`) and pull the image again"
        ),
        _ => return None,
    })
}

/// Returns the step for snapshots that are in the way.
fn snapshot_step(error: &UnpackError, namespace: &str) -> Option<String> {
    Some(match error {
        UnpackError::Unlabelled {
            image, snapshotter, ..
        } => format!(
            "it was unpacked without labels; `resnap --namespace {namespace} unpack {} --snapshotter {snapshotter} --repair` repairs it",
            name_in_title(image)
        ),
        UnpackError::Unproven {
            image, snapshotter, ..
        } => format!(
            "`resnap --namespace {namespace} unpack {} --snapshotter {snapshotter} --repair` gives it one, also while it is in use",
            name_in_title(image)
        ),
        UnpackError::InUse { by, .. } => format!("nothing was removed; remove {by} and try again"),
        UnpackError::Unremovable { image, .. } => format!(
            "containerd's garbage collection removes it with the image: `ctr --namespace {namespace} images rm --sync {}`, and pull it again",
            name_in_title(image)
        ),
        UnpackError::Disagreement {
            image, snapshotter, ..
        } => format!(
            "`resnap --namespace {namespace} unpack {} --snapshotter {snapshotter} --repair` removes a record of a layer \
             that {snapshotter} has lost; if that does not help, restart {snapshotter}",
            name_in_title(image)
        ),
        _ => return None,
    })
}

/// Returns the step for a call that failed.
fn failed_call_step(error: &UnpackError) -> Option<String> {
    let step = match error {
        UnpackError::Layer { source, .. } => {
            layer_step(source.kind()).or_else(|| backend_step(source.kind()))?
        }
        UnpackError::Backend(source)
        | UnpackError::Documents { source, .. }
        | UnpackError::Image { source, .. } => backend_step(source.kind())?,
        UnpackError::Broken { .. } => "this is a bug in resnap: please report it",
        _ => return None,
    };
    Some(step.to_owned())
}

fn fetch_step(fetch: &Fetch, namespace: &str) -> String {
    let Some(reference) = &fetch.reference else {
        return "pull the image again by its name, or import it again".to_owned();
    };
    let platform = fetch.platform.as_ref();
    let platform =
        platform.map_or_else(String::new, |platform| format!("--platform '{platform}' "));
    format!("pull it again: `ctr --namespace {namespace} content fetch {platform}{reference}`")
}

/// Returns the step for a layer that could not be written, if its blob is not known to be broken.
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
        // containerd distinguishes a broken blob from its own failures by the message only.
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
    use resnap_core::Digest;

    use super::*;

    #[test]
    fn a_full_disk_is_no_limit() {
        for (kind, is_full) in [
            (io::ErrorKind::StorageFull, true),
            (io::ErrorKind::QuotaExceeded, true),
            (io::ErrorKind::OutOfMemory, false),
        ] {
            let reason = Error::new(Kind::ResourceExhausted, "write", "a")
                .with_source(io::Error::from(kind));
            let error = UnpackError::Image {
                image: "web".to_owned(),
                source: Error::new(Kind::ResourceExhausted, "apply", "a").with_source(reason),
            };
            let step = next_step(&error, "k8s.io");
            assert_eq!(step.as_deref() == Some(MAKE_ROOM), is_full, "{step:?}");
        }
    }

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
            next_step(&error, "k8s.io").unwrap_or_default()
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
    fn blobs_without_a_registry_are_not_fetched() {
        let missing = |fetch| UnpackError::MissingBlob {
            image: "web".to_owned(),
            digest: Digest::sha256(b""),
            snapshotter: "native".to_owned(),
            fetch: Fetch::new(fetch),
            tried: Vec::new(),
        };
        let step = |fetch| next_step(&missing(fetch), "k8s.io").unwrap();
        let mut foreign = Fetch::new(Some("localhost:5000/a:1".to_owned()));
        foreign.platform = Some("linux/s390x".to_owned());
        let text = fetch_step(&foreign, "k8s.io");
        assert!(text.contains("content fetch --platform 'linux/s390x' localhost:5000/a:1`"));
        let fetch = step(Some("docker.io/library/web:1".to_owned()));
        assert!(fetch.contains("`ctr --namespace k8s.io content fetch docker.io/library/web:1`"));
        assert!(!step(None).contains("ctr"), "{}", step(None));
    }
}
