// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The headers, data and ends of one call, as on the wire.

use bytes::BytesMut;
use h2::Reason;
use tonic::codegen::http::HeaderMap;

/// Both directions of a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exchange {
    /// The client's side.
    pub request: Half,
    /// The answer to the client.
    pub reply: Half,
}

/// One direction of a call so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Half {
    /// Method and target of a request, status of a reply: what pseudo-headers say.
    pub start: String,
    /// As they came; names of several values have them in their order.
    pub headers: HeaderMap,
    /// The frames of data, joined.
    pub body: BytesMut,
    /// Empty also where there are none.
    pub trailers: HeaderMap,
    /// The end; `None` if it is still open.
    pub end: Option<End>,
}

/// The end of one direction of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With the headers: nothing else came, as when gRPC answers by a status alone.
    Headers,
    /// With data or trailers.
    Stream,
    /// The sender reset the stream.
    Reset(Reason),
}

/// A direction of a call.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    Request,
    Reply,
}

impl Way {
    pub(super) fn back(self) -> Self {
        match self {
            Self::Request => Self::Reply,
            Self::Reply => Self::Request,
        }
    }
}

impl Exchange {
    pub(super) fn half(&mut self, way: Way) -> &mut Half {
        match way {
            Way::Request => &mut self.request,
            Way::Reply => &mut self.reply,
        }
    }
}
