// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The formats of native EROFS layers.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use resnap_core::erofs_layer::{self, OwnTree};
use resnap_core::{DiffId, media_type};

use crate::tree::Tree;

/// A format of native EROFS layers, by its media type: `vnd.erofs.layer.v1`, or `vnd.erofs` of the draft of the
/// EROFS image specification; with `+zstd` if they are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerFormat {
    is_of_draft: bool,
    is_compressed: bool,
}

/// The error for a text that names no format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no format of layers: want vnd.erofs.layer.v1 or vnd.erofs, or one of them with +zstd"
)]
pub struct UnknownFormat(String);

impl LayerFormat {
    /// The suffix of compressed layers.
    const COMPRESSED: &str = "+zstd";

    /// Returns whether the layers are compressed.
    pub fn is_compressed(self) -> bool {
        self.is_compressed
    }

    /// Returns the oldest containerd (major and minor version) that reads the layers. Older ones take the bytes of
    /// compressed layers for the image. `None` if no release of containerd reads them.
    pub fn oldest_containerd(self) -> Option<(u32, u32)> {
        match (self.is_of_draft, self.is_compressed) {
            (true, _) => None,
            (false, true) => Some((2, 3)),
            (false, false) => Some((2, 1)),
        }
    }

    pub(crate) fn media_type(self) -> String {
        format!("application/{self}")
    }

    /// Returns the annotations of a layer with this diff ID, and with this tree if it brings one.
    pub(crate) fn annotations(
        self,
        diff_id: &DiffId,
        tree: Option<&Tree>,
    ) -> BTreeMap<String, String> {
        let mut annotations = tree.map_or_else(BTreeMap::new, |tree| {
            let own = OwnTree {
                hash_offset: tree.appended.hash_offset,
                root_hash: tree.appended.root_hash.to_string(),
            };
            erofs_layer::tree_annotations(&own, tree.block.bytes())
        });
        if self.is_of_draft {
            annotations.extend([erofs_layer::diff_id_annotation(diff_id)]);
        }
        annotations
    }
}

impl fmt::Display for LayerFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let media_type = match self.is_of_draft {
            true => media_type::EROFS_IMAGE,
            false => media_type::EROFS_LAYER,
        };
        let name = media_type.rsplit('/').next().unwrap_or(media_type);
        let suffix = if self.is_compressed {
            Self::COMPRESSED
        } else {
            ""
        };
        write!(f, "{name}{suffix}")
    }
}

impl FromStr for LayerFormat {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        let all = [false, true].into_iter().flat_map(|is_of_draft| {
            [false, true].map(|is_compressed| Self {
                is_of_draft,
                is_compressed,
            })
        });
        let mut found = all.filter(|format| format.to_string() == text);
        found.next().ok_or_else(|| UnknownFormat(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_have_the_names_of_their_media_types() {
        for (text, oldest) in [
            ("vnd.erofs.layer.v1", Some((2, 1))),
            ("vnd.erofs.layer.v1+zstd", Some((2, 3))),
            ("vnd.erofs", None),
            ("vnd.erofs+zstd", None),
        ] {
            let format: LayerFormat = text.parse().unwrap();
            assert_eq!(format.media_type(), format!("application/{text}"));
            assert_eq!(format.oldest_containerd(), oldest);
        }
        assert!("vnd.erofs.layer.v1+gzip".parse::<LayerFormat>().is_err());
        assert_eq!(LayerFormat::default().to_string(), "vnd.erofs.layer.v1");
    }
}
