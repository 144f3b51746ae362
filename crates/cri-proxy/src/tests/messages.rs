// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Requests, encoded by hand so that they can have any length.

use bytes::Bytes;
use prost::encoding::{WireType, encode_key, encode_varint};

/// Encodes a request for a container in the pod of this name, of about this many bytes.
pub(super) fn container(sandbox: &str, length: usize) -> Bytes {
    let mut image = Vec::new();
    field(1, b"some:1", &mut image);
    let mut config = Vec::new();
    field(2, &image, &mut config);
    let mut message = Vec::new();
    field(1, sandbox.as_bytes(), &mut message);
    field(2, &config, &mut message);
    field(9, &vec![7; length], &mut message);
    framed(&message)
}

/// Encodes a request for a pod with this handler, of about this many bytes.
pub(super) fn pod(handler: &str, length: usize) -> Bytes {
    let mut config = Vec::new();
    field(9, &vec![7; length], &mut config);
    let mut message = Vec::new();
    field(1, &config, &mut message);
    field(2, handler.as_bytes(), &mut message);
    framed(&message)
}

fn field(tag: u32, bytes: &[u8], message: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, message);
    encode_varint(bytes.len() as u64, message);
    message.extend_from_slice(bytes);
}

fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap();
    [&[0], &length.to_be_bytes()[..], message].concat().into()
}
