// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers that need a proof: no layer counts as ready that came to its snapshot without one.

// Test code: it fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use resnap_core::testing::{
    Behaviour, Effect, Fault, Operation, Simulated, SimulatedImage, SimulatedLayer,
};
use resnap_core::{
    Applied, Applier, BlobSource, ByteStream, ChainView, Descriptor, Digest, EnsureRequest, Error,
    Integrity, Kind, Labels, ManifestPreference, MissingBlob, Mount, NotReady, Proof, ProofOrigin,
    ProofSignature, Referrer, Result, Scope, UnpackService as _, error_chain, labels,
};
use resnap_unpacker::{Engine, EngineSettings, Plan, Reader, Request, Source, UnpackError};

const NAMESPACE: &str = "k8s.io";
const IMAGE: &str = "docker.io/library/web:1";

/// An applier that gives each layer a proof.
struct Proving {
    inner: Arc<dyn Applier>,
    /// The number of checks of signatures.
    verified: Mutex<usize>,
    /// Whether signatures are still accepted.
    accepts: bool,
    /// Whether artifacts are looked for.
    trusts: bool,
}

fn proof() -> Proof {
    let mut proof = Proof::new("00".repeat(32), ProofOrigin::Artifact);
    proof.signature = Some(ProofSignature {
        digest: "sha256:11".to_owned(),
        signer: "CN=publisher".to_owned(),
    });
    proof
}

#[async_trait]
impl Applier for Proving {
    async fn apply(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        sync_fs: bool,
    ) -> Result<Applied> {
        let applied = self.inner.apply(scope, layer, mounts, sync_fs).await?;
        Ok(Applied {
            proof: Some(proof()),
            ..applied
        })
    }

    async fn require_integrity(&self, _: &str, _: Integrity) -> Result<()> {
        Ok(())
    }

    fn trusts_signers(&self) -> bool {
        self.trusts
    }

    async fn verify_signed(&self, _: &ChainView) -> Result<()> {
        *self.verified.lock().unwrap() += 1;
        match self.accepts {
            true => Ok(()),
            false => Err(Error::new(Kind::PermissionDenied, "verify", "layers")),
        }
    }
}

/// A source with an artifact whose bytes never come, and these blobs.
#[derive(Default)]
struct Stalled {
    blobs: BTreeMap<Digest, Vec<u8>>,
    opened: Mutex<BTreeSet<Digest>>,
}

#[async_trait]
impl BlobSource for Stalled {
    fn name(&self) -> &'static str {
        "stalled"
    }

    async fn open(&self, blob: &MissingBlob, _: u64) -> Result<ByteStream> {
        let digest = &blob.descriptor.digest;
        let Some(bytes) = self.blobs.get(digest).cloned() else {
            return std::future::pending().await;
        };
        self.opened.lock().unwrap().insert(digest.clone());
        Ok(stream::once(async { Ok(bytes.into()) }).boxed())
    }

    async fn referrers(&self, subject: &MissingBlob, types: &[&str]) -> Result<Vec<Referrer>> {
        let of = subject.descriptor.digest.as_str();
        Ok(vec![Referrer::new(
            types[0],
            Digest::sha256(of.as_bytes()),
            9,
        )])
    }
}

fn image() -> SimulatedImage {
    SimulatedImage::new(["a", "b", "c"].map(SimulatedLayer::new))
}

/// An image, and an engine on whose snapshotter its layers need a proof.
struct Bed {
    backend: Simulated,
    applier: Arc<Proving>,
    engine: Engine,
    plan: Arc<Plan>,
}

impl Bed {
    async fn new(behaviour: Behaviour, integrity: Integrity, accepts: bool) -> Self {
        Self::with_sources(behaviour, integrity, accepts, Vec::new()).await
    }

    async fn with_sources(
        behaviour: Behaviour,
        integrity: Integrity,
        accepts: bool,
        sources: Vec<Source>,
    ) -> Self {
        let backend = Simulated::new();
        backend.add_snapshotter("erofs", behaviour);
        let image = image();
        backend.add_image(NAMESPACE, IMAGE, &image);
        let mut ports = backend.ports();
        let applier = Arc::new(Proving {
            inner: ports.applier,
            verified: Mutex::default(),
            accepts,
            trusts: !sources.is_empty(),
        });
        ports.applier = Arc::clone(&applier) as _;
        let mut settings = EngineSettings::default();
        settings.sources = sources;
        settings.profiles.entry("erofs").integrity = integrity;
        let engine = Engine::new(ports, NAMESPACE, settings).unwrap();
        let plan = engine.plan(&Request::new(IMAGE).on("erofs")).await.unwrap();
        Self {
            backend,
            applier,
            engine,
            plan,
        }
    }

    async fn unpack(&self) -> std::result::Result<(), UnpackError> {
        let job = self.engine.unpack(Request::new(IMAGE).on("erofs"));
        job.report().await.map(drop)
    }

    async fn is_ready(&self) -> bool {
        Reader::is_ready(&self.engine, &self.plan, "erofs")
            .await
            .unwrap()
    }

    /// Commits the layers with these labels like other clients, besides those that all clients set.
    fn commit(&self, added: [Labels; 3]) {
        for (layer, added) in self.plan.layers.iter().zip(added) {
            let mut labels = layer.labels.clone();
            labels.extend(added);
            let parent = layer.parent.as_ref();
            let made = self
                .backend
                .unpack(NAMESPACE, "erofs", parent, &layer.diff_id, &labels);
            assert!(made);
        }
    }

    async fn ensure(&self) -> std::result::Result<(), NotReady> {
        let request = EnsureRequest {
            image: IMAGE,
            reference: None,
            snapshotter: "erofs",
            repair: false,
            pod: None,
            pick: ManifestPreference::default(),
        };
        self.engine.ensure(request, &|_| {}).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_another_client_made_meanwhile_needs_its_proof() {
    for integrity in [Integrity::Verity, Integrity::Signed] {
        // The labels are those of a pull of the same image by containerd.
        let bed = Bed::new(Behaviour::Remote, integrity, true).await;
        let error = bed.unpack().await.unwrap_err();
        assert!(matches!(error, UnpackError::Unproven { .. }), "{error:?}");
        assert!(!bed.is_ready().await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_failed_is_not_taken_for_that_of_another_client() {
    let bed = Bed::new(Behaviour::Ordinary, Integrity::Signed, true).await;
    bed.backend.set_faults([Fault {
        operation: Operation::Commit,
        call: 3,
        effect: Effect::Fail(Kind::Unavailable),
    }]);
    let unpacked = tokio::join!(bed.unpack(), async {
        while bed.backend.calls(Operation::Commit) < 3 {
            tokio::task::yield_now().await;
        }
        bed.commit([(); 3].map(|()| Labels::new()));
    });
    let error = unpacked.0.unwrap_err();
    assert!(matches!(error, UnpackError::Unproven { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn every_layer_needs_the_proof() {
    let proven = || proof().labels();
    let mut unsigned = proof();
    unsigned.signature = None;
    let copied = Labels::from([(labels::COPIED_FROM.to_owned(), "overlayfs".to_owned())]);
    let copy: Labels = proven().into_iter().chain(copied).collect();
    for (added, ready) in [
        (
            [proven(), proven(), proven()],
            BTreeSet::from(["verity", "signed"]),
        ),
        (
            [unsigned.labels(), proven(), proven()],
            BTreeSet::from(["verity"]),
        ),
        // The tree of a layer says nothing about those below.
        ([Labels::new(), proven(), proven()], BTreeSet::new()),
        ([proven(), Labels::new(), proven()], BTreeSet::new()),
        // Nothing proves that a copy is the layer.
        ([proven(), proven(), copy.clone()], BTreeSet::new()),
        ([copy, proven(), proven()], BTreeSet::new()),
    ] {
        for integrity in [Integrity::Verity, Integrity::Signed] {
            let bed = Bed::new(Behaviour::Ordinary, integrity, true).await;
            bed.commit(added.clone());
            let expected = ready.contains(integrity.as_str());
            assert_eq!(bed.is_ready().await, expected, "{integrity:?}, {added:?}");
            assert_eq!(
                bed.ensure().await.is_ok(),
                expected,
                "{integrity:?}, {added:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn signatures_are_verified_also_after_an_unpack() {
    for accepts in [true, false] {
        let bed = Bed::new(Behaviour::Ordinary, Integrity::Signed, accepts).await;
        for times in 1..=2 {
            let ensured = bed.ensure().await;
            assert_eq!(*bed.applier.verified.lock().unwrap(), times);
            match ensured {
                Ok(()) => assert!(accepts),
                Err(error) => assert!(!accepts && matches!(error, NotReady::Unproven(_))),
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn layers_that_disappear_meanwhile_are_not_verified() {
    // All of them, and the top one.
    for gone in [3, 1] {
        let bed = Bed::new(Behaviour::Ordinary, Integrity::Signed, true).await;
        bed.commit([(); 3].map(|()| proof().labels()));
        let found = bed.backend.calls(Operation::Stat) + 1;
        bed.backend.set_faults((1..=gone).map(|call| Fault {
            operation: Operation::Stat,
            call: found + call,
            effect: Effect::Fail(Kind::NotFound),
        }));
        let request = Request::new(IMAGE).on("erofs");
        let error = bed.engine.verify_signed(&request, "erofs").await;
        let error = error.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "{gone}");
        let why = error_chain(&error);
        assert!(
            why.contains("it does not have all of them any more"),
            "{why}"
        );
        assert_eq!(*bed.applier.verified.lock().unwrap(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_artifact_that_does_not_come_is_not_waited_for_without_need() {
    let (ordinary, sources) = (
        Behaviour::Ordinary,
        vec![Source::Blobs(Arc::<Stalled>::default())],
    );
    let bed = Bed::with_sources(ordinary, Integrity::Verity, true, sources.clone()).await;
    let limit = Duration::from_secs(130);
    tokio::time::timeout(limit, bed.unpack())
        .await
        .unwrap()
        .unwrap();
    // One without a signature is not what was asked for.
    let bed = Bed::with_sources(ordinary, Integrity::Signed, true, sources).await;
    assert!(tokio::time::timeout(limit, bed.unpack()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn layers_are_fetched_while_artifacts_are_looked_for() {
    let image = image();
    let layers = image.layers.iter().map(|layer| &layer.descriptor.digest);
    let blobs = layers.map(|digest| (digest.clone(), image.blob(digest).unwrap().to_vec()));
    let source = Arc::new(Stalled {
        blobs: blobs.collect(),
        opened: Mutex::default(),
    });
    let sources = vec![Source::Blobs(Arc::clone(&source) as _)];
    let bed = Bed::with_sources(Behaviour::Ordinary, Integrity::Signed, true, sources).await;
    for digest in source.blobs.keys() {
        bed.backend.remove_blob(NAMESPACE, digest);
    }
    let limit = Duration::from_secs(30);
    assert!(tokio::time::timeout(limit, bed.unpack()).await.is_err());
    let fetched = source.opened.lock().unwrap().clone();
    assert!(fetched.iter().eq(source.blobs.keys()), "{fetched:?}");
}
