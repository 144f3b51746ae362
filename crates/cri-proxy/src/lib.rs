// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A proxy between kubelet and containerd: every call passes through as it is, and before two of
//! them the image is made ready on the snapshotter that the pod's runtime handler has.
//!
//! ```text
//! kubelet ──► Proxy ──────────────── the same bytes ───────────────► containerd
//!               │ RunPodSandbox: handler ─► snapshotter, sandbox image
//!               │ CreateContainer: sandbox ─► snapshotter, the container's image, image volumes
//!               └► UnpackService::ensure(image, snapshotter)
//! ```
//!
//! What the proxy does not know, cannot read or fails at itself is forwarded untouched: it never
//! stops a pod that containerd would have started. Only where an image could not be made ready for
//! a snapshotter that goes wrong without does the caller get an error instead.

//!
//! # Where a client meets something else than with containerd
//!
//! What bounds the proxy's memory is less than what containerd's gRPC server (grpc-go) takes:
//!
//! | | containerd | here |
//! |---|---|---|
//! | calls at a time on a connection | 2^32 - 1 | 1024: clients are told, and wait with more |
//! | headers and metadata of a call | 16 MiB | 1 MiB: the call, or of much more the connection, is broken off |
//! | `:authority` | any | any, but one that is none of a URI comes to containerd as `localhost` |
//! | a request that is looked into comes | as slowly as it may | within 5 s, else `DEADLINE_EXCEEDED` |
//! | such requests that arrive or wait | any number | 64 MiB that wait: past it the largest is told to come again |
//! | a request of over 4 MiB | up to 16 MiB | the same, but not looked into |

mod backend;
mod body;
mod call;
mod clients;
mod counted;
mod deadline;
mod facts;
mod failure;
mod grpc;
mod knowledge;
mod messages;
mod observe;
mod outage;
mod pass;
mod peek;
mod preflight;
mod pull;
mod settings;
mod waiting;
mod wanted;

pub use facts::{Fact, FactSource, Sourced};
pub use observe::{ProxyEvent, ProxyObserver, Why};
pub use pass::Proxy;
pub use settings::{ProxySettings, Unlabelled};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
