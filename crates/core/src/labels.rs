// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The labels of a layer's snapshot. [`crate::Profiles`] has the snapshotters that need them.

use std::collections::BTreeMap;

/// Labels of a snapshot, blob or lease.
pub type Labels = BTreeMap<String, String>;

/// The target chain ID of an extraction. A remote snapshotter may answer ALREADY_EXISTS to a Prepare
/// with this label (containerd `core/snapshots/snapshotter.go`, `LabelSnapshotRef`).
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
/// The layer's diff ID (containerd 2.2 `core/unpack/unpacker.go`).
pub const DIFF_ID: &str = "containerd.io/snapshot/diff-id";
/// The chain ID of the parent; absent on a base layer (containerd 2.2 `core/unpack/unpacker.go`).
pub const PARENT_CHAIN_ID: &str = "containerd.io/snapshot/parent-chain-id";

/// The reference by which the image can be pulled (containerd `pkg/snapshotters/annotations.go`, like
/// the next three).
pub const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";
/// The digest of the manifest.
pub const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";
/// The digest of this layer's blob.
pub const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
/// The digests of this layer and those above it, comma separated, as many as fit.
pub const IMAGE_LAYERS: &str = "containerd.io/snapshot/cri.image-layers";

/// The prefix of the annotations of a layer that become labels of its snapshot.
pub const INHERITED_PREFIX: &str = "containerd.io/snapshot/";

/// The prefix of a label of a config blob; the snapshotter's name follows. The value is the top chain
/// ID, which garbage collection then keeps for as long as the image exists.
pub const GC_SNAPSHOT_PREFIX: &str = "containerd.io/gc.ref.snapshot.";
/// The prefix of the labels of a blob that name other blobs, which garbage collection keeps with it
/// (containerd `core/metadata/gc.go`).
pub const GC_CONTENT_PREFIX: &str = "containerd.io/gc.ref.content";
/// The label of a snapshot or a blob that garbage collection keeps.
pub const GC_ROOT: &str = "containerd.io/gc.root";
/// The label of a manifest with the digest of its config, which garbage collection then keeps
/// (containerd `core/images/handlers.go`, `ChildGCLabels`, like the next two).
pub const GC_CONFIG: &str = "containerd.io/gc.ref.content.config";
/// The prefix of a label of a manifest; the index of a layer follows. The value is its digest.
pub const GC_LAYER_PREFIX: &str = "containerd.io/gc.ref.content.l.";
/// The prefix of a label of an index; the index of a manifest follows. The value is its digest.
pub const GC_MANIFEST_PREFIX: &str = "containerd.io/gc.ref.content.m.";
/// The label of a manifest with the digest of the artifact that has the signed indexes of its layers. The name
/// is that of a proposal for containerd.
pub const GC_ARTIFACT: &str = "containerd.io/gc.ref.content.dmverity";
/// The label of a lease with the time of its expiry in RFC 3339. Any other format is ignored, and the
/// lease never expires.
pub const GC_EXPIRE: &str = "containerd.io/gc.expire";

/// The label of an image record that the CRI reports as pinned if it has [`PINNED_VALUE`] (containerd
/// `internal/cri/labels/labels.go`). kubelet removes no pinned image.
pub const PINNED: &str = "io.cri-containerd.pinned";
/// See [`PINNED`].
pub const PINNED_VALUE: &str = "pinned";

/// The prefix of a label of a blob with the repositories that it was pulled from, comma separated; the
/// host of their registry follows (containerd `pkg/labels/labels.go`).
pub const DISTRIBUTION_SOURCE_PREFIX: &str = "containerd.io/distribution.source.";

/// The label of a committed snapshot that resnap copied from another snapshotter, with that
/// snapshotter's name. Its content could not be compared with the diff ID. A copy of a copy names the
/// first snapshotter.
pub const COPIED_FROM: &str = "resnap.io/copied-from";

/// The label of a committed snapshot whose EROFS image resnap made of the layer's entries, with the name
/// of the program. Such an image has all that the layer has.
pub const IMAGE_WRITER: &str = "resnap.io/image-writer";

/// The label of a committed snapshot with the root hash of its layer's dm-verity tree.
pub const ROOT_HASH: &str = "resnap.io/verity-root-hash";
/// The label of a committed snapshot with the origin of that tree ([`crate::ProofOrigin`]).
pub const PROOF_ORIGIN: &str = "resnap.io/verity-origin";
/// The label of a committed snapshot with the digest of the verified signature of the root hash.
pub const PROOF_SIGNATURE: &str = "resnap.io/verity-signature";
/// The label of a committed snapshot with the certificate by which that signature was verified.
pub const PROOF_SIGNER: &str = "resnap.io/verity-signer";

/// The maximum number of bytes of a label's key and value together (containerd
/// `pkg/labels/validate.go`).
pub const MAX_BYTES: usize = 4096;

/// The labels that remote snapshotters need. A pull by any containerd since 1.6 sets these five. The
/// labels of the diff ID and the parent were added later, so a chain without those two is complete.
pub const NEEDED: [&str; 5] = [
    SNAPSHOT_REF,
    IMAGE_REF,
    MANIFEST_DIGEST,
    LAYER_DIGEST,
    IMAGE_LAYERS,
];

/// Returns the labels of [`NEEDED`] that are missing or empty. None means complete.
pub fn missing(labels: &Labels) -> Vec<&'static str> {
    NEEDED
        .into_iter()
        .filter(|&key| labels.get(key).is_none_or(String::is_empty))
        .collect()
}

/// Returns whether containerd accepts a label.
pub fn fits(key: &str, value: &str) -> bool {
    key.len() + value.len() <= MAX_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_by_an_old_containerd_is_complete() {
        let mut labels: Labels = NEEDED
            .into_iter()
            .map(|key| (key.to_owned(), "x".to_owned()))
            .collect();
        assert!(missing(&labels).is_empty());
        labels.insert(IMAGE_REF.to_owned(), String::new());
        labels.remove(SNAPSHOT_REF);
        assert_eq!(missing(&labels), [SNAPSHOT_REF, IMAGE_REF]);
    }

    #[test]
    fn the_limit_counts_key_and_value() {
        assert!(fits("k", &"v".repeat(4095)));
        assert!(!fits("k", &"v".repeat(4096)));
    }
}
