// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The ports of [`resnap_core`] over containerd's gRPC API, for containerd 1.6 to 2.4.
//!
//! A [`Client`] is one HTTP/2 connection to containerd's Unix socket; it connects again by itself
//! when containerd comes back. Answers may have 16 MiB, as containerd itself allows. Every gRPC
//! code becomes a [`Kind`](resnap_core::Kind) in one place, `status.rs`.
//!
//! Commit's `parent` is never sent: containerd before 2.2 drops it in silence and leaves a broken
//! chain. A message is never read, changed and written back, since fields of a newer containerd
//! would be lost; single labels are set by field mask instead.

mod client;
mod connection;
mod containers;
mod content;
mod diff;
mod events;
mod images;
mod introspection;
mod leases;
mod mounts;
mod snapshots;
mod status;

pub use client::{Client, DEFAULT_ADDRESS};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
