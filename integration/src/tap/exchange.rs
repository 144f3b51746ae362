// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! All that passes of one call, as it was on the wire.

use bytes::BytesMut;
use h2::Reason;
use tonic::codegen::http::HeaderMap;

/// Both ways of a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exchange {
    /// What the client sent.
    pub request: Half,
    /// What the client was answered.
    pub reply: Half,
}

/// One way of a call, as far as it has come.
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
    /// How it ended; `None` if it has not.
    pub end: Option<End>,
}

/// How one way of a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With the headers: nothing else came, as when gRPC answers by a status alone.
    Headers,
    /// With data or trailers.
    Stream,
    /// Who sent it broke the call off.
    Reset(Reason),
}

/// Which way something passes.
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
