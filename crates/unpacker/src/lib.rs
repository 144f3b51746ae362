// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The engine: an image that is on the node, unpacked and labelled on another snapshotter.
//!
//! ```text
//! image name ─► target ─► manifest of the platform ─► plan ─► snapshots ─► report
//!  (image.rs)              (handler-wrapper)        (plan.rs) (chain.rs)
//! ```
//!
//! An [`Engine`] works through the ports of [`resnap_core`] only. What it promises:
//!
//! - A lease with an expiry exists before the first Prepare and goes after the config blob carries
//!   the label by which garbage collection keeps the chain. The image's target is leased as well,
//!   so a job survives the deletion of its image.
//! - Layers are Prepared on their committed parent and committed in order.
//! - The digest of what was written must be the config's diff ID.
//! - After an error no active snapshot of the job is left; committed layers stay, under a lease
//!   that ends by itself, for the next try.
//! - Work runs in a task of its own: a [`Job`] that is dropped goes on.

mod chain;
mod check;
mod engine;
mod error;
mod event;
mod image;
mod job;
mod lease;
mod plan;

pub use check::{Check, LabelState, LayerCheck, LayerState, Readiness};
pub use engine::{Engine, Request};
pub use error::UnpackError;
pub use event::{Event, LayerReport, Outcome, Phase, Report};
pub use image::ResolvedImage;
pub use job::Job;
pub use plan::{Plan, PlannedLayer};
