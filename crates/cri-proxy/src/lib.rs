// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A transparent proxy between kubelet and containerd. It makes the images of two calls ready first, on
//! the snapshotter of the pod's runtime handler, and forwards the calls unchanged.
//!
//! ```text
//! kubelet ──► Proxy ──────────────── the same bytes ───────────────► containerd
//!               │ RunPodSandbox: handler ─► snapshotter, sandbox image
//!               │ CreateContainer: sandbox ─► snapshotter, the container's image, image volumes
//!               └► UnpackService::ensure(image, snapshotter)
//! ```
//!
//! Two more calls can differ, for images whose layers have to come from a registry that wants
//! credentials. Only kubelet has those of a pod:
//!
//! - ImageStatus of a pod whose image cannot be made ready for want of credentials gets the response for an
//!   image that does not exist ([`ProxySettings::image_status`]). kubelet then pulls.
//! - PullImage for a pod names the pod's handler ([`ProxySettings::steer_pulls`]), by a field that is
//!   appended to its message. containerd then unpacks for that handler, and fetches what it had discarded.
//!
//! The proxy forwards what it does not know or cannot decode, and calls whose images it fails to
//! find: it never stops a pod that containerd would have started. The caller gets an error if the
//! container would have the wrong content, since an image could not be made ready on a snapshotter
//! that needs labels; and just before its deadline, while the work continues.
//!
//! # Differences from containerd
//!
//! To bound its memory, the proxy accepts less than the gRPC server of containerd (grpc-go):
//!
//! | | containerd | proxy |
//! |---|---|---|
//! | concurrent calls on a connection | 2^32 - 1 | 1024, as announced to clients; further calls wait |
//! | headers and metadata of a call | 16 MiB | 1 MiB; past that the call or the connection is reset |
//! | `:authority` | any | any, but containerd sees `localhost` instead of one that is invalid in a URI |
//! | arrival of an inspected request | no limit | within 5 s, else `DEADLINE_EXCEEDED` |
//! | inspected requests that wait | no limit | 64 MiB together; past that the largest gets an error |
//! | a request of more than 4 MiB | up to 16 MiB | the same, but it is not inspected |
//!
//! # Why not hyper or tonic
//!
//! The proxy forwards HTTP/2 streams with the h2 crate. hyper added a `content-length` that the peer
//! had not sent, and turned stream resets into gRPC statuses, so that a caller could see which
//! responses had passed through the proxy. On h2, headers and trailers pass unchanged, and so do
//! messages with unknown fields, since they are never decoded to be forwarded. All connections share
//! one thread: with a runtime of several threads, a third of the time went into waking them.

mod after_pull;
mod backend;
mod body;
mod call;
mod call_record;
mod clients;
mod connection;
mod deadline;
mod discovery;
mod expiring;
mod facts;
mod failure;
mod failures;
mod grpc;
mod held;
mod image_status;
mod inspection;
mod kubelet_records;
mod limits;
mod messages;
mod new_sandbox;
mod observe;
mod outage;
mod peek;
mod pods;
mod preflight;
mod proxy;
mod pull;
mod pull_credentials;
mod pull_memory;
mod requirements;
mod runtime;
mod settings;
mod shutdown;
mod state;
mod steering;
#[cfg(test)]
mod tests;

pub use facts::{Fact, FactSource, Sourced};
pub use observe::{ForwardReason, ProxyEvent, ProxyObserver};
pub use proxy::Proxy;
pub use settings::{KUBELET_ROOT, ProxySettings, Unlabelled, When};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
