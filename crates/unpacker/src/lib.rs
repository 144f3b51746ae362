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
//! - A job belongs to the engine: a [`Job`] that is dropped goes on, who asks for the same joins
//!   it, and only a [`Canceller`] stops it.
//! - A layer is made once, however many ask for it: jobs, images that share it, processes.
//! - What a dead job left is taken over by the next one for its image, or removed.

mod alternatives;
mod backend;
mod backoff;
mod chain;
mod chain_lock;
mod check;
mod choose;
mod clock;
mod content;
mod engine;
mod error;
mod event;
mod event_log;
mod image;
mod job;
mod layer;
mod lease;
mod locks;
mod missing;
mod monitor;
mod observe;
mod orphans;
mod plan;
mod planner;
mod plans;
mod progress;
mod registry;
mod repair;
mod request;
mod room;
mod route;
mod run;
mod running;
mod service;
mod slots;
mod status;
mod support;
mod title;
mod unpack;
mod warnings;
mod watch;

pub use check::{Check, LabelState, LayerCheck, LayerState, Readiness};
pub use clock::Clock;
pub use engine::Engine;
pub use error::{Fetch, UnpackError};
pub use event::{Event, LayerOutcome, LayerReport, Phase, Report, StageTime};
pub use image::ResolvedImage;
pub use job::{Canceller, Job, JobRef};
pub use locks::{lock_file, make_runtime_dir};
pub use observe::{EngineEvent, EngineObserver};
pub use orphans::{LeaseStatus, Owner};
pub use plan::{Plan, PlannedLayer};
pub use progress::Progress;
pub use request::{Configuration, EngineSettings, Request};
pub use status::{JobState, JobStatus};
pub use title::name_in_title;
pub use watch::JobWatch;
