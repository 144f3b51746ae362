// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The metrics of the daemon. No user-supplied name is a label, so the number of series is bounded, at
//! most by the methods of the CRI times the codes of gRPC.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use resnap_core::Kind;
use resnap_cri_proxy::{ForwardReason, ProxyEvent};
use resnap_unpacker::{AskedOutcome, EngineEvent, Phase, UnpackError};

/// Label names with their values.
type Labels<const N: usize> = [(&'static str, &'static str); N];

const READY: Labels<1> = [("outcome", "ready")];
const FAILED: Labels<1> = [("outcome", "failed")];
const CANCELLED: Labels<1> = [("outcome", "cancelled")];

/// The metrics and their registry.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    unpacks: Family<Labels<1>, Counter>,
    failures: Family<Labels<1>, Counter>,
    seconds: Family<Labels<1>, Histogram>,
    layers: Family<Labels<1>, Counter>,
    asked: Family<Labels<1>, Counter>,
    in_flight: Gauge,
    joined: Counter,
    cleanup_failures: Counter,
    calls: Family<Labels<2>, Counter>,
    deadline_answers: Counter,
    forwarded: Family<Labels<1>, Counter>,
    retries: Counter,
    pulls: Counter,
    steered: Family<Labels<1>, Counter>,
    reported_absent: Counter,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            unpacks: Family::default(),
            failures: Family::default(),
            // 10 ms to 11 min: from a layer that exists to the largest images on a slow disk.
            seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.01, 2.0, 17))
            }),
            layers: Family::default(),
            asked: Family::default(),
            in_flight: Gauge::default(),
            joined: Counter::default(),
            cleanup_failures: Counter::default(),
            calls: Family::default(),
            deadline_answers: Counter::default(),
            forwarded: Family::default(),
            retries: Counter::default(),
            pulls: Counter::default(),
            steered: Family::default(),
            reported_absent: Counter::default(),
        };
        metrics.register();
        metrics.create_series();
        metrics
    }

    fn register(&mut self) {
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
            "Jobs that failed, by gRPC code; ResourceExhausted or DeadlineExceeded if a layer \
             exceeded a limit",
            self.failures.clone(),
        );
        all.register_with_unit(
            "unpack_duration",
            "Duration of jobs",
            Unit::Seconds,
            self.seconds.clone(),
        );
        all.register("layers", "Layers that jobs processed", self.layers.clone());
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
            drop(self.seconds.get_or_create(&outcome));
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
            }
        }
        for outcome in AskedOutcome::ALL {
            drop(self.asked.get_or_create(&[("outcome", outcome.as_str())]));
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
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl resnap_unpacker::EngineObserver for Metrics {
    fn on_event(&self, event: &EngineEvent<'_>) {
        match *event {
            EngineEvent::Refused(error) => {
                self.unpacks.get_or_create(&outcome(Some(error))).inc();
            }
            EngineEvent::Joined => {
                self.joined.inc();
            }
            EngineEvent::Began => {
                self.in_flight.inc();
            }
            EngineEvent::Layer(phase) => {
                if let Some(outcome) = layer_outcome(phase) {
                    self.layers.get_or_create(&[("outcome", outcome)]).inc();
                }
            }
            EngineEvent::Ended { error, seconds } => {
                let outcome = outcome(error);
                self.in_flight.dec();
                if let Some(error) = error.filter(|_| outcome == FAILED) {
                    self.failures.get_or_create(&code_of(error.kind())).inc();
                }
                self.unpacks.get_or_create(&outcome).inc();
                self.seconds.get_or_create(&outcome).observe(seconds);
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

fn outcome(error: Option<&UnpackError>) -> Labels<1> {
    match error {
        None => READY,
        Some(error) if error.kind() == Kind::Cancelled => CANCELLED,
        Some(_) => FAILED,
    }
}

/// Returns the outcome of a layer, or `None` while it is in progress.
fn layer_outcome(phase: Phase) -> Option<&'static str> {
    Some(match phase {
        Phase::Existed => "existed",
        Phase::Committed => "applied",
        Phase::Copied => "copied",
        Phase::Staged => "staged",
        Phase::Remote => "remote",
        Phase::Joined => "joined",
        Phase::Failed => "failed",
        _ => return None,
    })
}

fn steered_outcome(followed: bool) -> Labels<1> {
    let outcome = match followed {
        true => "followed",
        false => "ignored",
    };
    [("outcome", outcome)]
}

fn reason(why: ForwardReason) -> &'static str {
    match why {
        ForwardReason::Unresolved => "unresolved",
        ForwardReason::Unlabelled => "unlabelled",
        ForwardReason::Failed => "failed",
    }
}

fn code_of(kind: Kind) -> Labels<1> {
    [("code", code_name(kind.code().into()))]
}

/// Returns the name of a gRPC code as the Go implementation has it in metrics, and Unknown for other
/// numbers.
fn code_name(code: u16) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    NAMES.get(usize::from(code)).copied().unwrap_or("Unknown")
}
