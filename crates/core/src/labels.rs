// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The labels of a layer's snapshot. Who needs them: [`crate::Profiles`].

use std::collections::BTreeMap;

/// Labels of a snapshot, blob or lease.
pub type Labels = BTreeMap<String, String>;

/// The chain ID that an extraction is for. A remote snapshotter answers ALREADY_EXISTS to a
/// Prepare that carries it (containerd `core/snapshots/snapshotter.go`, `LabelSnapshotRef`).
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
/// The layer's diff ID (containerd 2.2 `core/unpack/unpacker.go`).
pub const DIFF_ID: &str = "containerd.io/snapshot/diff-id";
/// The chain ID below; absent on a base layer (containerd 2.2 `core/unpack/unpacker.go`).
pub const PARENT_CHAIN_ID: &str = "containerd.io/snapshot/parent-chain-id";

/// The reference to pull the image by (containerd `pkg/snapshotters/annotations.go`, as the next
/// three).
pub const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";
/// The digest of the manifest.
pub const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";
/// The digest of this layer's blob.
pub const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
/// The digests of this layer and those above it, comma separated, as many as fit.
pub const IMAGE_LAYERS: &str = "containerd.io/snapshot/cri.image-layers";

/// Annotations of a layer pass on to its snapshot under this prefix and no other.
pub const INHERITED_PREFIX: &str = "containerd.io/snapshot/";

/// On a config blob, with the snapshotter's name behind: the top chain ID, which garbage
/// collection then keeps while the image is there.
pub const GC_SNAPSHOT_PREFIX: &str = "containerd.io/gc.ref.snapshot.";
/// On a lease: when it ends, in RFC 3339. Anything else is ignored and the lease stays for ever.
pub const GC_EXPIRE: &str = "containerd.io/gc.expire";

/// Most bytes of a label's key and value together (containerd `pkg/labels/validate.go`).
pub const MAX_BYTES: usize = 4096;

/// What a remote snapshotter lives on. A pull by any containerd since 1.6 sets these five; the
/// diff ID and the parent came later, so a chain without those two is still complete.
pub const NEEDED: [&str; 5] = [
    SNAPSHOT_REF,
    IMAGE_REF,
    MANIFEST_DIGEST,
    LAYER_DIGEST,
    IMAGE_LAYERS,
];

/// The labels of [`NEEDED`] that `labels` lacks or has empty; none means complete.
pub fn missing(labels: &Labels) -> Vec<&'static str> {
    NEEDED
        .into_iter()
        .filter(|&key| labels.get(key).is_none_or(String::is_empty))
        .collect()
}

/// Whether a label is one containerd takes.
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
