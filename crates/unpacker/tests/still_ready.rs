// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images that were found ready, asked for again.

// Test code: it fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use resnap_core::testing::{Behaviour, Operation, Simulated, SimulatedImage, SimulatedLayer};
use resnap_core::{EnsureRequest, Integrity, ManifestPreference, UnpackService as _};
use resnap_unpacker::{Engine, EngineSettings};

const NAMESPACE: &str = "k8s.io";
const NAME: &str = "docker.io/library/web:1";

fn image(top: &str) -> SimulatedImage {
    SimulatedImage::new(["base", top].map(SimulatedLayer::new))
}

fn node() -> Simulated {
    let backend = Simulated::new();
    backend.add_snapshotter("erofs", Behaviour::Ordinary);
    backend.add_image(NAMESPACE, NAME, &image("app"));
    backend
}

/// The preferences of containerd for containers: up to 2.2, and since 2.3.
const PICKS: [ManifestPreference; 2] = [ManifestPreference::First, ManifestPreference::Plain];

async fn ensure(engine: &Engine, image: &str) {
    ensure_picked(engine, image, ManifestPreference::default()).await;
}

async fn ensure_picked(engine: &Engine, image: &str, pick: ManifestPreference) {
    let request = EnsureRequest {
        image,
        reference: None,
        snapshotter: "erofs",
        repair: false,
        pod: None,
        pick,
    };
    engine.ensure(request, &|_| {}).await.unwrap();
}

async fn is_still_ready(engine: &Engine, image: &str) -> bool {
    let pick = ManifestPreference::default();
    engine.is_still_ready(image, "erofs", pick).await
}

/// Returns an engine that has found the image ready by this name.
async fn found(backend: &Simulated, image: &str) -> Engine {
    let engine = Engine::new(backend.ports(), NAMESPACE, EngineSettings::default()).unwrap();
    assert!(!is_still_ready(&engine, image).await);
    // The first call makes it ready, and the second finds it so.
    for _ in 0..2 {
        ensure(&engine, image).await;
    }
    assert!(is_still_ready(&engine, image).await, "{image}");
    engine
}

#[tokio::test]
async fn it_takes_one_look_at_the_name_and_one_at_the_chain() {
    let backend = node();
    let engine = found(&backend, NAME).await;
    let operations = [Operation::GetImage, Operation::Stat, Operation::OpenContent];
    let before = operations.map(|operation| backend.calls(operation));
    assert!(is_still_ready(&engine, NAME).await);
    let after = operations.map(|operation| backend.calls(operation));
    assert_eq!(after, [before[0] + 1, before[1] + 1, before[2]]);
}

#[tokio::test]
async fn an_image_id_says_itself_what_it_stands_for() {
    let (backend, image) = (node(), image("app"));
    let id = image.config.digest.as_str();
    // As the CRI keeps it.
    backend.add_image(NAMESPACE, id, &image);
    let engine = found(&backend, NAME).await;
    for pick in PICKS {
        ensure_picked(&engine, id, pick).await;
        let operations = [Operation::GetImage, Operation::Stat];
        let before = operations.map(|operation| backend.calls(operation));
        assert!(engine.is_still_ready(id, "erofs", pick).await);
        let after = operations.map(|operation| backend.calls(operation));
        assert_eq!(after, [before[0], before[1] + 1]);
    }
}

#[tokio::test]
async fn a_name_that_stands_for_another_image_is_not_ready() {
    let backend = node();
    let engine = found(&backend, NAME).await;
    backend.add_image(NAMESPACE, NAME, &image("next"));
    assert!(!is_still_ready(&engine, NAME).await);
    backend.remove_image(NAMESPACE, NAME);
    assert!(!is_still_ready(&engine, NAME).await);
}

#[tokio::test]
async fn a_name_that_was_completed_must_not_exist_itself() {
    let backend = node();
    let engine = found(&backend, "web:1").await;
    backend.add_image(NAMESPACE, "web:1", &image("other"));
    assert!(!is_still_ready(&engine, "web:1").await);
}

#[tokio::test]
async fn an_image_whose_chain_is_gone_is_not_ready() {
    let backend = node();
    let engine = found(&backend, NAME).await;
    // Another image keeps nothing of its chain.
    backend.remove_image(NAMESPACE, NAME);
    backend.collect_garbage();
    backend.add_image(NAMESPACE, NAME, &image("app"));
    assert!(!is_still_ready(&engine, NAME).await);
    ensure(&engine, NAME).await;
    assert!(is_still_ready(&engine, NAME).await);
}

#[tokio::test]
async fn signatures_are_always_verified() {
    let backend = node();
    found(&backend, NAME).await;
    let mut settings = EngineSettings::default();
    settings.profiles.entry("erofs").integrity = Integrity::Signed;
    let engine = Engine::new(backend.ports(), NAMESPACE, settings).unwrap();
    let request = EnsureRequest {
        image: NAME,
        reference: None,
        snapshotter: "erofs",
        repair: false,
        pod: None,
        pick: ManifestPreference::default(),
    };
    assert!(engine.ensure(request, &|_| {}).await.is_err());
    assert!(!is_still_ready(&engine, NAME).await);
}
