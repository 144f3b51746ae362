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

pub use facts::{Fact, Source, Told};
pub use observe::{Observer, Seen, Why};
pub use pass::Proxy;
pub use settings::{Settings, Unlabelled};
