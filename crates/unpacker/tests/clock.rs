// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Times are read from the clock when they are needed.

// Test code: it fails by panicking.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use resnap_core::labels::GC_EXPIRE;
use resnap_core::testing::{
    Behaviour, Effect, Fault, Operation, Simulated, SimulatedImage, SimulatedLayer,
};
use resnap_unpacker::{Clock, Engine, EngineSettings, Request};

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_makes_no_lease_that_has_expired() {
    let simulated = Simulated::new();
    simulated.add_snapshotter("sn", Behaviour::Ordinary);
    simulated.add_image(
        "ns",
        "web",
        &SimulatedImage::new([SimulatedLayer::new("a")]),
    );
    simulated.set_faults([Fault {
        operation: Operation::Apply,
        call: 1,
        effect: Effect::Hang,
    }]);
    // Since the epoch; at first the clock is wrong, as at boot.
    let seconds = Arc::new(AtomicU64::new(1_000_000));
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let mut settings = EngineSettings::default();
    let told = Arc::clone(&seconds);
    settings.clock = Clock::new(move || at(told.load(Ordering::SeqCst)));
    let engine = Engine::new(simulated.ports(), "ns", settings).unwrap();
    seconds.store(1_010_000, Ordering::SeqCst);

    let job = engine.unpack(Request::new("web").on("sn"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(engine.jobs()[0].started, at(1_010_000));
    let expiry = |seconds| humantime::format_rfc3339_seconds(at(seconds)).to_string();
    let leases = simulated.leases("ns");
    assert_eq!(leases[0].labels[GC_EXPIRE], expiry(1_013_600));
    // The clock is set again during a job, whose lease is renewed.
    seconds.store(1_020_000, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(1300)).await;
    let leases = simulated.leases("ns");
    assert_eq!(leases[0].labels[GC_EXPIRE], expiry(1_023_600));
    job.canceller().cancel();
    assert!(job.report().await.unwrap_err().is_cancelled());
}
