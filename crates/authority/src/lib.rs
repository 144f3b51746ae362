// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Lets an HTTP/2 server on the h2 crate accept clients with any `:authority`.
//!
//! h2 (hyperium/h2#487), and so hyper and tonic, reset a request whose `:authority` is not valid in a
//! URI. Many gRPC clients send the name of a Unix socket (`%2Frun%2Fcri.sock`, `/run/cri.sock`,
//! `unix:/run/cri.sock`), which other HTTP/2 servers accept. [`AnyAuthority`] sits between the socket
//! and the codec of h2. It parses the frames of the client, and replaces each authority that h2 would
//! reject by `localhost`, which gRPC specifies for sockets.
//!
//! ```text
//! socket ──► frames ──► header blocks ──► the same bytes, up to the first invalid authority;
//!                                         from there on literals that change no table ──► h2
//! ```
//!
//! Each header block changes a table that later blocks refer to (RFC 7541), so all blocks are decoded.
//! Up to the first replacement, blocks pass unchanged, and the codec has the same table as the client.
//! A replacement would make the two tables differ. From there on, every reference to the table is
//! written as the field that it refers to, and the codec no longer uses its table.
//!
//! Malformed frames are left to the codec, which reports them to the client. So are header blocks
//! larger than [`MAX_BLOCK`].

mod frames;
mod hpack;
mod huffman;
#[cfg(feature = "tonic")]
mod served;
mod stream;

pub use frames::MAX_BLOCK;
pub use stream::AnyAuthority;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
