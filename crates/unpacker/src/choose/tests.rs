// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

use resnap_core::testing::{Behaviour, Operation, Simulated, SimulatedImage, SimulatedLayer};
use resnap_core::{Kind, ManifestPreference, Platform};

use crate::{Configuration, Engine, EngineSettings, Request};

const NAMESPACE: &str = "k8s.io";

fn host() -> String {
    Platform::host().to_string()
}

/// This machine's platform, with a feature.
fn with(feature: &str) -> String {
    host().replacen('/', &format!("(+{feature})/"), 1)
}

fn platform(text: &str) -> Platform {
    text.parse().unwrap()
}

/// Returns an image of this platform, and the platform.
fn entry(text: &str) -> (Platform, SimulatedImage) {
    let platform = platform(text);
    let image = SimulatedImage::of(&platform, [SimulatedLayer::new(text)]);
    (platform, image)
}

fn backend(snapshotters: &[&str]) -> Simulated {
    let backend = Simulated::new();
    for name in snapshotters {
        backend.add_snapshotter(name, Behaviour::Ordinary);
    }
    backend
}

fn engine(backend: &Simulated, settings: EngineSettings) -> Engine {
    Engine::new(backend.ports(), NAMESPACE, settings).unwrap()
}

/// Returns all permutations.
fn permutations<T: Clone>(all: &[T]) -> Vec<Vec<T>> {
    let Some((first, rest)) = all.split_first() else {
        return vec![Vec::new()];
    };
    let insert = |shorter: Vec<T>| {
        (0..=shorter.len()).map(move |at| {
            let mut longer = shorter.clone();
            longer.insert(at, first.clone());
            longer
        })
    };
    permutations(rest).into_iter().flat_map(insert).collect()
}

#[tokio::test]
async fn the_order_of_an_index_is_of_no_account() {
    let listed = [
        host(),
        with("erofs"),
        with("nosuch"),
        "linux/s390x".to_owned(),
        "linux(+erofs)/s390x".to_owned(),
    ];
    let entries = listed.map(|text| entry(&text));
    let orders = permutations(&entries);
    assert_eq!(orders.len(), 120);
    for order in orders {
        let backend = Simulated::new();
        backend.add_index(NAMESPACE, "image", &order);
        let engine = engine(&backend, EngineSettings::default());
        for (snapshotter, asked, chosen) in [
            ("overlayfs", None, 0),
            ("erofs", None, 1),
            ("nydus", None, 0),
            ("erofs", Some(host()), 0),
            ("erofs", Some(with("erofs")), 1),
            ("erofs", Some("linux(+erofs)/s390x".to_owned()), 4),
            ("overlayfs", Some("linux/s390x".to_owned()), 3),
        ] {
            let request = Request {
                platform: asked.as_deref().map(platform),
                ..Request::new("image").on(snapshotter)
            };
            let plan = engine.plan(&request).await.unwrap();
            assert_eq!(
                plan.manifest.digest, entries[chosen].1.manifest.digest,
                "{snapshotter} {asked:?}"
            );
        }
    }
}

#[tokio::test]
async fn containers_get_the_manifest_of_containerd() {
    let entries = [entry(&with("erofs")), entry(&host())];
    let [(_, native), (_, plain)] = &entries;
    let backend = Simulated::new();
    backend.add_index(NAMESPACE, "image", &entries);
    // The CRI keeps an image under its ID as well.
    for (_, image) in &entries {
        backend.add_index(NAMESPACE, image.config.digest.as_str(), &entries);
    }
    let engine = engine(&backend, EngineSettings::default());
    let by_id = |image: &SimulatedImage| image.config.digest.to_string();
    for (name, pick, chosen) in [
        ("image".to_owned(), ManifestPreference::Plain, plain),
        ("image".to_owned(), ManifestPreference::First, native),
        (by_id(native), ManifestPreference::First, native),
        (by_id(plain), ManifestPreference::First, plain),
        (by_id(plain), ManifestPreference::Plain, plain),
    ] {
        let request = Request {
            pick,
            ..Request::new(&name).on("erofs")
        };
        // The second time it is remembered.
        for _ in 0..2 {
            let plan = engine.plan(&request).await.unwrap();
            assert_eq!(
                plan.manifest.digest, chosen.manifest.digest,
                "{name} {pick:?}"
            );
        }
    }
}

#[tokio::test]
async fn the_first_configuration_that_fits_is_taken() {
    let configuration = |text: &str, snapshotter: &str, optional| Configuration {
        platform: platform(text),
        snapshotter: snapshotter.to_owned(),
        optional,
    };
    let plain = || configuration(&host(), "overlayfs", false);
    let erofs = |optional| configuration(&with("erofs"), "erofs", optional);
    let (default, first) = (vec![plain(), erofs(true)], vec![erofs(true), plain()]);
    let must = vec![erofs(false), plain()];
    let all = ["overlayfs", "erofs"];
    let only = ["overlayfs"];
    for (configurations, there, image, asked, want) in [
        (&default, &all[..], "both", None, Ok("overlayfs")),
        (&default, &all, "native", None, Ok("erofs")),
        (&default, &all, "both", Some("erofs"), Ok("erofs")),
        (&default, &all, "alone", None, Ok("erofs")),
        (&default, &all, "foreign", None, Ok("overlayfs")),
        (&default, &only, "native", None, Err(Kind::NotFound)),
        (
            &default,
            &only,
            "alone",
            None,
            Err(Kind::FailedPrecondition),
        ),
        (
            &default,
            &only,
            "both",
            Some("erofs"),
            Err(Kind::FailedPrecondition),
        ),
        (
            &default,
            &all,
            "both",
            Some("nosuch"),
            Err(Kind::FailedPrecondition),
        ),
        (&first, &all, "both", None, Ok("erofs")),
        (&first, &all, "plain", None, Ok("overlayfs")),
        (&first, &only, "both", None, Ok("overlayfs")),
        (&must, &all, "both", None, Ok("erofs")),
        (&must, &only, "both", None, Err(Kind::FailedPrecondition)),
        (&default, &all, "nobody", None, Err(Kind::NotFound)),
        (
            &Vec::new(),
            &all,
            "both",
            None,
            Err(Kind::FailedPrecondition),
        ),
    ] {
        let backend = backend(there);
        let (plain, native) = (entry(&host()), entry(&with("erofs")));
        backend.add_index(NAMESPACE, "both", &[plain.clone(), native.clone()]);
        backend.add_index(NAMESPACE, "plain", std::slice::from_ref(&plain));
        backend.add_index(NAMESPACE, "native", std::slice::from_ref(&native));
        backend.add_image(NAMESPACE, "alone", &native.1);
        backend.add_image(NAMESPACE, "foreign", &entry("linux/s390x").1);
        let settings = EngineSettings {
            configurations: configurations.clone(),
            ..EngineSettings::default()
        };
        let request = Request {
            platform: asked.map(|feature| platform(&with(feature))),
            ..Request::new(image)
        };
        let ended = engine(&backend, settings).unpack(request).report().await;
        let went = ended.as_ref().map(|report| report.snapshotter.as_str());
        let went = went.map_err(|error| error.kind());
        assert_eq!(went, want, "{image} {asked:?} {there:?}: {ended:?}");
        let prepared = backend.calls(Operation::Prepare);
        assert_eq!(prepared, usize::from(want.is_ok()), "{image} {asked:?}");
    }
}

#[tokio::test]
async fn the_error_names_the_unsupported_feature() {
    let backend = backend(&["overlayfs", "mine"]);
    let (_, odd) = entry(&with("odd"));
    backend.add_image(NAMESPACE, "odd", &odd);
    let mut settings = EngineSettings::default();
    let request = Request::new("odd").on("overlayfs");
    let error = engine(&backend, settings.clone()).plan(&request).await;
    let (platform, config) = (with("odd"), &odd.config.digest);
    let says = format!(
        "snapshotter overlayfs does not support platform {platform} of image odd (config {config}); \
         no snapshotter is known to take OS feature \"odd\""
    );
    assert_eq!(error.unwrap_err().to_string(), says);
    // The operator may know one.
    let mine = settings.profiles.entry("mine");
    mine.os_features.insert("odd".to_owned());
    let engine = engine(&backend, settings);
    let error = engine.plan(&request).await.unwrap_err();
    assert!(
        error.to_string().ends_with("it is supported by mine"),
        "{error}"
    );
    engine.plan(&Request::new("odd").on("mine")).await.unwrap();
}

#[tokio::test]
async fn an_index_of_many_entries_is_warned_of_in_little_time() {
    let backend = backend(&["overlayfs"]);
    let image = SimulatedImage::new([SimulatedLayer::new("a layer")]);
    let entries = |text: &str, count: usize| {
        let platforms = (0..count).map(|number| platform(&text.replace('N', &number.to_string())));
        let entries = platforms.map(|platform| (platform, image.clone()));
        entries.collect::<Vec<_>>()
    };
    let mut all = entries("linux(+x)/N", 15_000);
    all.extend(entries("linux/N", 15_000));
    all.push((Platform::host(), image.clone()));
    backend.add_index(NAMESPACE, "image", &all);
    let engine = engine(&backend, EngineSettings::default());
    let begin = std::time::Instant::now();
    let check = engine
        .check_image(&Request::new("image").on("overlayfs"))
        .await;
    assert!(begin.elapsed() < std::time::Duration::from_secs(20));
    let warnings = check.unwrap().warnings;
    assert!((1..=32).contains(&warnings.len()), "{}", warnings.len());
}

#[tokio::test]
async fn a_label_that_is_too_long_is_named_as_text() {
    let mut layer = SimulatedLayer::new("a layer");
    let (key, value) = ("containerd.io/snapshot/\n\u{1b}[31m", "x".repeat(4096));
    layer.descriptor.annotations = [(key.to_owned(), value)].into();
    let backend = backend(&["overlayfs"]);
    backend.add_image(NAMESPACE, "image", &SimulatedImage::new([layer]));
    let engine = engine(&backend, EngineSettings::default());
    let error = engine.plan(&Request::new("image").on("overlayfs")).await;
    let text = error.unwrap_err().to_string();
    assert!(!text.contains(char::is_control), "{text:?}");
}
