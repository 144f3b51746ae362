// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! As much of gRPC over HTTP/2 as the proxy speaks itself: one message in a body, and answers that
//! are an error.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use prost::Message;
use resnap_core::Kind;

/// What a message is framed by: whether it is compressed, and its length.
pub(crate) const PREFIX_LEN: usize = 5;

/// An error as gRPC tells it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (gRPC code {code})")]
pub(crate) struct Status {
    /// The number of the code.
    pub(crate) code: u16,
    pub(crate) message: String,
}

/// The number of a kind.
pub(crate) fn code(kind: Kind) -> u16 {
    kind.code().into()
}

/// CANCELLED.
pub(crate) const CANCELLED: u16 = 1;
/// UNKNOWN.
pub(crate) const UNKNOWN: u16 = 2;
/// DEADLINE_EXCEEDED.
pub(crate) const DEADLINE_EXCEEDED: u16 = 4;
/// NOT_FOUND.
pub(crate) const NOT_FOUND: u16 = 5;
/// RESOURCE_EXHAUSTED.
pub(crate) const RESOURCE_EXHAUSTED: u16 = 8;
/// FAILED_PRECONDITION.
pub(crate) const FAILED_PRECONDITION: u16 = 9;
/// INTERNAL.
pub(crate) const INTERNAL: u16 = 13;
/// UNAVAILABLE.
pub(crate) const UNAVAILABLE: u16 = 14;

impl Status {
    pub(crate) fn new(code: u16, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// The answer that has headers only.
    pub(crate) fn into_response(self) -> Response<()> {
        let mut response = Response::new(());
        *response.headers_mut() = self.into_trailers();
        let headers = response.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        response
    }

    /// The end of an answer.
    pub(crate) fn into_trailers(self) -> HeaderMap {
        const PLAIN: &AsciiSet = &CONTROLS.add(b'%');
        let message = utf8_percent_encode(&self.message, PLAIN).to_string();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", self.code.into());
        // Percent-encoded, it is always one.
        if let Ok(message) = HeaderValue::from_str(&message) {
            trailers.insert("grpc-message", message);
        }
        trailers
    }

    /// The error in an answer's headers or trailers, if it is one.
    pub(crate) fn in_headers(headers: &HeaderMap) -> Option<Self> {
        let code = code_in(headers)?;
        let message = headers
            .get("grpc-message")
            .map(|text| percent_encoding::percent_decode(text.as_bytes()).decode_utf8_lossy());
        (code != 0).then(|| Self::new(code, message.unwrap_or_default()))
    }
}

/// The code in an answer's headers or trailers; one that is no number is as good as none.
pub(crate) fn code_in(headers: &HeaderMap) -> Option<u16> {
    let code = headers.get("grpc-status")?;
    let code = code.to_str().ok().and_then(|text| text.parse().ok());
    Some(code.unwrap_or(UNKNOWN))
}

/// How long the message is that a body begins with.
pub(crate) fn length(body: &[u8]) -> Option<usize> {
    let length = body.get(1..PREFIX_LEN)?.try_into().ok()?;
    usize::try_from(u32::from_be_bytes(length)).ok()
}

/// The message in a body that has just one, uncompressed.
pub(crate) fn decode<M: Message + Default>(body: &[u8]) -> Option<M> {
    let message = body.get(PREFIX_LEN..)?;
    if body[0] != 0 || length(body)? != message.len() {
        return None;
    }
    M::decode(message).ok()
}

/// A body with this message.
pub(crate) fn encode(message: &impl Message) -> Result<Bytes, Status> {
    let length = message.encoded_len();
    let mut body = BytesMut::with_capacity(PREFIX_LEN + length);
    body.put_u8(0);
    let too_long = |_| Status::new(INTERNAL, "a message of over 4 GiB");
    body.put_u32(u32::try_from(length).map_err(too_long)?);
    let encoded = message.encode(&mut body);
    encoded.map_err(|error| Status::new(INTERNAL, error.to_string()))?;
    Ok(body.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::PodSandboxStatusRequest;

    #[test]
    fn a_message_survives_its_frame() {
        let message = PodSandboxStatusRequest {
            pod_sandbox_id: "a".to_owned(),
            verbose: true,
        };
        let body = encode(&message).unwrap();
        assert_eq!(decode(&body), Some(message));
        assert_eq!(decode::<PodSandboxStatusRequest>(&body[..7]), None);
        let mut compressed = body.to_vec();
        compressed[0] = 1;
        assert_eq!(decode::<PodSandboxStatusRequest>(&compressed), None);
    }

    #[test]
    fn a_status_survives_its_headers() {
        let status = Status::new(UNAVAILABLE, "50 % of \"ü\"\nare there");
        let response = status.clone().into_response();
        assert_eq!(Status::in_headers(response.headers()), Some(status));
    }
}
