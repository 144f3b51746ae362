// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The unpack engine: makes an image that is on the node ready, unpacked and labelled, on another
//! snapshotter.
//!
//! ```text
//! image name ─► target ─► manifest of the platform ─► plan ─► snapshots ─► report
//!  (image.rs)              (handler-wrapper)        (plan.rs) (chain.rs)
//! ```
//!
//! An [`Engine`] works through the ports of [`resnap_core`] only; besides, it touches one
//! directory, for locks. Its guarantees:
//!
//! - A lease with an expiry exists before the first Prepare. It is deleted after the config blob
//!   has the label that protects the chain from garbage collection. The image's target is leased as
//!   well, so that a job survives the deletion of its image.
//! - Layers are Prepared on their committed parent and committed in order.
//! - The digest of the written content must equal the config's diff ID.
//! - After an error no active snapshot of the job is left. Committed layers stay, under a lease
//!   that expires, for the next attempt.
//! - A job belongs to the engine: it goes on when its [`Job`] handles are dropped, equal requests
//!   join it, and only a [`Canceller`] or [`Engine::cancel`] stops it.
//! - A layer is made once, for all concurrent jobs, images that share it, and processes.
//! - Orphaned leases and snapshots are taken over by the next job for their image, or removed.
//!
//! ```
//! use resnap_core::testing::{Behaviour, Simulated, SimulatedImage, SimulatedLayer};
//! use resnap_unpacker::{Engine, EngineSettings, LayerOutcome, Request};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let backend = Simulated::new();
//! backend.add_snapshotter("erofs", Behaviour::Ordinary);
//! let image = SimulatedImage::new(["base", "app"].map(SimulatedLayer::new));
//! backend.add_image("k8s.io", "docker.io/library/web:1", &image);
//! let engine = Engine::new(backend.ports(), "k8s.io", EngineSettings::default())?;
//!
//! let request = Request::new("web:1").on("erofs");
//! let plan = engine.plan(&request).await?;
//! assert!(!engine.is_ready(&plan, "erofs").await?);
//! let report = engine.unpack(request).await?;
//! assert_eq!(report.count(LayerOutcome::Applied), 2);
//! assert_eq!(report.chain_id.as_ref(), plan.top());
//! assert!(engine.is_ready(&plan, "erofs").await?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod absent;
mod alternatives;
mod artifact_search;
mod artifacts;
mod asked;
mod backend;
mod backoff;
mod chain;
mod chain_lock;
mod check;
mod choose;
mod clock;
mod content;
mod documents;
mod engine;
mod error;
mod event;
mod event_log;
mod evict;
mod evict_check;
mod evict_sources;
mod eviction;
mod feed;
mod fetch;
mod found_ready;
mod image;
mod intact;
mod inventory;
mod job;
mod known;
mod layer;
mod lease;
mod listed;
mod locks;
mod lost;
mod missing;
mod monitor;
mod observe;
mod orphans;
mod plan;
mod planner;
mod plans;
mod progress;
mod proofs;
mod reader;
mod registry;
mod repair;
mod request;
mod retention;
mod room;
mod route;
mod run;
mod running;
mod running_layer;
mod service;
mod sibling;
mod signatures;
mod signed;
mod slots;
mod sources;
mod status;
mod supply;
mod support;
mod survey;
mod title;
mod unpack;
mod unpacked;
mod verification;
mod verify;
mod warnings;
mod watch;
mod ways;

pub use asked::LayerRequest;
pub use check::{Check, LabelState, LayerCheck, LayerState, Readiness};
pub use clock::Clock;
pub use engine::Engine;
pub use error::{Fetch, UnpackError};
pub use event::{Event, LayerOutcome, LayerReport, Phase, Report, StageTime};
pub use eviction::{EvictRequest, EvictState, EvictedChain, Eviction, Refusal};
pub use image::ResolvedImage;
pub use inventory::UnpackedImage;
pub use job::{Canceller, Job, JobRef};
pub use known::KnownDocuments;
pub use locks::{lock_file, make_runtime_dir};
pub use observe::{AskedOutcome, EngineEvent, EngineObserver};
pub use orphans::{LeaseStatus, Owner};
pub use plan::{Plan, PlannedLayer};
pub use progress::Progress;
pub use reader::Reader;
pub use request::{Configuration, EngineSettings, Request};
pub use sources::{KeepFetched, Source, Tried};
pub use status::{JobState, JobStatus};
pub use survey::{Survey, SurveyedSnapshots};
pub use title::name_in_title;
pub use verification::{Verdict, Verification, VerifiedLayer};
pub use verify::Verifier;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
