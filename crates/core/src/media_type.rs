// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Media types of the parts of an image, OCI's and Docker's, and which is what
//! (image-spec `media-types.md`, containerd `core/images/mediatypes.go`).

/// An OCI index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An OCI manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An OCI image config.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker's index.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's image config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Layers by the start of their media type: compression and encryption come as suffixes, and
/// those of Docker and "nondistributable" ones count too.
const LAYER_PREFIXES: [&str; 2] = [
    "application/vnd.oci.image.layer.",
    "application/vnd.docker.image.rootfs.",
];

/// Whether a blob of this media type lists manifests.
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_INDEX)
}

/// Whether a blob of this media type is a manifest.
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

/// Whether a blob of this media type is an image config.
pub fn is_config(media_type: &str) -> bool {
    matches!(media_type, OCI_CONFIG | DOCKER_CONFIG)
}

/// Whether a blob of this media type is a layer of a root file system.
pub fn is_layer(media_type: &str) -> bool {
    LAYER_PREFIXES
        .iter()
        .any(|prefix| media_type.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_of_both_worlds_are_known() {
        for layer in [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ] {
            assert!(is_layer(layer), "{layer}");
        }
        for other in [
            OCI_CONFIG,
            DOCKER_MANIFEST,
            "application/vnd.cncf.helm.chart.v1.tar+gzip",
        ] {
            assert!(!is_layer(other), "{other}");
        }
    }
}
