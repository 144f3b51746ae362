// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A survey of snapshots: what keeps them, and what is missing.

// Test code: it fails by panicking.
#![allow(clippy::unwrap_used)]

use resnap_core::testing::{Behaviour, Simulated, SimulatedImage, SimulatedLayer};
use resnap_core::{Container, LeaseId, Resource, Scope, SnapshotKey, labels};
use resnap_unpacker::{Engine, EngineSettings, Request, SurveyedSnapshots};

const NAMESPACE: &str = "k8s.io";
const SNAPSHOTTER: &str = "overlayfs";

fn image(layers: &[&str]) -> SimulatedImage {
    SimulatedImage::new(layers.iter().map(|text| SimulatedLayer::new(text)))
}

/// Unpacks an image, and returns its top layer.
async fn unpack(engine: &Engine, name: &str) -> SnapshotKey {
    let report = engine.unpack(Request::new(name).on(SNAPSHOTTER)).await;
    SnapshotKey::from(&report.unwrap().chain_id.unwrap())
}

async fn survey(engine: &Engine) -> SurveyedSnapshots {
    let names = [SNAPSHOTTER.to_owned()];
    let mut survey = engine.survey(&names).await.unwrap();
    survey.snapshotters.remove(0).1.unwrap()
}

#[tokio::test]
async fn snapshots_are_needed_by_images_and_containers() {
    let simulated = Simulated::new();
    simulated.add_snapshotter(SNAPSHOTTER, Behaviour::Ordinary);
    let engine = Engine::new(simulated.ports(), NAMESPACE, EngineSettings::default()).unwrap();
    let mut tops = Vec::new();
    for (name, layers) in [("web", ["base", "web"]), ("api", ["base", "api"])] {
        simulated.add_image(NAMESPACE, name, &image(&layers));
        tops.push(unpack(&engine, name).await);
    }
    let found = survey(&engine).await;
    let names: Vec<&str> = found.images.iter().map(|image| image.name()).collect();
    assert_eq!(names, ["api", "web"]);
    assert_eq!(found.snapshots.len(), 3);
    assert!(found.missing.is_empty() && found.unneeded.is_empty());

    // What the other image has, too, stays.
    simulated.remove_image(NAMESPACE, "api");
    let found = survey(&engine).await;
    let unneeded: Vec<_> = found.unneeded.iter().collect();
    assert_eq!(unneeded, [(&tops[1], &Vec::new())]);

    let lease = LeaseId("theirs".into());
    let (ports, scope) = (simulated.ports(), Scope::new(NAMESPACE));
    ports
        .leases
        .create(&scope, &lease, &labels::Labels::new())
        .await
        .unwrap();
    let resource = Resource::Snapshot {
        snapshotter: SNAPSHOTTER.to_owned(),
        key: tops[1].clone(),
    };
    ports
        .leases
        .add_resource(&scope, &lease, &resource)
        .await
        .unwrap();
    let found = survey(&engine).await;
    assert_eq!(found.unneeded[&tops[1]], [lease]);

    let container = Container {
        id: "running".to_owned(),
        snapshotter: SNAPSHOTTER.to_owned(),
        snapshot: tops[1].clone(),
    };
    simulated.add_container(NAMESPACE, container);
    assert!(survey(&engine).await.unneeded.is_empty());
}

#[tokio::test]
async fn a_chain_that_is_gone_is_missing() {
    let simulated = Simulated::new();
    simulated.add_snapshotter(SNAPSHOTTER, Behaviour::Ordinary);
    let engine = Engine::new(simulated.ports(), NAMESPACE, EngineSettings::default()).unwrap();
    simulated.add_image(NAMESPACE, "web", &image(&["base"]));
    let top = unpack(&engine, "web").await;
    let snapshotter = simulated.ports().snapshotters.snapshotter(SNAPSHOTTER);
    assert!(!engine.is_lost(SNAPSHOTTER, &top).await.unwrap());
    snapshotter
        .remove(&Scope::new(NAMESPACE), &top)
        .await
        .unwrap();
    let found = survey(&engine).await;
    assert_eq!(found.missing, found.images);
    assert_eq!(found.missing[0].chain_id, top);
    assert!(!engine.is_lost(SNAPSHOTTER, &top).await.unwrap());
    assert!(simulated.snapshots(NAMESPACE, SNAPSHOTTER).is_empty());
}
