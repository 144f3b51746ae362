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
const LAYER_PREFIXES: [&str; 3] = [
    "application/vnd.oci.image.layer.",
    "application/vnd.docker.image.rootfs.",
    EROFS_LAYER,
];

/// A layer that is an EROFS image already (containerd 2.3 `core/images/mediatypes.go`,
/// `MediaTypeErofsLayer`), with or without a suffix. The EROFS image spec is a draft: what it
/// changes is changed in [`layer`].
const EROFS_LAYER: &str = "application/vnd.erofs.layer.v1";

/// What the bytes of a layer are, once they are decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A tar archive of changes; its diff ID is the digest of the archive.
    Tar,
    /// An EROFS image; its diff ID is the digest of the image.
    Erofs,
}

/// How the bytes of a layer are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: the blob's digest is the diff ID.
    None,
    /// As its first bytes say: gzip (RFC 1952), zstd (RFC 8878), or not at all. Whichever of them
    /// the media type names, and if it names none: images have them wrong (containerd
    /// `core/images/mediatypes.go`, `DiffCompression`; `pkg/archive/compression`). The diff ID proves
    /// it.
    Detected,
}

/// Format and compression of a layer; `None` for what is no layer, and for one that only
/// containerd can read: an encrypted one, or one with an extension of its own.
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
        EROFS_LAYER => (Format::Erofs, Compression::None),
        "application/vnd.erofs.layer.v1+zstd" => (Format::Erofs, Compression::Detected),
        _ => return None,
    })
}

/// Whether a layer of this media type is an EROFS image, also one that cannot be read.
pub fn is_erofs(media_type: &str) -> bool {
    media_type.starts_with(EROFS_LAYER)
}

/// A layer's media type as containerd's erofs differ is told it: 2.1 and 2.2 take an EROFS image
/// for one if its media type ends like this (`plugins/diff/erofs`, `isErofsMediaType`), and since
/// 2.3 by how that begins.
pub fn for_differ(media_type: &str) -> &str {
    match media_type {
        EROFS_LAYER => "application/vnd.erofs.layer.v1.erofs",
        other => other,
    }
}

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
            ("application/vnd.erofs.layer.v1+gzip", None),
            (
                "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
                None,
            ),
        ] {
            assert!(is_layer(media_type), "{media_type}");
            assert_eq!(layer(media_type), read, "{media_type}");
            assert_eq!(is_erofs(media_type), media_type.contains("erofs"));
            // Every differ knows what is no more than copied.
            let told = for_differ(media_type);
            let is_copied = read == Some((Format::Erofs, Compression::None));
            assert_eq!(told.ends_with(".erofs"), is_copied);
            assert_eq!(is_erofs(told), is_erofs(media_type));
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
