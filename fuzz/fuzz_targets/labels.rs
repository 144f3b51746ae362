// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Unpacks images with arbitrary names, digests, platforms and annotations, and checks the labels.
//!
//! Each line of an input is a keyword and a text. `*N` at the end of a text repeats it N times.
#![no_main]

mod plan;

use libfuzzer_sys::fuzz_target;
use resnap_core::testing::{Behaviour, Simulated, SimulatedImage, SimulatedLayer};
use resnap_core::{
    Digest, LeaseId, ManifestPreference, Platform, Scope, SnapshotKey, SnapshotKind, labels,
    major_minor, media_type,
};
use resnap_platforms::Matcher;
use resnap_unpacker::{Engine, EngineSettings, Owner, Request, UnpackError};

const NAMESPACE: &str = "k8s.io";

/// The maximum number of layers of an image that is unpacked. Images with more are only planned, as the
/// simulated backend is slow.
const MAX_UNPACKED: usize = 8;

/// The request that the lines read so far describe.
struct Input {
    backend: Simulated,
    image: String,
    written: Option<String>,
    by_id: bool,
    snapshotter: String,
    behaviour: Behaviour,
    layers: Vec<SimulatedLayer>,
    leases: usize,
}

impl Input {
    fn new() -> Self {
        Self {
            backend: Simulated::new(),
            image: "docker.io/library/web:1".to_owned(),
            written: None,
            by_id: false,
            snapshotter: "overlayfs".to_owned(),
            behaviour: Behaviour::Ordinary,
            layers: vec![SimulatedLayer::new("base")],
            leases: 0,
        }
    }

    async fn line(&mut self, word: &str, text: String) {
        match word {
            "image" if !text.is_empty() => self.image = text,
            "written" => self.written = Some(text),
            "id" => self.by_id = true,
            // The name comes from containerd's configuration, not from an image.
            "snapshotter" if (1..100).contains(&text.len()) => self.snapshotter = text,
            "remote" => self.behaviour = Behaviour::Remote,
            "staged" => self.behaviour = Behaviour::Staged,
            "layer" if self.layers.len() < 80 => self.layers.push(SimulatedLayer::new(&text)),
            "annotation" => {
                let (key, value) = text.split_once('=').unwrap_or((&text, ""));
                let layer = self.layers.last_mut().expect("the base");
                let annotations = &mut layer.descriptor.annotations;
                annotations.insert(key.to_owned(), value.to_owned());
            }
            "lease" => {
                let label = text.split_once('=').unwrap_or((&text, ""));
                let label = [(label.0.to_owned(), label.1.to_owned())].into();
                let id = LeaseId(format!("lease-{}", self.leases).into());
                let (scope, leases) = (Scope::new(NAMESPACE), self.backend.ports().leases);
                // containerd refuses labels that are too long.
                if leases.create(&scope, &id, &label).await.is_ok() {
                    self.leases += 1;
                }
            }
            "digest" => {
                if let Ok(digest) = text.parse::<Digest>() {
                    assert_eq!(digest.as_str(), text);
                    assert_eq!(format!("{}:{}", digest.algorithm(), digest.encoded()), text);
                    assert_eq!(digest.same_algorithm(b"").as_str().len(), text.len());
                }
            }
            "platform" => platform(&text),
            "version" => {
                let pick = ManifestPreference::by_containerd(&text);
                let is_old = major_minor(&text).is_some_and(|version| version < (2, 3));
                assert_eq!(pick == ManifestPreference::First, is_old);
            }
            "media-type" => {
                let kinds = [
                    media_type::is_index(&text),
                    media_type::is_manifest(&text),
                    media_type::is_config(&text),
                    media_type::is_layer(&text),
                ];
                assert!(kinds.into_iter().filter(|is| *is).count() <= 1);
                assert!(kinds[3] || media_type::layer(&text).is_none());
                assert!(kinds[3] || !media_type::is_erofs(&text));
            }
            _ => {}
        }
    }
}

/// Parses a platform from a specifier or JSON, and checks that its text forms can be parsed again.
fn platform(text: &str) {
    let specifier = text.parse::<Platform>();
    let platform = match specifier.clone() {
        Ok(platform) => platform,
        Err(_) => match serde_json::from_str(text) {
            Ok(platform) => platform,
            Err(_) => return,
        },
    };
    let normalized = platform.normalized();
    assert_eq!(normalized.normalized(), normalized);
    let shown = platform.to_string();
    assert!(!shown.contains(char::is_control), "{shown:?}");
    if specifier.is_ok() {
        let again: Platform = shown.parse().expect("what is shown");
        assert_eq!(again.normalized(), normalized);
    }
    let json = serde_json::to_string(&platform).expect("JSON");
    let again: Platform = serde_json::from_str(&json).expect("a platform");
    assert_eq!(again, platform);

    let host = Platform::host();
    for matcher in [
        Matcher::only(&platform),
        Matcher::only_strict(&platform),
        Matcher::only_os(&platform),
        Matcher::default(),
    ] {
        for (left, right) in [(&platform, &host), (&host, &platform)] {
            assert!(!matcher.less(left, left));
            assert!(!matcher.less(left, right) || !matcher.less(right, left));
            assert_eq!(matcher.matches(left), matcher.matches(&left.normalized()));
            let picked = matcher.pick([(Some(left), left), (Some(right), right)]);
            let matching = [left, right].into_iter().filter(|it| matcher.matches(it));
            assert_eq!(picked.len(), matching.count());
            assert!(picked.is_sorted_by(|first, second| !matcher.less(second, first)));
        }
    }
}

async fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut input = Input::new();
    for line in text.split('\n') {
        let (word, text) = line.split_once(' ').unwrap_or((line, ""));
        let repeated = text.rsplit_once('*');
        let repeated =
            repeated.and_then(|(text, count)| Some((text, count.parse::<u16>().ok()?)));
        let text = match repeated {
            Some((text, count)) if text.len() * usize::from(count) <= 20_000 => {
                text.repeat(count.into())
            }
            _ => text.to_owned(),
        };
        input.line(word, text).await;
    }
    unpack(input).await;
}

/// Checks that the error is about a value that does not fit in a label.
fn verify_error(error: &UnpackError, request: &Request) {
    assert!(
        matches!(
            error,
            UnpackError::LabelTooLong { .. } | UnpackError::NoReference { .. }
        ),
        "{error:?}"
    );
    let mut names = request.snapshotter.iter().chain([&request.image]);
    // Names are input of the user, and are shown as they are.
    if !names.any(|name| name.contains(char::is_control)) {
        plan::verify_error(error);
    }
}

async fn unpack(input: Input) {
    let Input {
        backend,
        snapshotter,
        layers,
        ..
    } = input;
    let image = SimulatedImage::new(layers);
    let name = match input.by_id {
        true => image.config.digest.to_string(),
        false => input.image,
    };
    backend.add_image(NAMESPACE, &name, &image);
    backend.add_snapshotter(&snapshotter, input.behaviour);
    let settings = EngineSettings::default();
    let engine = Engine::new(backend.ports(), NAMESPACE, settings).expect("an engine");
    let mut request = Request::new(&name).on(&snapshotter);
    request.user_reference = input.written;

    if image.layers.len() > MAX_UNPACKED {
        match engine.plan(&request).await {
            Ok(plan) => plan::verify(&plan),
            Err(error) => verify_error(&error, &request),
        }
        return;
    }
    let report = engine.unpack(request.clone()).report().await;
    let leases = engine.leases().await.expect("leases");
    let is_foreign = |owner: &Owner| matches!(owner, Owner::Elsewhere);
    assert!(leases.iter().all(|lease| is_foreign(&lease.owner)));
    assert!(engine.sweep().await.expect("nothing").is_empty());
    assert_eq!(backend.leases(NAMESPACE).len(), input.leases);
    let snapshots = || backend.snapshots(NAMESPACE, &snapshotter);
    if let Err(error) = report {
        assert!(snapshots().is_empty());
        verify_error(&error, &request);
        return;
    }

    let plan = engine.plan(&request).await.expect("a plan");
    plan::verify(&plan);
    // It removes all snapshots without a reference.
    backend.collect_garbage();
    let snapshots = snapshots();
    assert_eq!(snapshots.len(), plan.layers.len());
    for layer in &plan.layers {
        let key = SnapshotKey::from(&layer.chain_id);
        let mut snapshots = snapshots.iter();
        let snapshot = snapshots.find(|snapshot| snapshot.info.key == key);
        let snapshot = snapshot.expect("the layer's snapshot");
        assert_eq!(snapshot.chain_id().as_ref(), Some(&layer.chain_id));
        assert_eq!(snapshot.info.kind, SnapshotKind::Committed);
        assert_eq!(snapshot.info.labels, layer.labels);
        assert!(!key.is_extraction());
        let needed = labels::missing(&layer.labels);
        assert!(needed.is_empty() || plan.image.reference.is_none());
    }
    let check = engine.check_image(&request).await.expect("a check");
    assert!(check.snapshotters[&snapshotter].ready);
}

thread_local! {
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
}

fuzz_target!(|input: &[u8]| RUNTIME.with(|runtime| runtime.block_on(run(input))));
