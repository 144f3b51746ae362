// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers of the EROFS image format (erofs-image-spec, a draft), and which of them are supported.
//!
//! The role of a layer in the image is an annotation of its descriptor:
//!
//! | media type | role | taken |
//! |---|---|---|
//! | `application/vnd.erofs`, `+zstd` | none, `overlay-lower` | as a layer that is an EROFS image |
//! | any | `device` | no: blocks of another layer, which is mounted with it |
//! | `application/vnd.erofs`, `+zstd` | `overlay-data` | no: data of another layer's files |
//! | `application/vnd.erofs.chunk-index.v1` | | no: an index of another layer, and none of its own |
//! | any other of these | any other | no |
//!
//! A config may have no diff IDs. Each layer then has its own in an annotation.

use std::collections::BTreeMap;

use crate::media_type::{self, EROFS_CHUNK_INDEX, EROFS_IMAGE, Format};
use crate::{Descriptor, DiffId, Digest};

/// The annotation with the role of a layer.
const ROLE: &str = "org.erofs.role";

/// The annotation with the digest of a layer's uncompressed bytes, its diff ID.
const UNCOMPRESSED_DIGEST: &str = "org.erofs.uncompressed-digest";

/// The annotations of the dm-verity tree behind the image of a layer: the offset of its superblock, and its root
/// hash.
const TREE_OFFSET: &str = "org.erofs.dmverity.hash_offset";
const TREE_ROOT: &str = "org.erofs.dmverity.root_digest";

/// The annotation with the size of the tree's blocks in bytes, which is in the superblock, too.
const TREE_BLOCK: &str = "org.erofs.dmverity.block_size";

/// The dm-verity tree that a layer brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnTree {
    /// The offset of its superblock in bytes.
    pub hash_offset: u64,
    /// Its root hash in hexadecimal digits, unchecked.
    pub root_hash: String,
}

/// Returns whether a layer is an EROFS image, of this format or of another one.
pub fn is_image(layer: &Descriptor) -> bool {
    matches!(
        media_type::layer(&layer.media_type),
        Some((Format::Erofs, _))
    )
}

/// Returns the dm-verity tree that a layer brings behind its image, or `None` if it brings none.
///
/// # Errors
/// The annotations are malformed, or one of them is missing.
pub fn own_tree(layer: &Descriptor) -> Result<Option<OwnTree>, String> {
    let get = |key: &str| layer.annotations.get(key);
    let (offset, root) = match (get(TREE_OFFSET), get(TREE_ROOT)) {
        (None, None) => return Ok(None),
        (Some(offset), Some(root)) => (offset, root),
        (None, Some(_)) => return Err(format!("it has no {TREE_OFFSET}")),
        (Some(_), None) => return Err(format!("it has no {TREE_ROOT}")),
    };
    let malformed = |_| format!("its {TREE_OFFSET} {offset:?} is no number");
    Ok(Some(OwnTree {
        hash_offset: offset.parse().map_err(malformed)?,
        root_hash: root.strip_prefix("sha256:").unwrap_or(root).to_owned(),
    }))
}

/// Returns the annotations of a layer that brings a dm-verity tree with blocks of `block` bytes.
pub fn tree_annotations(tree: &OwnTree, block: u64) -> BTreeMap<String, String> {
    let root = format!("sha256:{}", tree.root_hash);
    BTreeMap::from([
        (TREE_OFFSET.to_owned(), tree.hash_offset.to_string()),
        (TREE_ROOT.to_owned(), root),
        (TREE_BLOCK.to_owned(), block.to_string()),
    ])
}

/// Returns the annotation of a layer of the EROFS image format with this diff ID.
pub fn diff_id_annotation(diff_id: &DiffId) -> (String, String) {
    (UNCOMPRESSED_DIGEST.to_owned(), diff_id.0.to_string())
}

/// Returns whether a layer of this media type is of the EROFS image format. Roles are defined for images
/// that have such a layer.
pub fn is_of_format(media_type: &str) -> bool {
    matches!(
        media_type::without_suffixes(media_type),
        EROFS_IMAGE | EROFS_CHUNK_INDEX
    )
}

/// Returns the reason why a layer of an image of this format is not supported, or `None` if it is.
pub fn not_taken(layer: &Descriptor) -> Option<String> {
    let media_type = &layer.media_type;
    if media_type == EROFS_CHUNK_INDEX {
        return Some(format!("layers of type {media_type:?} are not supported"));
    }
    let role = layer.annotations.get(ROLE)?;
    match &**role {
        "overlay-lower" if is_of_format(media_type) => None,
        _ => Some(format!(
            "layers of type {media_type:?} in the role {role:?} ({ROLE}) are not supported"
        )),
    }
}

/// Returns the diff ID in the annotations of a layer of this format, or `None` if it has none.
///
/// # Errors
/// The annotation is not a digest.
pub fn diff_id(layer: &Descriptor) -> Result<Option<DiffId>, String> {
    if !is_of_format(&layer.media_type) {
        return Ok(None);
    }
    match layer.annotations.get(UNCOMPRESSED_DIGEST) {
        Some(digest) => match digest.parse::<Digest>() {
            Ok(digest) => Ok(Some(DiffId(digest))),
            Err(_) => Err(format!("its {UNCOMPRESSED_DIGEST} {digest:?} is no digest")),
        },
        // Optional for an uncompressed layer.
        None if layer.media_type == EROFS_IMAGE => Ok(Some(DiffId(layer.digest.clone()))),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_annotations_are_read() {
        let tree = OwnTree {
            hash_offset: 8192,
            root_hash: "a".repeat(64),
        };
        let mut written = layer(EROFS_IMAGE, &[]);
        written.annotations = tree_annotations(&tree, 4096);
        let diff = DiffId(Digest::sha256(b"image"));
        written.annotations.extend([diff_id_annotation(&diff)]);
        assert_eq!(own_tree(&written), Ok(Some(tree)));
        assert_eq!(diff_id(&written), Ok(Some(diff)));
    }

    fn layer(media_type: &str, annotations: &[(&str, &str)]) -> Descriptor {
        let annotations = annotations.iter();
        Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::sha256(b"blob"),
            size: 1,
            annotations: annotations
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            platform: None,
        }
    }

    #[test]
    fn the_table_holds() {
        let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
        for (media_type, role, taken) in [
            ("application/vnd.erofs", None, true),
            ("application/vnd.erofs+zstd", None, true),
            ("application/vnd.erofs", Some("overlay-lower"), true),
            ("application/vnd.erofs+zstd", Some("overlay-lower"), true),
            ("application/vnd.erofs", Some("overlay-data"), false),
            ("application/vnd.erofs", Some("device"), false),
            ("application/vnd.erofs", Some("overlay-upper"), false),
            ("application/vnd.erofs.chunk-index.v1", None, false),
            (tar, None, true),
            (tar, Some("device"), false),
            (tar, Some("overlay-lower"), false),
        ] {
            let annotations: Vec<_> = role.iter().map(|role| (ROLE, *role)).collect();
            let why = not_taken(&layer(media_type, &annotations));
            assert_eq!(why.is_none(), taken, "{media_type} {role:?}: {why:?}");
            // The reason names the role or the media type.
            assert!(why.is_none_or(|why| why.contains(role.unwrap_or(media_type))));
        }
    }

    #[test]
    fn layers_say_their_trees() {
        let tree =
            |annotations: &[(&str, &str)]| own_tree(&layer("application/vnd.erofs", annotations));
        let root = "ab".repeat(32);
        let found = OwnTree {
            hash_offset: 8192,
            root_hash: root.clone(),
        };
        let with_algorithm = format!("sha256:{root}");
        for text in [&root, &with_algorithm] {
            let annotations = [(TREE_OFFSET, "8192"), (TREE_ROOT, text)];
            assert_eq!(tree(&annotations), Ok(Some(found.clone())));
        }
        assert_eq!(tree(&[]), Ok(None));
        assert!(
            tree(&[(TREE_OFFSET, "8192")])
                .unwrap_err()
                .contains(TREE_ROOT)
        );
        assert!(
            tree(&[(TREE_ROOT, &root)])
                .unwrap_err()
                .contains(TREE_OFFSET)
        );
        let malformed = tree(&[(TREE_OFFSET, "-1"), (TREE_ROOT, &root)]);
        assert!(malformed.unwrap_err().contains("\"-1\""));
    }

    #[test]
    fn layers_say_their_diff_ids() {
        let (raw, zstd) = ("application/vnd.erofs", "application/vnd.erofs+zstd");
        let other = Digest::sha256(b"uncompressed");
        let says = [(UNCOMPRESSED_DIGEST, other.as_str())];
        let blob = Digest::sha256(b"blob");
        for (media_type, annotations, digest) in [
            (raw, &[][..], Some(&blob)),
            (raw, &says, Some(&other)),
            (zstd, &says, Some(&other)),
            (zstd, &[], None),
            ("application/vnd.erofs.layer.v1", &says, None),
        ] {
            let found = diff_id(&layer(media_type, annotations)).unwrap();
            assert_eq!(found.as_ref().map(|id| &id.0), digest, "{media_type}");
        }
        let error = diff_id(&layer(raw, &[(UNCOMPRESSED_DIGEST, "sha256:x")])).unwrap_err();
        assert_eq!(
            error,
            "its org.erofs.uncompressed-digest \"sha256:x\" is no digest"
        );
    }
}
