// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Media types of the parts of an image, of OCI and Docker, and their classification (image-spec
//! `media-types.md`, containerd `core/images/mediatypes.go`).

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

/// The media type of configs in old pushes, and of arbitrary blobs.
const OCTETS: &str = "application/octet-stream";

/// A layer that is an EROFS image (containerd 2.3 `core/images/mediatypes.go`, `MediaTypeErofsLayer`).
pub const EROFS_LAYER: &str = "application/vnd.erofs.layer.v1";

/// A layer of the EROFS image format (a draft specification); see [`crate::erofs_layer`].
pub const EROFS_IMAGE: &str = "application/vnd.erofs";

/// An index of the chunks of another layer in that format.
pub(crate) const EROFS_CHUNK_INDEX: &str = "application/vnd.erofs.chunk-index.v1";

/// The format of a layer's decompressed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A tar archive of changes; its diff ID is the digest of the archive.
    Tar,
    /// An EROFS image; its diff ID is the digest of the image.
    Erofs,
}

/// The compression of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Uncompressed: the blob's digest is the diff ID.
    None,
    /// Detected by the first bytes: gzip (RFC 1952), zstd (RFC 8878) or none. The compression in the
    /// media type is ignored, since images have it wrong (containerd `core/images/mediatypes.go`,
    /// `DiffCompression`; `pkg/archive/compression`). The diff ID verifies the result.
    Detected,
}

/// Returns format and compression of a layer; `None` if the blob is not a layer, or if only containerd
/// can read it: an encrypted layer, or one with an unknown suffix.
pub fn layer(media_type: &str) -> Option<(Format, Compression)> {
    Some(match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar"
        | "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        | "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
            (Format::Tar, Compression::Detected)
        }
        EROFS_LAYER | EROFS_IMAGE => (Format::Erofs, Compression::None),
        "application/vnd.erofs.layer.v1+zstd" | "application/vnd.erofs+zstd" => {
            (Format::Erofs, Compression::Detected)
        }
        _ => return None,
    })
}

/// Returns whether a layer of this media type is an EROFS image, readable or not.
pub fn is_erofs(media_type: &str) -> bool {
    matches!(
        without_suffixes(media_type),
        EROFS_LAYER | EROFS_IMAGE | EROFS_CHUNK_INDEX
    )
}

/// Returns whether a blob of this media type is an index.
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_INDEX)
}

/// Returns whether a blob of this media type is a manifest.
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

/// Returns whether a blob of this media type is an image config. Blobs of other types may be configs
/// too: containerd decides by their content.
pub fn is_config(media_type: &str) -> bool {
    matches!(media_type, OCI_CONFIG | DOCKER_CONFIG | OCTETS)
}

/// Returns whether a blob of this media type is a layer of a root file system (containerd
/// `core/images/mediatypes.go`, `IsLayerType`): compression and encryption are suffixes.
pub fn is_layer(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.")
        || is_erofs(media_type)
        || matches!(
            without_suffixes(media_type),
            "application/vnd.docker.image.rootfs.diff.tar"
                | "application/vnd.docker.image.rootfs.diff.tar.gzip"
                | "application/vnd.docker.image.rootfs.diff.tar.zstd"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        )
}

/// Returns whether registries do not distribute layers of this media type (containerd
/// `core/images/mediatypes.go`, `IsNonDistributable`).
pub fn is_foreign(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.nondistributable.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.")
}

/// Returns the part of a media type before its first suffix.
pub(crate) fn without_suffixes(media_type: &str) -> &str {
    media_type
        .split_once('+')
        .map_or(media_type, |(base, _)| base)
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
        for (media_type, read) in [
            (
                "application/vnd.oci.image.layer.v1.tar+zstd",
                Some((Format::Tar, Compression::Detected)),
            ),
            (
                "application/vnd.docker.image.rootfs.diff.tar",
                Some((Format::Tar, Compression::Detected)),
            ),
            (
                "application/vnd.erofs.layer.v1",
                Some((Format::Erofs, Compression::None)),
            ),
            (
                "application/vnd.erofs.layer.v1+zstd",
                Some((Format::Erofs, Compression::Detected)),
            ),
            (
                "application/vnd.erofs",
                Some((Format::Erofs, Compression::None)),
            ),
            (
                "application/vnd.erofs+zstd",
                Some((Format::Erofs, Compression::Detected)),
            ),
            ("application/vnd.erofs.chunk-index.v1", None),
            ("application/vnd.erofs.layer.v1+gzip", None),
            ("application/vnd.erofs+gzip", None),
            (
                "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
                None,
            ),
        ] {
            assert!(is_layer(media_type), "{media_type}");
            assert_eq!(layer(media_type), read, "{media_type}");
            assert_eq!(is_erofs(media_type), media_type.contains("erofs"));
        }
        for other in [
            OCI_CONFIG,
            DOCKER_MANIFEST,
            "application/vnd.cncf.helm.chart.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.notes.v1+json",
            "application/vnd.docker.image.rootfs.diff.tar.lzma",
            "application/vnd.erofs.layer.v10",
            "application/vnd.erofs.layers",
            "application/vnd.erofsx",
        ] {
            assert!(!is_layer(other) && !is_erofs(other), "{other}");
        }
    }

    #[test]
    fn foreign_layers_are_known() {
        for (media_type, foreign) in [
            (
                "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                true,
            ),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar", true),
            ("application/vnd.oci.image.layer.v1.tar+gzip", false),
        ] {
            assert!(is_layer(media_type), "{media_type}");
            assert_eq!(is_foreign(media_type), foreign, "{media_type}");
        }
    }
}
