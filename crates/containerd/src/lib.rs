// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The ports of [`resnap_core`] over containerd's gRPC API, for containerd 1.6 to 2.4.
//!
//! A [`Client`] is one HTTP/2 connection to containerd's Unix socket for each tokio runtime that it is used in. It
//! reconnects when containerd restarts. Answers may have up to 16 MiB, the limit of containerd itself. Every gRPC code
//! becomes a [`Kind`](resnap_core::Kind) in one place, `status.rs`.
//!
//! A [`DiffServer`] is the other direction: containerd's own differ service, which containerd asks to write the
//! layers of its pulls. All calls of that service by this crate have a mark, by which they end if they come back.
//!
//! Commit's `parent` is never sent: containerd before 2.2 silently drops it and leaves a broken chain. A
//! message is never read, changed and written back, since that loses fields of a newer containerd.
//! Single labels are set by field mask instead.

mod client;
mod connection;
mod containers;
mod content;
mod diff;
mod diff_server;
mod events;
mod images;
mod ingest;
mod introspection;
mod leases;
mod mark;
mod mounts;
mod raw;
mod snapshots;
mod status;

pub use client::{Client, DEFAULT_ADDRESS};
pub use diff_server::{AskedLayer, DiffServer, LayerWriter};
pub use ingest::IngestInfo;
pub use introspection::DiffPlugin;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
