// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Changes to indexes that others write, too.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    Descriptor, Digest, Error, Kind, Referrer, ReferrerList, Result, media_type, null_is_default,
};

/// The annotation with the tag of an entry of a layout's index (image-spec `annotations.md`).
const TAG: &str = "org.opencontainers.image.ref.name";

/// An image index that is changed: that of a layout, or of the referrers of a manifest. It is deserialized from
/// what is there. Fields and entries that resnap does not know stay as they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IndexDocument {
    #[serde(default, deserialize_with = "null_is_default")]
    manifests: Vec<Value>,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

impl IndexDocument {
    /// Returns an index without entries.
    pub fn empty() -> Self {
        let fields = [
            ("schemaVersion".to_owned(), json!(2)),
            ("mediaType".to_owned(), json!(media_type::OCI_INDEX)),
        ];
        Self {
            manifests: Vec::new(),
            fields: fields.into_iter().collect(),
        }
    }

    /// Returns the document. The same changes give the same bytes.
    ///
    /// # Errors
    /// [`Kind::ResourceExhausted`] if it has more than what [`ReferrerList`] accepts.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let failed = |kind| Error::new(kind, "write", "an index");
        let bytes =
            serde_json::to_vec(self).map_err(|error| failed(Kind::Internal).with_source(error))?;
        let (size, limit) = (bytes.len(), ReferrerList::MAX_DOCUMENT);
        let (count, most) = (self.manifests.len(), ReferrerList::MAX_LISTED);
        if size > limit || count > most {
            let text = format!(
                "it would have {count} entries and {size} bytes, and readers accept {most} and {limit}; \
                 remove some first"
            );
            return Err(failed(Kind::ResourceExhausted).with_source(text));
        }
        Ok(bytes)
    }

    /// Makes a tag lead to a manifest or index alone. Returns whether that is a change.
    pub fn tag(&mut self, target: &Descriptor, tag: &str) -> bool {
        let is_tagged = |entry: &Value| entry["annotations"][TAG] == tag;
        let mut tagged = self.manifests.iter().filter(|entry| is_tagged(entry));
        if tagged.next().is_some_and(|entry| is(entry, &target.digest)) && tagged.next().is_none() {
            return false;
        }
        let mut entry = json!({
            "mediaType": target.media_type,
            "digest": target.digest,
            "size": target.size,
            "annotations": {TAG: tag},
        });
        if let Some(platform) = &target.platform {
            entry["platform"] = json!(platform);
        }
        let place = self.manifests.iter().position(is_tagged);
        self.manifests.retain(|entry| !is_tagged(entry));
        let place = place.unwrap_or(self.manifests.len());
        self.manifests.insert(place, entry);
        true
    }

    /// Adds a manifest that refers to another one, or the artifact type to its entry. Returns whether that is a
    /// change.
    pub fn add(&mut self, referrer: &Referrer) -> bool {
        let target = &referrer.descriptor;
        let mut entries = self.manifests.iter_mut();
        if let Some(entry) = entries.find(|entry| is(entry, &target.digest)) {
            let artifact_type = json!(referrer.artifact_type);
            let is_change = entry["artifactType"] != artifact_type;
            entry["artifactType"] = artifact_type;
            return is_change;
        }
        self.manifests.push(json!({
            "mediaType": target.media_type,
            "digest": target.digest,
            "size": target.size,
            "artifactType": referrer.artifact_type,
        }));
        true
    }

    /// Removes all entries of a digest. Returns whether that is a change.
    pub fn remove(&mut self, digest: &Digest) -> bool {
        let count = self.manifests.len();
        self.manifests.retain(|entry| !is(entry, digest));
        self.manifests.len() < count
    }
}

fn is(entry: &Value, digest: &Digest) -> bool {
    entry["digest"] == digest.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_stays() {
        let other = json!({"digest": 1, "size": -1e300, "x": [null, {"y": "z"}]});
        let referrer = Referrer::new("a/1", Digest::sha256(b"a"), 7);
        let digest = &referrer.descriptor.digest;
        let document = json!({"manifests": [other], "later": {"k": [1]}, "schemaVersion": 3});
        let mut index: IndexDocument = serde_json::from_value(document.clone()).unwrap();
        assert!(index.add(&referrer));
        assert!(!index.add(&referrer));
        assert!(index.tag(&referrer.descriptor, "1"));
        assert!(!index.tag(&referrer.descriptor, "1"));
        let mut expected = document.clone();
        let entry = |field: &str, value: Value| {
            let mut entry =
                json!({"mediaType": media_type::OCI_MANIFEST, "digest": digest, "size": 7});
            entry[field] = value;
            entry
        };
        expected["manifests"] = json!([
            other,
            entry("artifactType", json!("a/1")),
            entry("annotations", json!({TAG: "1"})),
        ]);
        let bytes = index.to_bytes().unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), expected);
        assert!(index.remove(digest));
        assert!(!index.remove(digest));
        assert_eq!(serde_json::to_value(&index).unwrap(), document);
    }

    #[test]
    fn an_entry_gets_the_artifact_type_that_it_lacks() {
        let referrer = Referrer::new("a/1", Digest::sha256(b"a"), 7);
        let digest = &referrer.descriptor.digest;
        let index = json!({"manifests": [{"digest": digest, "k": "v"}]});
        let mut index: IndexDocument = serde_json::from_value(index).unwrap();
        assert!(index.add(&referrer));
        assert!(!index.add(&referrer));
        let expected = json!({"manifests": [{"digest": digest, "k": "v", "artifactType": "a/1"}]});
        assert_eq!(serde_json::to_value(&index).unwrap(), expected);
    }

    #[test]
    fn indexes_are_as_large_as_readers_accept() {
        let mut index = IndexDocument::empty();
        index.manifests = vec![Value::Null; ReferrerList::MAX_LISTED];
        index.to_bytes().unwrap();
        index.manifests.push(Value::Null);
        assert_eq!(
            index.to_bytes().unwrap_err().kind(),
            Kind::ResourceExhausted
        );
        for text in ["[]", r#"{"manifests": {}}"#, "<html>"] {
            assert!(
                serde_json::from_str::<IndexDocument>(text).is_err(),
                "{text}"
            );
        }
    }
}
