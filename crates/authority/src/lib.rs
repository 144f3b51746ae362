// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Takes clients with any `:authority`, in front of an HTTP/2 server that takes some only.
//!
//! The h2 crate (hyperium/h2#487), and so hyper and tonic, break off a request whose `:authority` is
//! none of a URI. Many gRPC clients name a Unix socket there (`%2Frun%2Fcri.sock`, `/run/cri.sock`,
//! `unix:/run/cri.sock`), and the servers of other implementations take that. [`AnyAuthority`] is
//! between the socket and the codec: it follows the frames that come from the client, and puts
//! `localhost`, which is what gRPC says for sockets, in the place of what h2 would not take.
//!
//! ```text
//! socket ──► frames ──► header blocks ──► the same bytes, up to the first authority that is none;
//!                                         from there on literals that change no table ──► h2
//! ```
//!
//! A header block changes a table that later blocks refer to (RFC 7541), so all blocks are decoded.
//! As long as nothing is changed they go on as they came, and the codec's table is the same as the
//! client's. From the first change on that would not be so: every reference to the table is replaced
//! by what it refers to, and the codec's table is used no more.
//!
//! What is broken is left to the codec, which tells the client. A block that is larger than
//! [`MAX_BLOCK`] is, too.

mod frames;
mod hpack;
mod huffman;
mod stream;

pub use frames::MAX_BLOCK;
pub use stream::AnyAuthority;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
