// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A request can be cancelled before its job has started.

// Test code: it fails by panicking.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use resnap_core::testing::{
    Behaviour, Effect, Fault, Operation, Simulated, SimulatedImage, SimulatedLayer,
};
use resnap_unpacker::{Engine, EngineSettings, Request};
use tokio::time::{Instant, sleep};

#[tokio::test(start_paused = true)]
async fn a_request_that_is_cancelled_while_it_is_planned_does_not_wait_for_the_backend() {
    let simulated = Simulated::new();
    simulated.add_snapshotter("sn", Behaviour::Ordinary);
    let image = SimulatedImage::new([SimulatedLayer::new("a")]);
    simulated.add_image("ns", "web", &image);
    for operation in [Operation::GetImage, Operation::OpenContent] {
        simulated.set_faults([Fault {
            operation,
            call: 1,
            effect: Effect::Hang,
        }]);
        let engine = Engine::new(simulated.ports(), "ns", EngineSettings::default()).unwrap();
        let job = engine.unpack(Request::new("web").on("sn"));
        sleep(Duration::from_secs(1)).await;
        let cancelled = Instant::now();
        job.canceller().cancel();
        assert!(job.report().await.unwrap_err().is_cancelled());
        assert!(cancelled.elapsed() < Duration::from_secs(1));
        assert!(simulated.leases("ns").is_empty());
    }
}
