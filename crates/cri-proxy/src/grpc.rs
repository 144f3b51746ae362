// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The part of gRPC over HTTP/2 that the proxy itself speaks: bodies of one message, and error
//! responses.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use prost::Message;
use resnap_core::Kind;

/// The length of the prefix of a message: a compression flag, and the length of the message.
pub(crate) const PREFIX_LEN: usize = 5;

/// The end of a call: success, or the kind of its error.
pub(crate) type Outcome = Result<(), Kind>;

/// A gRPC error: a code and a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (gRPC code {})", kind.code())]
pub(crate) struct Status {
    pub(crate) kind: Kind,
    pub(crate) message: String,
}

impl Status {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// Returns a response that consists of headers only.
    pub(crate) fn into_response(self) -> Response<()> {
        let mut response = response_head();
        response.headers_mut().extend(self.into_trailers());
        response
    }

    /// Returns the trailers that end a response with this error.
    pub(crate) fn into_trailers(self) -> HeaderMap {
        const PLAIN: &AsciiSet = &CONTROLS.add(b'%');
        let message = utf8_percent_encode(&self.message, PLAIN).to_string();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", u16::from(self.kind.code()).into());
        // Percent-encoded text is always a valid header value.
        if let Ok(message) = HeaderValue::from_str(&message) {
            trailers.insert("grpc-message", message);
        }
        trailers
    }

    /// Reads the error from the headers or trailers of a response; `None` if there is no error.
    pub(crate) fn in_headers(headers: &HeaderMap) -> Option<Self> {
        let kind = outcome_in(headers)?.err()?;
        let message = headers
            .get("grpc-message")
            .map(|text| percent_encoding::percent_decode(text.as_bytes()).decode_utf8_lossy());
        Some(Self::new(kind, message.unwrap_or_default()))
    }
}

/// Reads how the call ended from the headers or trailers of a response; `None` if they do not say.
/// A status that gRPC does not have counts as [`Kind::Unknown`].
pub(crate) fn outcome_in(headers: &HeaderMap) -> Option<Outcome> {
    let code = headers.get("grpc-status")?;
    let code = code.to_str().ok().and_then(|text| text.parse().ok());
    Some(match code {
        Some(0) => Ok(()),
        code => Err(code.and_then(Kind::of_code).unwrap_or(Kind::Unknown)),
    })
}

/// Returns the length of the first message in a body, as its prefix states it.
pub(crate) fn length(body: &[u8]) -> Option<usize> {
    let length = body.get(1..PREFIX_LEN)?.try_into().ok()?;
    usize::try_from(u32::from_be_bytes(length)).ok()
}

/// Decodes a body that consists of one uncompressed message.
pub(crate) fn decode<M: Message + Default>(body: &[u8]) -> Option<M> {
    let message = body.get(PREFIX_LEN..)?;
    if body[0] != 0 || length(body)? != message.len() {
        return None;
    }
    M::decode(message).ok()
}

/// Appends encoded fields to a body of one message, which is not copied. Returns `None` for a body that
/// does not have that form, and for one that would be too long.
pub(crate) fn append(body: &Bytes, fields: Vec<u8>) -> Option<Vec<Bytes>> {
    let length = length(body)?;
    if body.len() != PREFIX_LEN + length {
        return None;
    }
    let length = u32::try_from(length.checked_add(fields.len())?).ok()?;
    let prefix = [&[0][..], &length.to_be_bytes()].concat();
    Some(vec![prefix.into(), body.slice(PREFIX_LEN..), fields.into()])
}

/// Returns the headers of a response with a body.
pub(crate) fn response_head() -> Response<()> {
    let mut response = Response::new(());
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

/// Returns the trailers that end a response without an error.
pub(crate) fn ok_trailers() -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from(0))])
}

/// Encodes a body that consists of this message.
pub(crate) fn encode(message: &impl Message) -> Result<Bytes, Status> {
    let length = message.encoded_len();
    let mut body = BytesMut::with_capacity(PREFIX_LEN + length);
    body.put_u8(0);
    let too_long = |_| Status::new(Kind::Internal, "message is larger than 4 GiB");
    body.put_u32(u32::try_from(length).map_err(too_long)?);
    let encoded = message.encode(&mut body);
    encoded.map_err(|error| Status::new(Kind::Internal, error.to_string()))?;
    Ok(body.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{ClientImageSpec, ClientPullRequest, PodSandboxStatusRequest};

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
    fn appended_fields_merge_and_nothing_else_changes() {
        let spec = |image: &str, handler: &str| ClientImageSpec {
            image: image.to_owned(),
            annotations: [("a".to_owned(), "b".to_owned())].into(),
            runtime_handler: handler.to_owned(),
        };
        let request = |image| ClientPullRequest {
            image: Some(image),
            ..ClientPullRequest::default()
        };
        let whole = encode(&request(spec("web:1", ""))).unwrap();
        let unknown = [whole.as_ref(), b"\xfa\x7f\x01x"].concat();
        let mut unknown = BytesMut::from(&unknown[..]);
        let length = u32::try_from(unknown.len() - PREFIX_LEN).unwrap();
        unknown[1..PREFIX_LEN].copy_from_slice(&length.to_be_bytes());
        let unknown = unknown.freeze();
        let handler = ClientImageSpec {
            runtime_handler: "kata".to_owned(),
            ..ClientImageSpec::default()
        };
        for body in [whole, unknown] {
            let appended = append(&body, request(handler.clone()).encode_to_vec()).unwrap();
            let all = appended.concat();
            let decoded: ClientPullRequest = decode(&all).unwrap();
            assert_eq!(decoded, request(spec("web:1", "kata")));
            assert!(all[PREFIX_LEN..].starts_with(&body[PREFIX_LEN..]));
            assert_eq!(append(&body.slice(..body.len() - 1), Vec::new()), None);
        }
        assert_eq!(append(&Bytes::from_static(b"\0\0"), Vec::new()), None);
    }

    #[test]
    fn a_status_survives_its_headers() {
        let status = Status::new(Kind::Unavailable, "50 % of \"ü\"\nare there");
        let response = status.clone().into_response();
        assert_eq!(Status::in_headers(response.headers()), Some(status));
    }
}
