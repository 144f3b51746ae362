// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The metrics of the daemon. No user-supplied name is a label, so the number of series is bounded, at
//! most by the methods of the CRI times the codes of gRPC, or the buckets of a duration times
//! [`MAX_SNAPSHOTTERS`].

mod labels;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use resnap_applier::{ApplierSettings, MemoryUse};
use resnap_core::Kind;
use resnap_cri_proxy::{ForwardReason, ProxyEvent};
use resnap_unpacker::{AskedOutcome, EngineEvent, Phase, UnpackError};

use labels::{
    CANCELLED, FAILED, Labels, READY, code_name, code_of, layer_outcome, outcome, reason,
    steered_outcome,
};

/// The most snapshotters that have a label of their own. A node has a handful.
const MAX_SNAPSHOTTERS: usize = 16;

/// The value of the label for other snapshotters.
const OTHER: &str = "other";

/// The metrics and their registry.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    unpacks: Family<Labels<1>, Counter>,
    failures: Family<Labels<1>, Counter>,
    seconds: Family<[(&'static str, String); 2], Histogram>,
    snapshotters: Mutex<BTreeSet<String>>,
    queue_seconds: Histogram,
    layers: Family<Labels<1>, Counter>,
    layer_bytes: Family<Labels<1>, Counter>,
    fetched_bytes: Family<Labels<1>, Counter>,
    repairs: Counter,
    memory: Gauge,
    memory_use: MemoryUse,
    asked: Family<Labels<1>, Counter>,
    in_flight: Gauge,
    joined: Counter,
    cleanup_failures: Counter,
    calls: Family<Labels<2>, Counter>,
    deadline_answers: Counter,
    forwarded: Family<Labels<1>, Counter>,
    refused: Counter,
    retries: Counter,
    pulls: Counter,
    steered: Family<Labels<1>, Counter>,
    reported_absent: Counter,
}

impl Metrics {
    pub(super) fn new(applier: &ApplierSettings) -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            unpacks: Family::default(),
            failures: Family::default(),
            // 10 ms to 11 min: from a layer that exists to the largest images on a slow disk.
            seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.01, 2.0, 17))
            }),
            snapshotters: Mutex::default(),
            queue_seconds: Histogram::new(exponential_buckets(0.001, 4.0, 10)),
            layers: Family::default(),
            layer_bytes: Family::default(),
            fetched_bytes: Family::default(),
            repairs: Counter::default(),
            memory: Gauge::default(),
            memory_use: applier.memory_use.clone(),
            asked: Family::default(),
            in_flight: Gauge::default(),
            joined: Counter::default(),
            cleanup_failures: Counter::default(),
            calls: Family::default(),
            deadline_answers: Counter::default(),
            forwarded: Family::default(),
            refused: Counter::default(),
            retries: Counter::default(),
            pulls: Counter::default(),
            steered: Family::default(),
            reported_absent: Counter::default(),
        };
        metrics.register(applier.memory);
        metrics.create_series();
        metrics
    }

    fn register(&mut self, memory: u64) {
        let started: Gauge<f64, AtomicU64> = Gauge::default();
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        started.set(since_epoch.unwrap_or_default().as_secs_f64());
        self.registry.register_with_unit(
            "process_start_time",
            "When the process started, since the epoch",
            Unit::Seconds,
            started,
        );
        let all = self.registry.sub_registry_with_prefix("resnap");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        all.register("build", "Version of resnap", version);
        all.register(
            "unpacks",
            "Jobs that ended, and requests for which no job could start",
            self.unpacks.clone(),
        );
        all.register(
            "unpack_failures",
            "Jobs that failed, and requests for which no job could start, by gRPC code; ResourceExhausted or \
             DeadlineExceeded if a layer exceeded a limit",
            self.failures.clone(),
        );
        all.register_with_unit(
            "unpack_duration",
            "Duration of jobs, by snapshotter",
            Unit::Seconds,
            self.seconds.clone(),
        );
        all.register_with_unit(
            "queue_duration",
            "Time that layers waited for their turn to be written",
            Unit::Seconds,
            self.queue_seconds.clone(),
        );
        all.register("layers", "Layers that jobs processed", self.layers.clone());
        all.register_with_unit(
            "layer_blob",
            "Sizes of the blobs of these layers",
            Unit::Bytes,
            self.layer_bytes.clone(),
        );
        all.register_with_unit(
            "fetched_blob",
            "Sizes of the blobs that were fetched because the node had discarded them, by source",
            Unit::Bytes,
            self.fetched_bytes.clone(),
        );
        all.register(
            "repairs",
            "Images whose layers were given labels or removed to be unpacked again",
            self.repairs.clone(),
        );
        all.register_with_unit(
            "memory_used",
            "Memory that layers take of the budget",
            Unit::Bytes,
            self.memory.clone(),
        );
        let budget: Gauge = Gauge::default();
        budget.set(memory.try_into().unwrap_or(i64::MAX));
        all.register_with_unit("memory_budget", "Memory for layers", Unit::Bytes, budget);
        all.register(
            "diff_layers",
            "Layers that containerd asked for",
            self.asked.clone(),
        );
        all.register("unpacks_in_flight", "Running jobs", self.in_flight.clone());
        all.register(
            "unpacks_joined",
            "Requests that joined a running job",
            self.joined.clone(),
        );
        all.register(
            "unpack_cleanup_failures",
            "Jobs that could not remove their snapshot or lease immediately",
            self.cleanup_failures.clone(),
        );
        all.register(
            "cri_calls",
            "Calls that ended, by CRI method (or other) and gRPC code",
            self.calls.clone(),
        );
        all.register(
            "cri_deadline_answers",
            "Calls answered just before their deadline while the job continued",
            self.deadline_answers.clone(),
        );
        all.register(
            "cri_forwarded_unready",
            "Calls forwarded although an image was not ready",
            self.forwarded.clone(),
        );
        all.register(
            "cri_refused",
            "Calls answered with an error because an image was not made ready",
            self.refused.clone(),
        );
        all.register(
            "cri_retries",
            "Calls sent to containerd again after it failed to unpack",
            self.retries.clone(),
        );
        all.register(
            "cri_sandbox_image_pulls",
            "Pulls of the sandbox image that were requested from containerd",
            self.pulls.clone(),
        );
        all.register(
            "cri_steered_pulls",
            "Pulls that named the handler of their pod, by whether containerd unpacked for it",
            self.steered.clone(),
        );
        all.register(
            "cri_images_reported_absent",
            "Images reported as absent, for kubelet to pull them with its credentials",
            self.reported_absent.clone(),
        );
    }

    /// Creates the series with zero, so that the first event counts as an increase in Prometheus.
    fn create_series(&self) {
        for outcome in [READY, FAILED, CANCELLED] {
            drop(self.unpacks.get_or_create(&outcome));
        }
        for kind in [Kind::ResourceExhausted, Kind::DeadlineExceeded] {
            drop(self.failures.get_or_create(&code_of(kind)));
        }
        for phase in [
            Phase::Existed,
            Phase::Committed,
            Phase::Copied,
            Phase::Staged,
            Phase::Remote,
            Phase::Joined,
            Phase::Failed,
        ] {
            if let Some(outcome) = layer_outcome(phase) {
                drop(self.layers.get_or_create(&[("outcome", outcome)]));
                drop(self.layer_bytes.get_or_create(&[("outcome", outcome)]));
            }
        }
        for outcome in AskedOutcome::ALL {
            drop(self.asked.get_or_create(&[("outcome", outcome.as_str())]));
        }
        for source in ["archive", "registry"] {
            drop(self.fetched_bytes.get_or_create(&[("source", source)]));
        }
        for why in [
            ForwardReason::Unresolved,
            ForwardReason::Unlabelled,
            ForwardReason::Failed,
        ] {
            drop(self.forwarded.get_or_create(&[("reason", reason(why))]));
        }
        for followed in [true, false] {
            drop(self.steered.get_or_create(&steered_outcome(followed)));
        }
    }

    /// Returns all metrics as OpenMetrics text.
    pub(super) fn text(&self) -> Result<String, fmt::Error> {
        let used = self.memory_use.bytes().try_into().unwrap_or(i64::MAX);
        self.memory.set(used);
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Counts the end of a job or request, and returns its outcome.
    fn count_end(&self, error: Option<&UnpackError>) -> Labels<1> {
        let outcome = outcome(error);
        self.unpacks.get_or_create(&outcome).inc();
        if let Some(error) = error.filter(|_| outcome == FAILED) {
            self.failures.get_or_create(&code_of(error.kind())).inc();
        }
        outcome
    }

    /// Returns the value of the label for a snapshotter.
    fn snapshotter(&self, name: &str) -> String {
        let seen = self.snapshotters.lock();
        let mut seen = seen.unwrap_or_else(PoisonError::into_inner);
        if !seen.contains(name) {
            if seen.len() >= MAX_SNAPSHOTTERS {
                return OTHER.to_owned();
            }
            seen.insert(name.to_owned());
        }
        name.to_owned()
    }
}

impl resnap_unpacker::EngineObserver for Metrics {
    fn on_event(&self, event: &EngineEvent<'_>) {
        match *event {
            EngineEvent::Refused(error) => {
                self.count_end(Some(error));
            }
            EngineEvent::Joined => {
                self.joined.inc();
            }
            EngineEvent::Began => {
                self.in_flight.inc();
            }
            EngineEvent::Layer { phase, bytes } => {
                if let Some(outcome) = layer_outcome(phase) {
                    let labels = [("outcome", outcome)];
                    self.layers.get_or_create(&labels).inc();
                    self.layer_bytes.get_or_create(&labels).inc_by(bytes);
                }
            }
            EngineEvent::Admitted { seconds } => self.queue_seconds.observe(seconds),
            EngineEvent::Fetched { source, bytes } => {
                let labels = [("source", source)];
                self.fetched_bytes.get_or_create(&labels).inc_by(bytes);
            }
            EngineEvent::Repaired => {
                self.repairs.inc();
            }
            EngineEvent::Ended {
                snapshotter,
                result,
                seconds,
            } => {
                self.in_flight.dec();
                let [(_, word)] = self.count_end(result.err());
                let labels = [
                    ("snapshotter", self.snapshotter(snapshotter)),
                    ("outcome", word.to_owned()),
                ];
                self.seconds.get_or_create(&labels).observe(seconds);
            }
            EngineEvent::Asked(outcome) => {
                let outcome = [("outcome", outcome.as_str())];
                self.asked.get_or_create(&outcome).inc();
            }
            EngineEvent::CleanupFailed => {
                self.cleanup_failures.inc();
            }
            _ => {}
        }
    }
}

impl resnap_cri_proxy::ProxyObserver for Metrics {
    fn on_event(&self, event: &ProxyEvent) {
        match *event {
            ProxyEvent::Answered { method, outcome } => {
                let code = outcome.map_or_else(Kind::code, |()| 0);
                let labels = [("method", method), ("code", code_name(code.into()))];
                self.calls.get_or_create(&labels).inc();
            }
            ProxyEvent::AnsweredEarly => {
                self.deadline_answers.inc();
            }
            ProxyEvent::Forwarded(why) => {
                let labels = [("reason", reason(why))];
                self.forwarded.get_or_create(&labels).inc();
            }
            ProxyEvent::Refused => {
                self.refused.inc();
            }
            ProxyEvent::Retried => {
                self.retries.inc();
            }
            ProxyEvent::Pulled => {
                self.pulls.inc();
            }
            ProxyEvent::Steered { followed } => {
                self.steered.get_or_create(&steered_outcome(followed)).inc();
            }
            ProxyEvent::ReportedAbsent => {
                self.reported_absent.inc();
            }
            _ => {}
        }
    }
}
