// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Who waits comes before who does not.

// Test code: it fails by panicking.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use resnap_core::testing::{
    Behaviour, Effect, Fault, Operation, Simulated, SimulatedImage, SimulatedLayer,
};
use resnap_unpacker::{Engine, Job, Phase, Request, Settings};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

fn engine() -> Engine {
    let simulated = Simulated::new();
    simulated.add_snapshotter("sn", Behaviour::Ordinary);
    for name in ["urgent", "idle"] {
        let layers = ["a", "b"].map(|layer| SimulatedLayer::new(&format!("{name} {layer}")));
        simulated.add_image(
            "ns",
            &format!("docker.io/library/{name}:latest"),
            &SimulatedImage::new(layers),
        );
    }
    // Each layer takes a second to write.
    let slow = (1..=4).map(|call| Fault {
        operation: Operation::Apply,
        call,
        effect: Effect::Delay(SECOND),
    });
    simulated.set_faults(slow);
    Engine::new(simulated.ports(), "ns", Settings::default()).unwrap()
}

fn job(engine: &Engine, name: &str, background: bool) -> Job {
    engine.unpack(Request {
        background,
        ..Request::new(name, "sn")
    })
}

/// When the first layer began to be written, and when all was done.
async fn times(mut job: Job, start: Instant) -> (Duration, Duration) {
    let mut began = None;
    while let Some(event) = job.next_event().await {
        if event.phase == Phase::Applying {
            began.get_or_insert_with(|| start.elapsed());
        }
    }
    job.report().await.unwrap();
    (began.unwrap(), start.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_job_that_nobody_waits_for_stands_back() {
    let (engine, start) = (engine(), Instant::now());
    let urgent = tokio::spawn(times(job(&engine, "urgent", false), start));
    tokio::time::sleep(SECOND / 10).await;
    let idle = tokio::spawn(times(job(&engine, "idle", true), start));
    let ((_, done), (began, _)) = (urgent.await.unwrap(), idle.await.unwrap());
    assert!(
        began >= done,
        "began at {began:?}, and the other was done at {done:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn who_joins_it_does_not_wait_for_others() {
    let (engine, start) = (engine(), Instant::now());
    let urgent = tokio::spawn(times(job(&engine, "urgent", false), start));
    tokio::time::sleep(SECOND / 10).await;
    let idle = tokio::spawn(times(job(&engine, "idle", true), start));
    tokio::time::sleep(SECOND / 10).await;
    drop(job(&engine, "idle", false));
    let ((_, done), (began, _)) = (urgent.await.unwrap(), idle.await.unwrap());
    assert!(
        began < done,
        "began at {began:?}, and the other was done at {done:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn alone_it_does_not_wait() {
    let (engine, start) = (engine(), Instant::now());
    let (began, done) = times(job(&engine, "idle", true), start).await;
    assert!(began < SECOND && done < 3 * SECOND);
}
