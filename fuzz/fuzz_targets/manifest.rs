// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Plans images from arbitrary indexes, manifests and configs.
//!
//! An input is a sequence of documents, separated by lines `---`. Leaves come first, and the last document
//! is the image. In a document, `$a` stands for the SHA-256 digest of the first document, `$b` for that of
//! the second, and so on; `$A` and `$B` for their SHA-512 digests. Letters of the same or later documents
//! stand for digests of missing blobs.
#![no_main]

mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use libfuzzer_sys::fuzz_target;
use resnap_core::testing::{Behaviour, Simulated};
use resnap_core::{
    ByteStream, ContentInfo, ContentReader, Descriptor, Digest, Error, Image, Images, Kind, Labels,
    ManifestPreference, Ports, Profiles, Result, Scope, erofs_layer, media_type,
};
use resnap_platforms::{Matcher, Platform};
use resnap_unpacker::{Engine, EngineSettings, Plan, Request};
use serde_json::Value;

const NAME: &str = "docker.io/library/web:1";

/// An image store with one image and its documents.
struct Store {
    target: Descriptor,
    documents: BTreeMap<Digest, Vec<u8>>,
}

impl Store {
    fn new(input: &[u8]) -> Self {
        let mut documents = Vec::new();
        let mut rest = input;
        loop {
            let separator = b"\n---\n";
            let end = rest.windows(separator.len()).position(|at| at == separator);
            let document = substitute(&rest[..end.unwrap_or(rest.len())], &documents);
            documents.push(document);
            match end {
                Some(end) => rest = &rest[end + separator.len()..],
                None => break,
            }
        }
        let image = documents.last().map_or(&[][..], Vec::as_slice);
        let media_type = serde_json::from_slice(image)
            .ok()
            .and_then(|image: Value| Some(image.get("mediaType")?.as_str()?.to_owned()));
        let target = Descriptor {
            media_type: media_type.unwrap_or_else(|| media_type::OCI_INDEX.to_owned()),
            digest: Digest::sha256(image),
            size: image.len() as u64,
            annotations: BTreeMap::new(),
            platform: None,
        };
        let by_digest = |document: Vec<u8>| {
            [
                (Digest::sha256(&document), document.clone()),
                (sha512(&document), document),
            ]
        };
        let documents = documents.into_iter().flat_map(by_digest).collect();
        Self { target, documents }
    }

    fn document(&self, digest: &Digest) -> Result<&Vec<u8>> {
        let found = self.documents.get(digest);
        found.ok_or_else(|| Error::new(Kind::NotFound, "read content", digest.as_str()))
    }

    fn image(&self) -> Image {
        Image {
            name: NAME.to_owned(),
            target: self.target.clone(),
            labels: Default::default(),
        }
    }
}

fn sha512(bytes: &[u8]) -> Digest {
    let any: Digest = format!("sha512:{:0128}", 0).parse().expect("a digest");
    any.same_algorithm(bytes)
}

/// Replaces placeholders such as `$a` by digests.
fn substitute(document: &[u8], before: &[Vec<u8>]) -> Vec<u8> {
    let mut filled = Vec::with_capacity(document.len());
    let mut bytes = document.iter();
    while let Some(&byte) = bytes.next() {
        let letter = bytes.as_slice().first().filter(|_| byte == b'$');
        let Some(letter) = letter.filter(|letter| letter.is_ascii_alphabetic()) else {
            filled.push(byte);
            continue;
        };
        bytes.next();
        let lower = letter.to_ascii_lowercase();
        let missing = [lower];
        let blob = before.get(usize::from(lower - b'a'));
        let blob = blob.map_or(&missing[..], Vec::as_slice);
        let digest = if letter.is_ascii_lowercase() {
            Digest::sha256(blob)
        } else {
            sha512(blob)
        };
        filled.extend_from_slice(digest.as_str().as_bytes());
    }
    filled
}

#[async_trait]
impl Images for Store {
    async fn get(&self, _: &Scope, name: &str) -> Result<Image> {
        let image = (name == NAME).then(|| self.image());
        image.ok_or_else(|| Error::new(Kind::NotFound, "get image", name))
    }

    async fn list(&self, _: &Scope) -> Result<Vec<Image>> {
        Ok(vec![self.image()])
    }
}

#[async_trait]
impl ContentReader for Store {
    async fn info(&self, _: &Scope, digest: &Digest) -> Result<ContentInfo> {
        Ok(ContentInfo {
            size: self.document(digest)?.len() as u64,
            labels: Labels::new(),
        })
    }

    async fn open(&self, _: &Scope, digest: &Digest) -> Result<ByteStream> {
        let bytes = self.document(digest)?.clone().into();
        Ok(futures::stream::iter([Ok(bytes)]).boxed())
    }
}

/// Checks that a plan agrees with the documents.
fn compare(plan: &Plan, store: &Store) {
    let read = |digest| serde_json::from_slice(&store.documents[digest]).ok();
    let manifest: Option<Value> = read(&plan.manifest.digest);
    let config: Option<Value> = read(&plan.config.digest);
    // resnap ignores invalid values in fields that it does not use.
    let (Some(manifest), Some(config)) = (manifest, config) else {
        return;
    };
    assert_eq!(manifest["config"]["digest"], plan.config.digest.as_str());
    let layers = manifest["layers"].as_array().into_iter().flatten();
    let is_layer = |layer: &&Value| {
        layer["mediaType"]
            .as_str()
            .is_some_and(media_type::is_layer)
    };
    let digests = layers.filter(is_layer).map(|layer| &layer["digest"]);
    let planned = plan.layers.iter();
    assert!(digests.eq(planned.map(|layer| layer.descriptor.digest.as_str())));
    let diff_ids = config["rootfs"]["diff_ids"].as_array();
    let diff_ids: Vec<&Value> = diff_ids.into_iter().flatten().collect();
    let mut planned = plan.layers.iter();
    if diff_ids.is_empty() {
        // The annotations of layers of the EROFS image format can state diff IDs.
        assert!(planned.all(|layer| erofs_layer::is_of_format(&layer.descriptor.media_type)));
        return;
    }
    assert!(
        diff_ids
            .into_iter()
            .eq(planned.map(|layer| layer.diff_id.0.as_str()))
    );
}

/// Checks that a plan is for the requested platform.
fn check_platform(plan: &Plan, request: &Request, store: &Store, profiles: &Profiles) {
    let snapshotter = request.snapshotter.as_deref().expect("a snapshotter");
    let not_taken = profiles.not_taken(snapshotter, &plan.os_features);
    assert!(not_taken.is_empty(), "{not_taken:?}");
    let is_index = media_type::is_index(&store.target.media_type);
    if !is_index && request.platform.is_none() {
        return;
    }
    let offered = Platform {
        os_features: profiles
            .get(snapshotter)
            .os_features
            .iter()
            .cloned()
            .collect(),
        ..Platform::host()
    };
    let matcher = match (&request.platform, request.pick) {
        (Some(platform), _) => Matcher::only(platform),
        (None, ManifestPreference::Best) => Matcher::only(&offered),
        (None, ManifestPreference::Plain) => Matcher::default(),
        (None, ManifestPreference::First) => Matcher::default().ignoring_features(),
    };
    let listed = plan.manifest.platform.as_ref();
    assert!(matcher.matches(listed.unwrap_or(&plan.platform)));
}

async fn run(input: &[u8]) {
    let store = Arc::new(Store::new(input));
    let simulated = Simulated::new();
    for name in ["overlayfs", "erofs", "nydus"] {
        simulated.add_snapshotter(name, Behaviour::Ordinary);
    }
    let ports = Ports {
        images: store.clone(),
        content: store.clone(),
        ..simulated.ports()
    };
    let engine = Engine::new(ports, "k8s.io", EngineSettings::default()).expect("an engine");
    for (snapshotter, pick, platform) in [
        ("overlayfs", ManifestPreference::Plain, None),
        ("erofs", ManifestPreference::First, None),
        ("erofs", ManifestPreference::Best, None),
        ("nydus", ManifestPreference::Best, None),
        (
            "erofs",
            ManifestPreference::Best,
            Some("linux(+erofs)/arm64"),
        ),
    ] {
        let mut request = Request::new(NAME).on(snapshotter);
        request.pick = pick;
        request.platform = platform.map(|text| text.parse().expect("a platform"));
        let plan = match engine.plan(&request).await {
            Ok(plan) => plan,
            Err(error) => {
                plan::verify_error(&error);
                continue;
            }
        };
        plan::verify(&plan);
        compare(&plan, &store);
        check_platform(&plan, &request, &store, engine.profiles());
        assert_eq!(engine.plan(&request).await.expect("the plan again"), plan);
        let check = engine.check_image(&request).await.expect("a check");
        assert_eq!(check.layers.len(), plan.layers.len());
        assert!(check.warnings.len() <= 32);
        if pick == ManifestPreference::Plain && plan.config.digest.algorithm() == "sha256" {
            let found = engine.resolve(plan.config.digest.as_str()).await;
            assert_eq!(found.expect("the image by its ID").name, NAME);
        }
    }
}

thread_local! {
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
}

fuzz_target!(|input: &[u8]| RUNTIME.with(|runtime| runtime.block_on(run(input))));
