// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A reader of lists answers as the engine does, with as few calls for many images as for one.

// Test code: it fails by panicking.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use resnap_core::testing::{
    Behaviour, Effect, Fault, Operation, Simulated, SimulatedImage, SimulatedLayer,
};
use resnap_core::{Image, Kind, ManifestPreference, Platform, Scope};
use resnap_unpacker::{
    Engine, EngineSettings, KnownDocuments, LayerState, Reader, Request, UnpackError,
};

const NAMESPACE: &str = "k8s.io";
const SNAPSHOTTERS: [&str; 3] = ["erofs", "native", "nydus"];
const IMAGES: usize = 20;

fn image(number: usize) -> SimulatedImage {
    let own = format!("image {number}");
    SimulatedImage::new(["base", "middle", &own].map(SimulatedLayer::new))
}

fn name(number: usize) -> String {
    format!("docker.io/library/image-{number:02}:1")
}

/// Returns a node with images in several states, and an engine for it.
async fn node() -> (Simulated, Engine) {
    let backend = Simulated::new();
    for name in SNAPSHOTTERS {
        backend.add_snapshotter(name, Behaviour::Ordinary);
    }
    for number in 0..IMAGES {
        backend.add_image(NAMESPACE, &name(number), &image(number));
        // As the CRI plugin keeps them.
        let id = image(number).config.digest.to_string();
        backend.add_image(NAMESPACE, &id, &image(number));
    }
    let index = [
        (Platform::host(), image(100)),
        ("linux/s390x".parse().unwrap(), image(101)),
    ];
    backend.add_index(NAMESPACE, "docker.io/library/index:1", &index);
    let engine = Engine::new(backend.ports(), NAMESPACE, EngineSettings::default()).unwrap();
    for (number, on) in [(1, "erofs"), (2, "native"), (3, "nydus"), (4, "erofs")] {
        let unpacked = engine.unpack(Request::new(name(number)).on(on)).await;
        unpacked.unwrap();
    }
    // One without a label, one without a layer, and one without a document.
    let plan = engine.plan(&Request::new(name(5))).await.unwrap();
    for layer in &plan.layers {
        let (parent, none) = (layer.parent.as_ref(), BTreeMap::new());
        backend.unpack(NAMESPACE, "nydus", parent, &layer.diff_id, &none);
    }
    backend.remove_blob(NAMESPACE, &image(4).layers[2].descriptor.digest);
    backend.remove_blob(NAMESPACE, &image(6).config.digest);
    backend.set_faults([]);
    (backend, engine)
}

/// Returns everything that a reader says of all images.
async fn all(reader: &Reader) -> Vec<String> {
    let mut all = Vec::new();
    let snapshotters = SNAPSHOTTERS.map(str::to_owned);
    for image in reader.images().await.unwrap() {
        let resolved = reader.resolve(&image).await;
        all.push(format!("{image}: {:?}", resolved.map_err(text)));
        let plan = match reader.plan(&Request::new(&image)).await {
            Ok(plan) => plan,
            Err(error) => {
                all.push(text(error));
                continue;
            }
        };
        all.push(format!(
            "{:?}",
            reader.check(&plan, &snapshotters).await.unwrap()
        ));
        for on in SNAPSHOTTERS {
            for pick in [ManifestPreference::Best, ManifestPreference::First] {
                let mut request = Request::new(&image).on(on);
                request.pick = pick;
                let own = reader.plan(&request).await.unwrap();
                let is_ready = reader.is_ready(&own, on).await.unwrap();
                let is_kept = reader.is_kept(&own, on).await.unwrap();
                let is_remote = reader.is_remote(&own, on).await.unwrap();
                all.push(format!("{on} {is_ready} {is_kept} {is_remote} {own:?}"));
            }
        }
    }
    all
}

fn text(error: UnpackError) -> String {
    format!("{error} of {:?}", error.kind())
}

async fn listed(engine: &Engine, known: &KnownDocuments) -> Reader {
    engine.listed(None, known).await.unwrap()
}

#[tokio::test]
async fn lists_say_what_look_ups_say() {
    let (backend, engine) = node().await;
    let want = all(&engine).await;
    backend.set_faults([]);
    let known = KnownDocuments::default();
    let got = all(&listed(&engine, &known).await).await;
    for (got, want) in got.iter().zip(&want) {
        assert_eq!(got, want);
    }
    assert_eq!(got.len(), want.len());
    let calls = || {
        let calls = Operation::ALL.map(|operation| (operation, backend.calls(operation)));
        let mut calls = Vec::from(calls);
        calls.retain(|(_, count)| *count > 0);
        calls
    };
    let lists = [
        (Operation::ListImages, 1),
        (Operation::ListContent, 1),
        (Operation::ListSnapshots, SNAPSHOTTERS.len()),
        (Operation::Introspect, 1),
    ];
    // Each document once: the manifests and configs, and an index. One config is gone.
    let documents = [(Operation::OpenContent, 2 * IMAGES - 1 + 3)];
    let mut want = [&lists[..], &documents].concat();
    want.sort();
    assert_eq!(calls(), want);
    // They are known by now.
    backend.set_faults([]);
    assert_eq!(all(&listed(&engine, &known).await).await, got);
    let mut want = lists.to_vec();
    want.sort();
    assert_eq!(calls(), want);
}

#[tokio::test]
async fn known_documents_are_only_those_of_blobs() {
    let (backend, engine) = node().await;
    let known = KnownDocuments::default();
    let plan = async |known: &KnownDocuments| {
        let reader = listed(&engine, known).await;
        reader.plan(&Request::new(name(7))).await
    };
    let right = plan(&known).await.unwrap();
    // A damaged one is read again, and replaced.
    let damaged = known.changed().unwrap().into_iter();
    let damaged = KnownDocuments::new(damaged.map(|(digest, _)| (digest, "{}".into())));
    assert_eq!(plan(&damaged).await.unwrap(), right);
    assert_eq!(damaged.changed(), known.changed());
    backend.remove_blob(NAMESPACE, &image(7).config.digest);
    for known in [&known, &KnownDocuments::default()] {
        let error = plan(known).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(matches!(error, UnpackError::Documents { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_snapshotter_that_does_not_answer_is_one_of_several() {
    let (backend, engine) = node().await;
    backend.set_faults([Fault {
        operation: Operation::ListSnapshots,
        call: 2,
        effect: Effect::Fail(Kind::Unavailable),
    }]);
    let reader = listed(&engine, &KnownDocuments::default()).await;
    let plan = reader.plan(&Request::new(name(1))).await.unwrap();
    assert!(reader.is_ready(&plan, "erofs").await.unwrap());
    assert!(!reader.is_ready(&plan, "nydus").await.unwrap());
    let error = reader.is_ready(&plan, "native").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    let check = reader.check(&plan, &SNAPSHOTTERS.map(str::to_owned)).await;
    let check = check.unwrap();
    let states = &check.layers[2].snapshots;
    assert!(
        matches!(states["native"], LayerState::Unknown { .. }),
        "{states:?}"
    );
    assert!(
        matches!(states["erofs"], LayerState::Committed { .. }),
        "{states:?}"
    );
    assert_eq!(states["nydus"], LayerState::Missing);
}

#[tokio::test]
async fn images_of_a_target_are_those_of_the_list() {
    let (backend, engine) = node().await;
    let (scope, target) = (Scope::new(NAMESPACE), image(3).manifest.digest);
    let mut same = backend
        .ports()
        .images
        .of_target(&scope, &target)
        .await
        .unwrap();
    same.sort_by(|left: &Image, right| left.name.cmp(&right.name));
    let names: Vec<_> = same.iter().map(|image| image.name.clone()).collect();
    assert_eq!(names, [name(3), image(3).config.digest.to_string()]);
    let reader = listed(&engine, &KnownDocuments::default()).await;
    let resolved = reader.resolve(&names[1]).await.unwrap();
    assert_eq!(resolved.reference, Some(name(3)));
}
