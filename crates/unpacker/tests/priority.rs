// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Jobs with waiters come before those without.

// Test code: it fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use futures::StreamExt as _;
use resnap_core::testing::{
    Behaviour, Effect, Fault, Operation, Simulated, SimulatedImage, SimulatedLayer,
};
use resnap_unpacker::{Engine, EngineSettings, Job, Phase, Request};
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
    Engine::new(simulated.ports(), "ns", EngineSettings::default()).unwrap()
}

fn job(engine: &Engine, name: &str, background: bool) -> Job {
    let mut request = Request::new(name).on("sn");
    request.background = background;
    engine.unpack(request)
}

/// Returns when the first layer began to be written, and when all was done.
async fn times(job: Job, start: Instant) -> (Duration, Duration) {
    let mut began = None;
    let mut events = job.events();
    while let Some(event) = events.next().await {
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
async fn joined_jobs_do_not_wait_for_others() {
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

/// Returns an engine that writes one layer at a time, each of which takes ten seconds but those of the
/// image "small", and `hogs` of images with twenty layers.
fn busy_engine(hogs: usize) -> Engine {
    let simulated = Simulated::new();
    simulated.add_snapshotter("sn", Behaviour::Ordinary);
    let add = |name: &str, layers: usize| {
        let layers = (0..layers).map(|layer| SimulatedLayer::new(&format!("{name} {layer}")));
        let name = format!("docker.io/library/{name}:latest");
        simulated.add_image("ns", &name, &SimulatedImage::new(layers));
    };
    add("small", 1);
    (0..hogs).for_each(|hog| add(&format!("hog-{hog}"), 20));
    let slow = (1..=100).map(|call| Fault {
        operation: Operation::Apply,
        call,
        effect: Effect::Delay(10 * SECOND),
    });
    simulated.set_faults(slow);
    let mut settings = EngineSettings::default();
    settings.parallel_applies = 1;
    Engine::new(simulated.ports(), "ns", settings).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_small_image_waits_for_no_other() {
    let engine = busy_engine(1);
    let _hog = job(&engine, "hog-0", false);
    tokio::time::sleep(SECOND).await;
    let start = Instant::now();
    let (began, _) = times(job(&engine, "small", false), start).await;
    assert!(began < SECOND, "after {began:?}");
}

#[tokio::test(start_paused = true)]
async fn abandoned_jobs_yield_to_others() {
    let engine = busy_engine(3);
    // Their callers leave at once.
    (0..3).for_each(|hog| drop(job(&engine, &format!("hog-{hog}"), false)));
    tokio::time::sleep(61 * SECOND).await;
    let start = Instant::now();
    let (began, _) = times(job(&engine, "small", false), start).await;
    assert!(began < 11 * SECOND, "after {began:?}");
    // The jobs go on.
    let before: usize = engine.jobs().iter().map(|job| job.ready_layers).sum();
    tokio::time::sleep(60 * SECOND).await;
    let after: usize = engine.jobs().iter().map(|job| job.ready_layers).sum();
    assert!(after > before, "{after} layers, and {before} before");
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_layer_does_not_keep_its_job() {
    let simulated = Simulated::new();
    simulated.add_snapshotter("sn", Behaviour::Ordinary);
    for name in ["idle", "urgent"] {
        let layers = ["base".to_owned(), format!("top of {name}")];
        let image = SimulatedImage::new(layers.map(|layer| SimulatedLayer::new(&layer)));
        let name = format!("docker.io/library/{name}:latest");
        simulated.add_image("ns", &name, &image);
    }
    // While it prepares the shared layer nobody else is there.
    simulated.set_faults([Fault {
        operation: Operation::Prepare,
        call: 1,
        effect: Effect::Delay(SECOND),
    }]);
    let engine = Engine::new(simulated.ports(), "ns", EngineSettings::default()).unwrap();
    let idle = job(&engine, "idle", true);
    tokio::time::sleep(SECOND / 2).await;
    let urgent = job(&engine, "urgent", false).report();
    let both = async { tokio::join!(urgent, idle.report()) };
    let both = tokio::time::timeout(60 * SECOND, both).await;
    let (urgent, idle) = both.expect("they wait for each other");
    assert_eq!(
        (urgent.unwrap().layers.len(), idle.unwrap().layers.len()),
        (2, 2)
    );
}
