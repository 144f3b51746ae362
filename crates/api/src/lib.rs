// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The API of the daemon: gRPC on a Unix socket, package `resnap.v1`.
//!
//! [`serve`] answers from an [`Engine`](resnap_unpacker::Engine), [`DaemonClient`] asks. Both speak in the
//! engine's own words, so that who shows an event, a report, a check or a failure need not know
//! where it comes from. `proto/resnap/v1/resnap.proto` is the protocol for all others.

mod accepted;
mod check;
mod client;
mod failure;
mod job;
mod next_step;
mod server;
mod status;
mod unpack;

/// What [`protox`](https://docs.rs/protox) and tonic make of the protocol.
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
pub use server::serve;

use resnap_core::Digest;

/// The status of a job of a daemon.
pub type JobStatus = resnap_unpacker::JobStatus<Failure>;

/// What a daemon says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// The version of resnap.
    pub version: String,
    /// The path of containerd's socket.
    pub containerd_address: String,
    /// The containerd namespace.
    pub containerd_namespace: String,
}

/// A message that says what this version does not understand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no {0} that this version of resnap knows")]
pub struct Malformed(&'static str);

fn digest(text: String) -> Result<Digest, Malformed> {
    Digest::try_from(text).map_err(|_| Malformed("digest"))
}

/// A count of layers, of which there are never that many.
fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn size(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
