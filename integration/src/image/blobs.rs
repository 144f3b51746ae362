// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The blobs of an image.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::layer::digest;

/// The blobs of an image by digest.
#[derive(Debug, Default)]
pub(super) struct Blobs(pub(super) BTreeMap<String, Arc<Vec<u8>>>);

impl Blobs {
    /// Stores a JSON document and gives its descriptor.
    pub(super) fn json(&mut self, media_type: &str, value: &Value) -> Value {
        let bytes = value.to_string().into_bytes();
        let descriptor =
            json!({ "mediaType": media_type, "digest": digest(&bytes), "size": bytes.len() });
        self.0.insert(digest(&bytes), Arc::new(bytes));
        descriptor
    }
}
