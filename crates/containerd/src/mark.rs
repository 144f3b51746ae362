// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The mark of calls of containerd's differ that resnap makes: an annotation of the layer's descriptor.
//!
//! containerd hands a layer to its differs in order, and the first may be a process of resnap
//! ([`crate::DiffServer`]). What that process does not write, it hands to containerd's differ, which would
//! ask it again. containerd keeps annotations, so that a process knows its own calls.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::OnceLock;

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, string};

/// The start of the annotation's key. Those of several processes add up.
const PREFIX: &str = "resnap.io/diff-call.";

/// Returns the annotation's key: random, so that no image can have it.
pub(crate) fn mark() -> &'static str {
    static KEY: OnceLock<String> = OnceLock::new();
    let random = || RandomState::new().build_hasher().finish();
    KEY.get_or_init(|| format!("{PREFIX}{:016x}{:016x}", random(), random()))
}

/// Returns whether an annotation is the mark of any process.
pub(crate) fn is_mark(key: &str) -> bool {
    key.starts_with(PREFIX)
}

/// Adds the mark to an encoded `ApplyRequest`: another `diff` (1) with an annotation (5). The parts of a
/// message that comes twice are merged, and of a map's entries with one key the last counts.
pub(crate) fn with_mark(request: &Bytes) -> Bytes {
    let mut entry = BytesMut::new();
    string::encode(1, &mark().to_owned(), &mut entry);
    let mut descriptor = BytesMut::new();
    put_message(5, &entry, &mut descriptor);
    let mut marked = BytesMut::from(&request[..]);
    put_message(1, &descriptor, &mut marked);
    marked.freeze()
}

fn put_message(tag: u32, message: &[u8], to: &mut BytesMut) {
    let length = message.len() as u64;
    to.reserve(encoded_len_varint(length) + message.len() + 1);
    encode_key(tag, WireType::LengthDelimited, to);
    encode_varint(length, to);
    to.put_slice(message);
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use containerd_client::services::v1::ApplyRequest;
    use containerd_client::types::Descriptor;
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_marked_request_is_the_same_otherwise() {
        let foreign = (format!("{PREFIX}0"), String::new());
        for annotations in [
            HashMap::new(),
            HashMap::from([foreign, ("a".to_owned(), "b".to_owned())]),
        ] {
            let mut request = ApplyRequest {
                diff: Some(Descriptor {
                    media_type: "type".to_owned(),
                    digest: "sha256:0".to_owned(),
                    size: 7,
                    annotations,
                }),
                sync_fs: true,
                ..ApplyRequest::default()
            };
            request
                .payloads
                .insert("key".to_owned(), Default::default());
            let marked = with_mark(&request.encode_to_vec().into());
            let marked = ApplyRequest::decode(marked).unwrap();
            let diff = request.diff.as_mut().unwrap();
            diff.annotations.insert(mark().to_owned(), String::new());
            assert_eq!(marked, request);
        }
        assert_eq!(mark().len(), PREFIX.len() + 32);
    }
}
