// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Manifests that refer to another one, such as signatures (distribution specification, "Listing
//! Referrers").

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::{Descriptor, Digest, Error, Kind, Result, media_type, null_is_default};

/// A manifest that refers to another one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Referrer {
    /// Its artifact type.
    pub artifact_type: String,
    /// The descriptor of its manifest, without annotations.
    pub descriptor: Descriptor,
}

impl Referrer {
    /// Returns the OCI manifest with this digest and size.
    pub fn new(artifact_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self {
            artifact_type: artifact_type.into(),
            descriptor: Descriptor::new(media_type::OCI_MANIFEST, digest, size),
        }
    }
}

/// The referrers of a manifest that a source lists, in as many documents as it likes, each once.
#[derive(Debug)]
pub struct ReferrerList<'a> {
    subject: &'a Digest,
    artifact_types: &'a [&'a str],
    listed: usize,
    seen: BTreeSet<Digest>,
    found: Vec<Referrer>,
}

/// An index, as far as it is read.
#[derive(Deserialize)]
struct Index {
    #[serde(default, deserialize_with = "null_is_default")]
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    media_type: String,
    // Not a `Digest`: one that is malformed must not hide the other entries.
    digest: String,
    size: u64,
    #[serde(default, deserialize_with = "null_is_default")]
    artifact_type: String,
}

impl<'a> ReferrerList<'a> {
    /// The limit on the bytes of one document.
    pub const MAX_DOCUMENT: usize = 4 << 20;

    /// The limit on the documents of one list.
    pub const MAX_DOCUMENTS: usize = 64;

    /// The limit on the manifests in all documents of a list.
    pub const MAX_LISTED: usize = 4096;

    /// The limit on the referrers in a list.
    pub const MAX_FOUND: usize = 64;

    /// Returns an empty list of the referrers of `subject` that have one of these artifact types.
    pub fn new(subject: &'a Digest, artifact_types: &'a [&'a str]) -> Self {
        Self {
            subject,
            artifact_types,
            listed: 0,
            seen: BTreeSet::new(),
            found: Vec::new(),
        }
    }

    /// Returns the tag of the index that clients keep where a registry does not list referrers (distribution
    /// specification, "Referrers Tag Schema").
    pub fn tag(subject: &Digest) -> String {
        // At most 64 digits, as there are in SHA-256.
        format!("{}-{:.64}", subject.algorithm(), subject.encoded())
    }

    /// Adds the referrers in an index. Entries of other artifact types, and those that are no OCI manifest,
    /// are skipped.
    ///
    /// # Errors
    /// [`Kind::DataLoss`] if it is no index; [`Kind::ResourceExhausted`] past a limit.
    pub fn add_index(&mut self, document: &[u8]) -> Result<()> {
        if document.len() > Self::MAX_DOCUMENT {
            let (size, limit) = (document.len(), Self::MAX_DOCUMENT);
            return Err(self.exhausted(format!("a list of {size} bytes; the limit is {limit}")));
        }
        let index: Index = serde_json::from_slice(document)
            .map_err(|error| self.failed(Kind::DataLoss, format!("not an index: {error}")))?;
        for entry in index.manifests {
            if self.listed == Self::MAX_LISTED {
                let limit = Self::MAX_LISTED;
                return Err(self.exhausted(format!("more than {limit} referrers are listed")));
            }
            self.listed += 1;
            let digest = entry.digest.parse().ok();
            let digest = digest.filter(|_| entry.media_type == media_type::OCI_MANIFEST);
            if let Some(digest) = digest {
                self.add(Referrer::new(entry.artifact_type, digest, entry.size))?;
            }
        }
        Ok(())
    }

    /// Adds a referrer if it has one of the artifact types and is not in the list yet. A manifest does not
    /// refer to itself.
    ///
    /// # Errors
    /// [`Kind::ResourceExhausted`] past the limit.
    pub fn add(&mut self, referrer: Referrer) -> Result<()> {
        let digest = &referrer.descriptor.digest;
        let is_wanted = self.artifact_types.contains(&&*referrer.artifact_type);
        if !is_wanted || digest == self.subject || !self.seen.insert(digest.clone()) {
            return Ok(());
        }
        if self.found.len() == Self::MAX_FOUND {
            let limit = Self::MAX_FOUND;
            return Err(self.exhausted(format!("more than {limit} referrers of the same types")));
        }
        self.found.push(referrer);
        Ok(())
    }

    /// Returns the referrers in the order in which they were listed.
    pub fn into_found(self) -> Vec<Referrer> {
        self.found
    }

    fn exhausted(&self, reason: String) -> Error {
        self.failed(Kind::ResourceExhausted, reason)
    }

    fn failed(&self, kind: Kind, reason: String) -> Error {
        Error::new(kind, "list the referrers of", self.subject.as_str()).with_source(reason)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::error_chain;

    fn entry(name: &str, artifact_type: &str) -> Value {
        json!({
            "mediaType": media_type::OCI_MANIFEST,
            "digest": Digest::sha256(name.as_bytes()).as_str(),
            "size": 7,
            "artifactType": artifact_type,
            "annotations": {"containerd.io/snapshot/x": "y"},
            "urls": ["http://127.0.0.1/"],
        })
    }

    fn index(entries: &[Value]) -> Vec<u8> {
        json!({"schemaVersion": 2, "manifests": entries})
            .to_string()
            .into_bytes()
    }

    #[test]
    fn only_other_manifests_of_the_types_are_listed_once() {
        let subject = Digest::sha256(b"image");
        let mut list = ReferrerList::new(&subject, &["a/1", "b/1"]);
        let mut index_entry = entry("index", "a/1");
        index_entry["mediaType"] = media_type::OCI_INDEX.into();
        let mut malformed = entry("malformed", "a/1");
        malformed["digest"] = "sha256:../../etc".into();
        let mut untyped = entry("untyped", "");
        untyped["artifactType"] = Value::Null;
        list.add_index(&index(&[
            entry("one", "a/1"),
            entry("other", "c/1"),
            entry("image", "a/1"),
            index_entry,
            malformed,
            untyped,
        ]))
        .unwrap();
        list.add_index(br#"{"manifests":null}"#).unwrap();
        list.add_index(&index(&[entry("one", "a/1"), entry("two", "b/1")]))
            .unwrap();
        let expected = [("one", "a/1"), ("two", "b/1")]
            .map(|(name, kind)| Referrer::new(kind, Digest::sha256(name.as_bytes()), 7));
        assert_eq!(list.into_found(), expected);
    }

    #[test]
    fn tags_are_those_of_the_specification() {
        let digits = "0123456789abcdef".repeat(8);
        for (algorithm, length) in [("sha256", 64), ("sha512", 128)] {
            let digest = format!("{algorithm}:{}", &digits[..length]);
            let tag = format!("{algorithm}-{}", &digits[..64]);
            assert_eq!(ReferrerList::tag(&digest.parse().unwrap()), tag);
        }
    }

    #[test]
    fn lists_are_bounded() {
        let subject = Digest::sha256(b"image");
        let names: Vec<_> = (0..ReferrerList::MAX_LISTED)
            .map(|n| n.to_string())
            .collect();
        let of = |kind, count| {
            index(
                &names
                    .iter()
                    .map(|name| entry(name, kind))
                    .take(count)
                    .collect::<Vec<_>>(),
            )
        };
        let mut list = ReferrerList::new(&subject, &["a/1"]);
        list.add_index(&of("b/1", ReferrerList::MAX_LISTED))
            .unwrap();
        for (mut list, document, kind, reason) in [
            (
                list,
                of("b/1", 1),
                Kind::ResourceExhausted,
                "more than 4096 referrers are listed",
            ),
            (
                ReferrerList::new(&subject, &["a/1"]),
                of("a/1", 65),
                Kind::ResourceExhausted,
                "more than 64 referrers of the same types",
            ),
            (
                ReferrerList::new(&subject, &["a/1"]),
                vec![b' '; ReferrerList::MAX_DOCUMENT + 1],
                Kind::ResourceExhausted,
                "a list of 4194305 bytes",
            ),
            (
                ReferrerList::new(&subject, &["a/1"]),
                b"<html>".to_vec(),
                Kind::DataLoss,
                "not an index: expected value",
            ),
        ] {
            let error = list.add_index(&document).unwrap_err();
            assert_eq!(error.kind(), kind);
            let text = error_chain(&error);
            assert!(
                text.starts_with(&format!("list the referrers of {subject}: {reason}")),
                "{text}"
            );
        }
    }
}
