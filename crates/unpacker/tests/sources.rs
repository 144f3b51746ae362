// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers whose blobs are missing are got from sources.

// Test code: it fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use resnap_core::testing::{Behaviour, Simulated, SimulatedImage, SimulatedLayer};
use resnap_core::{
    Applied, Applier, ApplyMonitor, Batch, BatchApplier, BlobSource, ByteStream, ChainView,
    Descriptor, Digest, Error, Inspection, Kind, Labels, MissingBlob, Mount, Platform, PodId,
    Result, Scope, error_chain, in_batch,
};
use resnap_unpacker::{
    Engine, EngineSettings, Event, LayerOutcome, Phase, Request, Source, UnpackError,
};

const NAMESPACE: &str = "k8s.io";

/// A source in memory that records what it is asked for.
#[derive(Default)]
struct Memory {
    blobs: Mutex<BTreeMap<Digest, Vec<u8>>>,
    opened: Mutex<Vec<(MissingBlob, u64)>>,
}

impl Memory {
    fn opened(&self) -> Vec<Digest> {
        let opened = self.opened.lock().unwrap();
        let digests = opened
            .iter()
            .map(|(blob, _)| blob.descriptor.digest.clone());
        digests.collect()
    }
}

#[async_trait]
impl BlobSource for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn open(&self, blob: &MissingBlob, offset: u64) -> Result<ByteStream> {
        self.opened.lock().unwrap().push((blob.clone(), offset));
        tokio::time::sleep(Duration::from_millis(10)).await;
        let blobs = self.blobs.lock().unwrap();
        let bytes = blobs.get(&blob.descriptor.digest).ok_or_else(|| {
            Error::new(Kind::NotFound, "find", blob.descriptor.digest.as_str())
                .with_source("it is not in memory")
        })?;
        let rest = bytes[usize::try_from(offset).unwrap()..].to_vec();
        let pieces: Vec<Result<Bytes>> = rest
            .chunks(16)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        Ok(futures::stream::iter(pieces).boxed())
    }
}

/// An image whose blobs of the layers at `missing` are in the source only.
fn discarded(missing: &[usize]) -> (Simulated, Arc<Memory>, SimulatedImage) {
    let backend = Simulated::new();
    backend.add_snapshotter("erofs", Behaviour::Ordinary);
    backend.add_snapshotter("nydus", Behaviour::Remote);
    let layers = ["a", "b", "c"].map(SimulatedLayer::new);
    let image = SimulatedImage::new(layers);
    backend.add_image(NAMESPACE, "docker.io/library/web:1", &image);
    let source = Memory::default();
    for index in missing {
        let digest = &image.layers[*index].descriptor.digest;
        let bytes = image.blob(digest).unwrap().to_vec();
        let mut blobs = source.blobs.lock().unwrap();
        blobs.insert(digest.clone(), bytes);
        backend.remove_blob(NAMESPACE, digest);
    }
    (backend, Arc::new(source), image)
}

fn engine(backend: &Simulated, source: &Arc<Memory>) -> Engine {
    let mut settings = EngineSettings::default();
    settings.sources = vec![Source::Blobs(Arc::clone(source) as _)];
    Engine::new(backend.ports(), NAMESPACE, settings).unwrap()
}

#[tokio::test(start_paused = true)]
async fn only_needed_and_missing_layers_are_fetched() {
    let (backend, source, image) = discarded(&[0, 2]);
    let engine = engine(&backend, &source);
    let job = engine.unpack(Request::new("web:1").on("erofs"));
    let events: Vec<Event> = job.events().collect().await;
    let report = job.await.unwrap();
    assert_eq!(report.count(LayerOutcome::Applied), 3);
    let digest = |index: usize| image.layers[index].descriptor.digest.clone();
    let opened: BTreeSet<Digest> = source.opened().into_iter().collect();
    assert_eq!(opened, BTreeSet::from([digest(0), digest(2)]));
    let fetching = |event: &&Event| event.phase == Phase::Fetching;
    assert!(
        events
            .iter()
            .any(|event| fetching(&event) && event.layer == 1)
    );
    assert!(
        !events
            .iter()
            .any(|event| fetching(&event) && event.layer == 2)
    );
    let (blob, _) = source.opened.lock().unwrap()[0].clone();
    assert_eq!(blob.reference.as_deref(), Some("docker.io/library/web:1"));

    backend.collect_garbage();
    let plan = engine.plan(&Request::new("web:1")).await.unwrap();
    assert!(engine.is_ready(&plan, "erofs").await.unwrap());
    assert!(backend.leases(NAMESPACE).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_snapshotter_that_needs_no_content_fetches_none() {
    let (backend, source, _) = discarded(&[0, 1, 2]);
    let engine = engine(&backend, &source);
    let report = engine.unpack(Request::new("web:1").on("nydus")).await;
    assert_eq!(report.unwrap().count(LayerOutcome::Remote), 3);
    assert_eq!(source.opened(), []);
}

#[tokio::test(start_paused = true)]
async fn jobs_fetch_a_blob_once() {
    let (backend, source, _) = discarded(&[0, 1, 2]);
    backend.add_snapshotter("native", Behaviour::Ordinary);
    let (one, two) = (engine(&backend, &source), engine(&backend, &source));
    let jobs = [
        one.unpack(Request::new("web:1").on("erofs")),
        one.unpack(Request::new("web:1").on("native")),
        two.unpack(Request::new("web:1").on("native")),
    ];
    for job in jobs {
        job.await.unwrap();
    }
    let mut opened = source.opened();
    opened.sort();
    let all = opened.len();
    opened.dedup();
    assert_eq!((opened.len(), all), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn wrong_bytes_fail_and_leave_nothing() {
    let (backend, source, image) = discarded(&[1]);
    let digest = &image.layers[1].descriptor.digest;
    for change in [
        |bytes: &mut Vec<u8>| bytes[3] ^= 1,
        |bytes: &mut Vec<u8>| bytes.truncate(7),
        |bytes: &mut Vec<u8>| bytes.push(0),
        |bytes: &mut Vec<u8>| bytes.clear(),
    ] {
        let mut wrong = image.blob(digest).unwrap().to_vec();
        change(&mut wrong);
        source.blobs.lock().unwrap().insert(digest.clone(), wrong);
        let error = engine(&backend, &source)
            .unpack(Request::new("web:1").on("erofs"))
            .await
            .unwrap_err();
        let UnpackError::MissingBlob { tried, .. } = &error else {
            panic!("{error:?}");
        };
        assert_eq!(tried.len(), 1, "{tried:?}");
        assert_eq!(tried[0].error.kind(), Kind::DataLoss);
        assert!(error.to_string().contains("memory: "), "{error}");
        assert_eq!(backend.ingests(NAMESPACE), Vec::<String>::new());
        assert!(!backend.has_blob(NAMESPACE, digest));
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_names_each_source_and_its_reason() {
    let (backend, source, image) = discarded(&[1]);
    source.blobs.lock().unwrap().clear();
    let error = engine(&backend, &source)
        .unpack(Request::new("web:1").on("erofs"))
        .await
        .unwrap_err();
    let text = error.to_string();
    let digest = &image.layers[1].descriptor.digest;
    for part in [digest.as_str(), "erofs", "memory: ", "it is not in memory"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(error.kind(), Kind::NotFound);
}

/// A source whose pieces come at these intervals, for images of `evil.io`.
struct Slow(Arc<Memory>, Duration);

/// Too slow to be unpacked meanwhile.
const SLOW: Duration = Duration::from_secs(25);

#[async_trait]
impl BlobSource for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    async fn open(&self, blob: &MissingBlob, offset: u64) -> Result<ByteStream> {
        let is_slow = blob.reference.as_deref() == Some("evil.io/web:1");
        let (stream, pause) = (self.0.open(blob, offset).await?, self.1);
        Ok(stream
            .then(move |piece| async move {
                if is_slow {
                    tokio::time::sleep(pause).await;
                }
                piece
            })
            .boxed())
    }
}

/// The same large layer in the images of two tenants, and the source that has it.
fn shared_layer() -> (Simulated, Arc<Memory>) {
    let backend = Simulated::new();
    for snapshotter in ["erofs", "native", "nydus"] {
        backend.add_snapshotter(snapshotter, Behaviour::Ordinary);
    }
    let image = SimulatedImage::new([SimulatedLayer::new(&"x".repeat(20_000))]);
    for name in ["evil.io/web:1", "docker.io/library/web:1"] {
        backend.add_image(NAMESPACE, name, &image);
    }
    let digest = &image.layers[0].descriptor.digest;
    backend.remove_blob(NAMESPACE, digest);
    let bytes = image.blob(digest).unwrap().to_vec();
    let source = Memory::default();
    source.blobs.lock().unwrap().insert(digest.clone(), bytes);
    (backend, Arc::new(source))
}

/// An engine with a shared layer, whose source is slow for `evil.io`.
fn slow_engine() -> (Simulated, Engine, MissingBlob, Vec<u8>) {
    let (backend, source) = shared_layer();
    let (digest, bytes) = source
        .blobs
        .lock()
        .unwrap()
        .first_key_value()
        .map(|(digest, bytes)| (digest.clone(), bytes.clone()))
        .unwrap();
    let blob = MissingBlob {
        descriptor: Descriptor {
            media_type: String::new(),
            digest,
            size: bytes.len() as u64,
            annotations: BTreeMap::new(),
            platform: None,
        },
        reference: None,
        repositories: BTreeMap::new(),
        urls: Vec::new(),
        pods: Default::default(),
    };
    let mut settings = EngineSettings::default();
    settings.sources = vec![Source::Blobs(Arc::new(Slow(source, SLOW)))];
    let engine = Engine::new(backend.ports(), NAMESPACE, settings).unwrap();
    (backend, engine, blob, bytes)
}

#[tokio::test(start_paused = true)]
async fn a_slow_registry_does_not_block_others_for_long() {
    for snapshotter in ["erofs", "native"] {
        let (_, engine, _, _) = slow_engine();
        let slow = engine.unpack(Request::new("evil.io/web:1").on("erofs"));
        tokio::time::sleep(Duration::from_secs(30)).await;
        let other = engine.unpack(Request::new("docker.io/library/web:1").on(snapshotter));
        let limit = Duration::from_secs(400);
        let other = tokio::time::timeout(limit, other).await;
        other.expect("it is blocked").unwrap();
        drop(slow);
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_never_removes_the_ingest_of_a_pull() {
    for cancels in [true, false] {
        let (backend, engine, blob, bytes) = slow_engine();
        let (scope, writer) = (Scope::new(NAMESPACE), backend.ports().writer);
        let name = format!("layer-{}", blob.descriptor.digest);
        let pull = writer.ingest(&scope, &name, &blob.descriptor).await;
        let mut pull = pull.unwrap();
        pull.write(Bytes::copy_from_slice(&bytes[..10]))
            .await
            .unwrap();
        let job = engine.unpack(Request::new("docker.io/library/web:1").on("erofs"));
        tokio::time::sleep(Duration::from_secs(5)).await;
        if cancels {
            job.canceller().cancel();
        }
        job.await.unwrap_err();
        pull.write(Bytes::copy_from_slice(&bytes[10..]))
            .await
            .unwrap();
        pull.commit(&Labels::new()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_cancelled_job_fetched_goes_with_its_lease() {
    for snapshotter in ["erofs", "nydus"] {
        let (backend, engine, _, _) = slow_engine();
        let job = engine.unpack(Request::new("evil.io/web:1").on(snapshotter));
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(backend.ingests(NAMESPACE).len(), 1, "{snapshotter}");
        job.canceller().cancel();
        job.await.unwrap_err();
        backend.collect_garbage();
        assert_eq!(backend.ingests(NAMESPACE), Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn wrong_bytes_of_another_client_are_fetched_again() {
    let (backend, engine, blob, bytes) = slow_engine();
    let (scope, writer) = (Scope::new(NAMESPACE), backend.ports().writer);
    let name = format!("layer-{}", blob.descriptor.digest);
    let other = writer.ingest(&scope, &name, &blob.descriptor).await;
    let wrong = Bytes::from(vec![b'?'; bytes.len() / 2]);
    other.unwrap().write(wrong).await.unwrap();
    let job = engine.unpack(Request::new("docker.io/library/web:1").on("erofs"));
    job.await.unwrap();
}

/// A source that serves one pod only, after a while.
struct ForPod(Arc<Memory>, PodId);

#[async_trait]
impl BlobSource for ForPod {
    fn name(&self) -> &'static str {
        "for-pod"
    }

    async fn open(&self, blob: &MissingBlob, offset: u64) -> Result<ByteStream> {
        if !blob.pods.contains(&self.1) {
            return Err(Error::new(Kind::Unauthenticated, "fetch", "blob"));
        }
        self.0.open(blob, offset).await
    }
}

#[tokio::test(start_paused = true)]
async fn the_credentials_of_each_pod_that_waits_are_tried() {
    let (backend, source, _) = discarded(&[0, 1, 2]);
    let mut settings = EngineSettings::default();
    settings.sources = vec![Source::Blobs(Arc::new(ForPod(
        source,
        PodId::new("shop/a", "2"),
    )))];
    let engine = Engine::new(backend.ports(), NAMESPACE, settings).unwrap();
    let pods = [PodId::new("shop/a", "1"), PodId::new("shop/a", "2")];
    let jobs = pods.map(|pod| {
        let mut request = Request::new("web:1").on("erofs");
        request.pod = Some(pod);
        engine.unpack(request)
    });
    for job in jobs {
        job.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_document_that_a_source_guards_is_denied() {
    let (backend, source, image) = discarded(&[]);
    backend.remove_blob(NAMESPACE, &image.config.digest);
    let mut settings = EngineSettings::default();
    let pod = PodId::new("shop/a", "1");
    settings.sources = vec![Source::Blobs(Arc::new(ForPod(source, pod.clone())))];
    let engine = Engine::new(backend.ports(), NAMESPACE, settings).unwrap();
    let mut request = Request::new("web:1").on("erofs");
    let error = engine.unpack(request.clone()).await.unwrap_err();
    assert!(error.is_denied(), "{error:?}");
    request.pod = Some(pod);
    let error = engine.unpack(request).await.unwrap_err();
    assert!(!error.is_denied(), "{error:?}");
}

/// An applier that writes layers from bytes that are being fetched.
struct Incoming {
    inner: Arc<dyn Applier>,
    /// The layers whose bytes were read to their end.
    read: Arc<Mutex<Vec<usize>>>,
    /// The time that a layer takes after its bytes were read; `None` if it is then written from its blob.
    writes: Option<Duration>,
}

struct IncomingBatch {
    inner: Arc<dyn BatchApplier>,
    monitor: Arc<dyn ApplyMonitor>,
    read: Arc<Mutex<Vec<usize>>>,
    writes: Option<Duration>,
}

#[async_trait]
impl Applier for Incoming {
    async fn apply(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        sync_fs: bool,
    ) -> Result<Applied> {
        self.inner.apply(scope, layer, mounts, sync_fs).await
    }

    fn batch(&self, batch: &Batch) -> Option<Arc<dyn BatchApplier>> {
        Some(Arc::new(IncomingBatch {
            inner: in_batch(&self.inner, batch.clone()),
            monitor: Arc::clone(&batch.monitor),
            read: Arc::clone(&self.read),
            writes: self.writes,
        }))
    }
}

#[async_trait]
impl BatchApplier for IncomingBatch {
    async fn apply(&self, scope: &Scope, index: usize, mounts: &[Mount]) -> Result<Applied> {
        {
            let _permit = self.monitor.admit(index).await;
            if let Some(mut incoming) = self.monitor.incoming(index) {
                let mut bytes = Vec::new();
                while let Some(piece) = incoming.next().await {
                    bytes.extend_from_slice(&piece?);
                }
                self.read.lock().unwrap().push(index);
                if let Some(time) = self.writes {
                    tokio::time::sleep(time).await;
                    return Ok(Applied {
                        diff_id: Some(Digest::sha256(&bytes)),
                        size: bytes.len() as u64,
                        is_own_image: false,
                        proof: None,
                    });
                }
            }
        }
        self.inner.apply(scope, index, mounts).await
    }

    async fn end(&self) {
        self.inner.end().await;
    }
}

fn incoming_engine(
    backend: &Simulated,
    source: Arc<dyn BlobSource>,
    writes: Option<Duration>,
) -> (Engine, Arc<Mutex<Vec<usize>>>) {
    let mut ports = backend.ports();
    let read = Arc::<Mutex<Vec<usize>>>::default();
    ports.applier = Arc::new(Incoming {
        inner: ports.applier,
        read: Arc::clone(&read),
        writes,
    });
    let mut settings = EngineSettings::default();
    settings.sources = vec![Source::Blobs(source)];
    let engine = Engine::new(ports, NAMESPACE, settings).unwrap();
    (engine, read)
}

#[tokio::test(start_paused = true)]
async fn a_layer_is_written_from_the_bytes_that_are_fetched() {
    let (backend, source) = shared_layer();
    let source = Slow(source, Duration::from_millis(1));
    let (engine, read) = incoming_engine(&backend, Arc::new(source), None);
    let job = engine.unpack(Request::new("evil.io/web:1").on("erofs"));
    assert_eq!(job.await.unwrap().count(LayerOutcome::Applied), 1);
    assert_eq!(*read.lock().unwrap(), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_layer_of_wrong_bytes_is_not_committed() {
    // The blob turns out wrong before or while the layer is written, or after.
    for writes in [None, Some(Duration::ZERO), Some(Duration::from_secs(60))] {
        let (backend, source, image) = discarded(&[0]);
        let digest = &image.layers[0].descriptor.digest;
        let mut wrong = image.blob(digest).unwrap().to_vec();
        wrong[3] ^= 1;
        source.blobs.lock().unwrap().insert(digest.clone(), wrong);
        let (engine, read) = incoming_engine(&backend, source, writes);
        let error = engine.unpack(Request::new("web:1").on("erofs")).await;
        let error = error.unwrap_err();
        let UnpackError::MissingBlob { tried, .. } = &error else {
            panic!("{writes:?}: {error}");
        };
        assert_eq!(tried[0].error.kind(), Kind::DataLoss);
        assert_eq!(*read.lock().unwrap(), [0]);
        assert_eq!(backend.snapshots(NAMESPACE, "erofs"), []);
    }
}

#[tokio::test(start_paused = true)]
async fn slow_bytes_are_unpacked_when_all_are_there() {
    let (backend, source) = shared_layer();
    let source = Slow(source, Duration::from_millis(10));
    let (engine, read) = incoming_engine(&backend, Arc::new(source), None);
    let job = engine.unpack(Request::new("evil.io/web:1").on("erofs"));
    assert_eq!(job.await.unwrap().count(LayerOutcome::Applied), 1);
    assert!(read.lock().unwrap().is_empty());
}

/// The number of `ENOSPC`.
const NO_SPACE: i32 = 28;

/// An applier whose copies fail for want of space.
struct Full(Arc<dyn Applier>);

struct FullBatch {
    inner: Arc<dyn BatchApplier>,
    batch: Batch,
}

#[async_trait]
impl Applier for Full {
    async fn apply(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        sync_fs: bool,
    ) -> Result<Applied> {
        self.0.apply(scope, layer, mounts, sync_fs).await
    }

    fn can_copy_from(&self, _: &str) -> bool {
        true
    }

    async fn inspect(&self, _: &ChainView, _: Range<usize>, _: Inspection) -> Result<()> {
        Ok(())
    }

    fn batch(&self, batch: &Batch) -> Option<Arc<dyn BatchApplier>> {
        Some(Arc::new(FullBatch {
            inner: in_batch(&self.0, batch.clone()),
            batch: batch.clone(),
        }))
    }
}

#[async_trait]
impl BatchApplier for FullBatch {
    async fn apply(&self, scope: &Scope, index: usize, mounts: &[Mount]) -> Result<Applied> {
        match &self.batch.layers[index].copy {
            Some(_) => Err(Error::new(Kind::ResourceExhausted, "write", "a file")
                .with_source(io::Error::from_raw_os_error(NO_SPACE))),
            None => self.inner.apply(scope, index, mounts).await,
        }
    }

    async fn end(&self) {
        self.inner.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_without_room_is_not_fetched_instead() {
    let (backend, source, _) = discarded(&[]);
    backend.add_snapshotter("other", Behaviour::Ordinary);
    let mut ports = backend.ports();
    ports.applier = Arc::new(Full(ports.applier));
    let mut settings = EngineSettings::default();
    let blobs = Source::Blobs(Arc::clone(&source) as _);
    settings.sources = vec![Source::Sibling { always: true }, blobs];
    let engine = Engine::new(ports, NAMESPACE, settings).unwrap();
    let first = Engine::new(backend.ports(), NAMESPACE, EngineSettings::default()).unwrap();
    first
        .unpack(Request::new("web:1").on("other"))
        .await
        .unwrap();
    let error = engine.unpack(Request::new("web:1").on("erofs")).await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), Kind::ResourceExhausted, "{error}");
    assert!(error_chain(&error).contains("No space left"), "{error}");
    assert_eq!(source.opened(), []);
}

/// A source of two servers, the first of which has wrong bytes.
struct Mirrored {
    good: Slow,
    wrong: Slow,
    is_rejected: AtomicBool,
}

#[async_trait]
impl BlobSource for Mirrored {
    fn name(&self) -> &'static str {
        "mirrored"
    }

    async fn open(&self, blob: &MissingBlob, offset: u64) -> Result<ByteStream> {
        match self.is_rejected.load(Ordering::Relaxed) {
            true => self.good.open(blob, offset).await,
            false => self.wrong.open(blob, offset).await,
        }
    }

    fn reject(&self, _: &MissingBlob) -> bool {
        !self.is_rejected.swap(true, Ordering::Relaxed)
    }
}

#[tokio::test(start_paused = true)]
async fn wrong_bytes_of_a_mirror_are_fetched_from_elsewhere() {
    for is_fed in [false, true] {
        let (backend, good) = shared_layer();
        let wrong = Memory::default();
        let blobs = good.blobs.lock().unwrap().clone();
        let blobs = blobs.into_iter().map(|(digest, mut bytes)| {
            bytes[3] ^= 1;
            (digest, bytes)
        });
        wrong.blobs.lock().unwrap().extend(blobs);
        let source = Mirrored {
            good: Slow(good, Duration::from_millis(1)),
            wrong: Slow(Arc::new(wrong), Duration::from_millis(1)),
            is_rejected: AtomicBool::new(false),
        };
        let source: Arc<dyn BlobSource> = Arc::new(source);
        let (engine, read) = match is_fed {
            true => incoming_engine(&backend, source, None),
            false => {
                let mut settings = EngineSettings::default();
                settings.sources = vec![Source::Blobs(source)];
                let engine = Engine::new(backend.ports(), NAMESPACE, settings).unwrap();
                (engine, Arc::default())
            }
        };
        let report = engine.unpack(Request::new("evil.io/web:1").on("erofs"));
        assert_eq!(report.await.unwrap().count(LayerOutcome::Applied), 1);
        assert_eq!(read.lock().unwrap().len(), usize::from(is_fed));
    }
}

/// A source of many servers, all of which have wrong bytes. It forgets which it has rejected.
struct Forgetful(Memory);

#[async_trait]
impl BlobSource for Forgetful {
    fn name(&self) -> &'static str {
        "forgetful"
    }

    async fn open(&self, blob: &MissingBlob, offset: u64) -> Result<ByteStream> {
        self.0.open(blob, offset).await
    }

    fn reject(&self, _: &MissingBlob) -> bool {
        true
    }
}

#[tokio::test(start_paused = true)]
async fn a_blob_is_fetched_from_so_many_servers() {
    let (backend, source) = shared_layer();
    let source = Arc::into_inner(source).unwrap();
    for bytes in source.blobs.lock().unwrap().values_mut() {
        bytes[3] ^= 1;
    }
    let source = Arc::new(Forgetful(source));
    let mut settings = EngineSettings::default();
    settings.sources = vec![Source::Blobs(Arc::clone(&source) as _)];
    let engine = Engine::new(backend.ports(), NAMESPACE, settings).unwrap();
    let job = engine.unpack(Request::new("evil.io/web:1").on("erofs"));
    let ended = tokio::time::timeout(Duration::from_secs(3600), job).await;
    let error = ended.expect("it is fetched for ever").unwrap_err();
    assert!(matches!(error, UnpackError::MissingBlob { .. }), "{error}");
    assert!(source.0.opened().len() <= 8);
    assert_eq!(backend.ingests(NAMESPACE), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn missing_documents_are_fetched_and_kept() {
    let name = "docker.io/library/index:1";
    for missing in [&[0][..], &[1], &[2], &[0, 1, 2]] {
        let (backend, source, image) = discarded(&[]);
        backend.remove_image(NAMESPACE, "docker.io/library/web:1");
        backend.add_index(NAMESPACE, name, &[(Platform::host(), image.clone())]);
        let (ports, scope) = (backend.ports(), Scope::new(NAMESPACE));
        let index = ports.images.get(&scope, name).await.unwrap().target;
        let documents = [&index, &image.manifest, &image.config];
        for document in missing.iter().map(|at| documents[*at]) {
            let stream = ports.content.open(&scope, &document.digest).await.unwrap();
            let bytes: Vec<Bytes> = stream.try_collect().await.unwrap();
            let mut blobs = source.blobs.lock().unwrap();
            blobs.insert(document.digest.clone(), bytes.concat());
            backend.remove_blob(NAMESPACE, &document.digest);
        }
        let engine = engine(&backend, &source);
        engine.unpack(Request::new(name).on("erofs")).await.unwrap();
        assert_eq!(source.opened().len(), missing.len());
        backend.collect_garbage();
        let plan = engine.plan(&Request::new(name)).await.unwrap();
        assert!(engine.is_ready(&plan, "erofs").await.unwrap());
        assert!(backend.has_blob(NAMESPACE, &image.layers[0].descriptor.digest));
        assert!(backend.leases(NAMESPACE).is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_of_a_missing_document_names_each_source() {
    let (backend, source, image) = discarded(&[]);
    let mut wrong = image.blob(&image.config.digest).unwrap().to_vec();
    wrong[0] ^= 1;
    backend.remove_blob(NAMESPACE, &image.config.digest);
    for (bytes, reason) in [
        (None, "it is not in memory"),
        (Some(wrong), "its bytes have the digest"),
        (Some(vec![b' '; 1 << 20]), "it has more than"),
    ] {
        let digest = image.config.digest.clone();
        source
            .blobs
            .lock()
            .unwrap()
            .extend(bytes.map(|bytes| (digest.clone(), bytes)));
        let error = engine(&backend, &source).unpack(Request::new("web:1").on("erofs"));
        let error = error.await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        let text = error_chain(&error);
        for part in [
            "not in the content store; memory: ",
            reason,
            digest.as_str(),
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(backend.leases(NAMESPACE).is_empty());
    }
}
