// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Blobs are listed, and not looked up one after the other.

// Test code: it fails by panicking.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use resnap_core::testing::{Behaviour, Simulated, SimulatedImage, SimulatedLayer};
use resnap_core::{ByteStream, ContentInfo, ContentReader, Digest, Result, Scope};
use resnap_unpacker::{Engine, EngineSettings, Request};

const NAMESPACE: &str = "k8s.io";

/// Content whose lookups are recorded.
struct Recorded {
    inner: Arc<dyn ContentReader>,
    lookups: Arc<Mutex<Vec<Digest>>>,
}

#[async_trait]
impl ContentReader for Recorded {
    async fn info(&self, scope: &Scope, digest: &Digest) -> Result<ContentInfo> {
        self.lookups.lock().unwrap().push(digest.clone());
        self.inner.info(scope, digest).await
    }

    async fn open(&self, scope: &Scope, digest: &Digest) -> Result<ByteStream> {
        self.inner.open(scope, digest).await
    }

    async fn existing(&self, scope: &Scope, digests: &[Digest]) -> Result<HashSet<Digest>> {
        self.inner.existing(scope, digests).await
    }
}

#[tokio::test]
async fn the_layers_of_an_image_id_are_listed_at_once() {
    let backend = Simulated::new();
    backend.add_snapshotter("erofs", Behaviour::Ordinary);
    let image = SimulatedImage::new(["base", "middle", "top"].map(SimulatedLayer::new));
    backend.add_image(NAMESPACE, "docker.io/library/web:1", &image);
    let (mut ports, lookups) = (backend.ports(), Arc::default());
    ports.content = Arc::new(Recorded {
        inner: ports.content,
        lookups: Arc::clone(&lookups),
    });
    let engine = Engine::new(ports, NAMESPACE, EngineSettings::default()).unwrap();
    let id = image.config.digest.to_string();
    engine.unpack(Request::new(id).on("erofs")).await.unwrap();
    let lookups = lookups.lock().unwrap();
    for layer in &image.layers {
        let digest = &layer.descriptor.digest;
        assert!(!lookups.contains(digest), "{digest} of {lookups:?}");
    }
}
