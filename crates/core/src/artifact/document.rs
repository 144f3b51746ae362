// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The JSON of an artifact's manifest. Nothing of it is kept but what is read.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::fault::{BundleFault, quoted};
use super::names::{ANNOTATIONS, ArtifactSet};
use crate::digest::shown;
use crate::{Digest, media_type, null_is_default};

/// The media type, digest and size of the config of an artifact, `{}` (image-spec `manifest.md`, "Guidance
/// for an Empty Descriptor").
pub(super) const EMPTY_CONFIG: (&str, &str, u64) = (
    "application/vnd.oci.empty.v1+json",
    "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    2,
);

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: String,
    config: Part,
    #[serde(default)]
    subject: Option<Part>,
    #[serde(rename = "layers", default, deserialize_with = "null_is_default")]
    pub(super) parts: Vec<Part>,
}

/// A descriptor with those annotations that are read.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Part {
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) annotations: Annotations,
}

#[derive(Default)]
pub(super) struct Annotations(Vec<(&'static str, String)>);

impl Document {
    pub(super) fn parse(bytes: &[u8], limit: usize) -> Result<Self, BundleFault> {
        if bytes.len() > limit {
            let size = bytes.len();
            return Err(BundleFault::TooLarge { size, limit });
        }
        let parsed = serde_json::from_slice(bytes);
        parsed.map_err(|error| BundleFault::Malformed(shown(&error.to_string())))
    }

    /// Returns the set of names of an artifact of the image with the manifest `subject`.
    pub(super) fn set(&self, subject: &Digest) -> Result<ArtifactSet, BundleFault> {
        let media_type = self.media_type.as_deref();
        if let Some(other) = media_type.filter(|name| *name != media_type::OCI_MANIFEST) {
            return Err(BundleFault::MediaType(quoted(other)));
        }
        let set = ArtifactSet::of_artifact_type(&self.artifact_type);
        let set = set.ok_or_else(|| BundleFault::ArtifactType(quoted(&self.artifact_type)))?;
        let config = &self.config;
        if (&*config.media_type, &*config.digest, config.size) != EMPTY_CONFIG {
            return Err(BundleFault::Config);
        }
        let of = self.subject.as_ref().ok_or(BundleFault::NoSubject)?;
        if of.digest != subject.as_str() {
            return Err(BundleFault::Subject {
                actual: quoted(&of.digest),
                expected: subject.clone(),
            });
        }
        Ok(set)
    }
}

impl Annotations {
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        let mut known = self.0.iter();
        known.find_map(|(known, value)| (*known == key).then_some(&**value))
    }
}

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Known)
    }
}

/// Keeps the annotations that are read, and drops the others one by one.
struct Known;

impl<'de> Visitor<'de> for Known {
    type Value = Annotations;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("annotations")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Annotations, A::Error> {
        let mut annotations = Annotations::default();
        while let Some(key) = map.next_key::<String>()? {
            let mut known = ANNOTATIONS.into_iter();
            match known.find(|known| *known == key) {
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
                // Parsers differ on which one counts.
                Some(key) if annotations.get(key).is_some() => {
                    return Err(de::Error::custom(format_args!(
                        "the annotation {key} is repeated"
                    )));
                }
                Some(key) => annotations.0.push((key, map.next_value()?)),
            }
        }
        Ok(annotations)
    }
}
