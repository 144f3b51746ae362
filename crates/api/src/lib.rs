// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The API of the daemon: gRPC on a Unix socket, package `resnap.v1`.
//!
//! [`serve`] serves an [`Engine`](resnap_unpacker::Engine), and [`DaemonClient`] is the client.
//! Both use the types of the engine, so that code that shows events, reports, checks or failures
//! need not know where they come from. `proto/resnap/v1/resnap.proto` is the protocol for other
//! clients.

mod check;
mod client;
mod failure;
mod job;
mod next_step;
mod server;
mod status;
mod unpack;

/// The code generated from the protocol by [`protox`](https://docs.rs/protox) and tonic.
#[allow(
    missing_docs,
    missing_debug_implementations,
    rust_2018_idioms,
    clippy::all
)]
pub mod v1 {
    tonic::include_proto!("resnap.v1");
}

pub use client::{DaemonClient, JobStream, UnpackStep, UnpackStream};
pub use failure::Failure;
pub use next_step::MAKE_ROOM;
pub use server::serve;

use resnap_core::Digest;

/// The status of a job of a daemon.
pub type JobStatus = resnap_unpacker::JobStatus<Failure>;

/// The identity of a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// The version of resnap.
    pub version: String,
    /// The path of containerd's socket.
    pub containerd_address: String,
    /// The containerd namespace.
    pub containerd_namespace: String,
}

/// A message with a value that this version does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no {0} that this version of resnap knows")]
pub struct Malformed(&'static str);

fn digest(text: String) -> Result<Digest, Malformed> {
    Digest::try_from(text).map_err(|_| Malformed("digest"))
}

/// Converts a count of layers, which is never that large.
fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn size(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
