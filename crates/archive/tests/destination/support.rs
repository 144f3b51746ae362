// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Blobs and manifests that are published, and the files that are written.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use resnap_core::{ByteStream, Descriptor, Digest, Referrer, media_type};
use serde_json::json;

pub(crate) const BLOB: &[u8] = b"0123456789";

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::sha256(bytes),
        size: bytes.len() as u64,
        annotations: Default::default(),
        platform: None,
    }
}

pub(crate) fn layer(bytes: &[u8]) -> Descriptor {
    descriptor("application/vnd.oci.image.layer.v1.tar", bytes)
}

pub(crate) fn image(name: &str) -> (Descriptor, Bytes) {
    let bytes = Bytes::from(json!({"schemaVersion": 2, "layers": [], "name": name}).to_string());
    (descriptor(media_type::OCI_MANIFEST, &bytes), bytes)
}

pub(crate) fn referrer(name: &str, subject: &Digest) -> (Referrer, Bytes) {
    let manifest = json!({
        "mediaType": media_type::OCI_MANIFEST, "artifactType": "a/1", "name": name,
        "subject": {"mediaType": media_type::OCI_MANIFEST, "digest": subject, "size": 1},
    });
    let bytes = Bytes::from(manifest.to_string());
    let digest = Digest::sha256(&bytes);
    (Referrer::new("a/1", digest, bytes.len() as u64), bytes)
}

pub(crate) fn pieces(bytes: &[u8]) -> ByteStream {
    let pieces: Vec<_> = bytes.chunks(3).map(Bytes::copy_from_slice).collect();
    stream::iter(pieces).map(Ok).boxed()
}

/// Returns the names of all files, sorted.
pub(crate) fn files(directory: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(self::files(&path)),
            false => files.push(path.file_name().unwrap().to_str().unwrap().to_owned()),
        }
    }
    files.sort();
    files
}

pub(crate) const EMPTY: [&str; 2] = ["index.json", "oci-layout"];
