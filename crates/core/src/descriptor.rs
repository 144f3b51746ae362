// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! OCI descriptors (image-spec `descriptor.md`), read as tolerantly as containerd reads them.

use std::collections::BTreeMap;

use resnap_platforms::Platform;
use serde::{Deserialize, Deserializer, Serialize};

use crate::Digest;

/// A reference to a blob: its media type, digest and size, with annotations and, in an index, the
/// platform. Fields that resnap does not use are dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The media type; empty if the image has none (old Docker images).
    #[serde(default, deserialize_with = "null_is_default")]
    pub media_type: String,
    /// The digest of the blob as stored.
    pub digest: Digest,
    /// The blob's size in bytes.
    #[serde(default)]
    pub size: u64,
    /// Annotations. Go writes an absent map as `null`.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
    /// The platform of an entry of an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// Returns a descriptor with neither annotations nor a platform.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            annotations: BTreeMap::new(),
            platform: None,
        }
    }
}

/// Deserializes `null` as the default: Go writes an absent list or map as `null`.
///
/// Not part of the public API; the other crates that read documents use it.
///
/// # Errors
/// Those of the value.
#[doc(hidden)]
pub fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_unknown_fields_are_tolerated() {
        let json = format!(
            r#"{{"mediaType":null,"digest":"sha256:{}","size":3,"annotations":null,"urls":["x"]}}"#,
            "a".repeat(64)
        );
        let descriptor: Descriptor = serde_json::from_str(&json).unwrap();
        assert_eq!(descriptor.size, 3);
        assert!(descriptor.media_type.is_empty() && descriptor.platform.is_none());
    }

    #[test]
    fn a_bad_digest_and_a_negative_size_are_refused() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (digest, size, reason) in [
            ("sha256:../../etc/passwd", 3, "is not a digest"),
            (&digest, -1, "invalid value: integer `-1`, expected u64"),
        ] {
            let json = format!(r#"{{"digest":"{digest}","size":{size}}}"#);
            let error = serde_json::from_str::<Descriptor>(&json).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
    }
}
