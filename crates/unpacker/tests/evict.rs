// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images are evicted from a snapshotter: what goes, what stays, and what is refused.

// Test code: it fails by panicking.
#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use resnap_core::testing::{
    Behaviour, Effect, Fault, Operation, Simulated, SimulatedImage, SimulatedLayer,
};
use resnap_core::{
    Applied, Applier, BlobSource, ByteStream, ChainId, ChainView, Container, Descriptor, Error,
    Inspection, Kind, MissingBlob, Mount, Platform, Result, Scope, SnapshotKey, error_chain,
    labels,
};
use resnap_unpacker::{
    Engine, EngineSettings, EvictRequest, EvictState, EvictedChain, Eviction, Request, Source,
};

const NAMESPACE: &str = "k8s.io";
const PAGE: u64 = 4096;

fn image(layers: &[&str]) -> SimulatedImage {
    SimulatedImage::new(layers.iter().map(|text| SimulatedLayer::new(text)))
}

/// An applier that can copy layers from all snapshotters, unless one of their files cannot be copied.
struct Copying {
    inner: Arc<dyn Applier>,
    has_bad_file: Arc<AtomicBool>,
}

#[async_trait]
impl Applier for Copying {
    async fn apply(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        sync_fs: bool,
    ) -> Result<Applied> {
        self.inner.apply(scope, layer, mounts, sync_fs).await
    }

    fn can_copy_from(&self, _: &str) -> bool {
        true
    }

    async fn inspect(&self, _: &ChainView, _: Range<usize>, inspection: Inspection) -> Result<()> {
        match inspection == Inspection::Full && self.has_bad_file.load(Ordering::Relaxed) {
            true => Err(Error::new(Kind::FailedPrecondition, "copy", "a bad file")),
            false => Ok(()),
        }
    }
}

/// A node with the snapshotters `from` and `to`.
struct Node {
    simulated: Simulated,
    engine: Engine,
    has_bad_file: Arc<AtomicBool>,
}

impl Node {
    fn new() -> Self {
        Self::with_sources(Vec::new())
    }

    fn with_sources(sources: Vec<Source>) -> Self {
        let simulated = Simulated::new();
        for snapshotter in ["from", "to"] {
            simulated.add_snapshotter(snapshotter, Behaviour::Ordinary);
        }
        let mut settings = EngineSettings::default();
        settings.sources = sources;
        let mut ports = simulated.ports();
        let has_bad_file = Arc::new(AtomicBool::new(false));
        ports.applier = Arc::new(Copying {
            inner: ports.applier,
            has_bad_file: Arc::clone(&has_bad_file),
        });
        let engine = Engine::new(ports, NAMESPACE, settings).unwrap();
        Self {
            simulated,
            engine,
            has_bad_file,
        }
    }

    /// Adds an image, and unpacks it on `from`.
    async fn add(&self, name: &str, image: &SimulatedImage) {
        self.simulated.add_image(NAMESPACE, name, image);
        let unpacked = self.engine.unpack(Request::new(name).on("from")).await;
        unpacked.unwrap();
    }

    fn discard(&self, image: &SimulatedImage) {
        for layer in &image.layers {
            let digest = &layer.descriptor.digest;
            self.simulated.remove_blob(NAMESPACE, digest);
        }
    }

    /// Adds a container on the image's chain on `from`.
    async fn run(&self, id: &str, top: &ChainId) {
        let key = SnapshotKey::from(id.to_owned());
        let container = Container {
            id: id.to_owned(),
            snapshotter: "from".to_owned(),
            snapshot: key.clone(),
        };
        self.simulated.add_container(NAMESPACE, container);
        let ports = self.simulated.ports();
        let snapshotter = ports.snapshotters.snapshotter("from");
        let scope = resnap_core::Scope::new(NAMESPACE);
        let none = labels::Labels::new();
        let prepared = snapshotter.prepare(&scope, &key, Some(top), &none);
        prepared.await.unwrap();
    }

    /// Adds the image's chain, which is there, but may go at any time.
    fn unpack_unkept(&self, snapshotter: &str, image: &SimulatedImage) {
        for (index, layer) in image.layers.iter().enumerate() {
            let below = &image.layers[..index];
            let parent = (index > 0).then(|| top(&SimulatedImage::new(below.to_vec())));
            let (parent, none) = (parent.as_ref(), labels::Labels::new());
            let diff_id = &layer.diff_id;
            let simulated = &self.simulated;
            assert!(simulated.unpack(NAMESPACE, snapshotter, parent, diff_id, &none));
        }
    }

    fn count(&self, snapshotter: &str) -> usize {
        self.simulated.snapshots(NAMESPACE, snapshotter).len()
    }

    /// Does a dry run, which changes nothing, and then evicts, with the same result.
    async fn evict(&self, request: EvictRequest) -> Eviction {
        let mut dry = request.clone();
        dry.dry_run = true;
        let before = self.simulated.snapshots(NAMESPACE, "from");
        let told = self.engine.evict(&dry).await.unwrap();
        let after = self.simulated.snapshots(NAMESPACE, "from");
        assert_eq!(before, after, "a dry run changed something");
        let done = self.engine.evict(&request).await.unwrap();
        assert_eq!((told.snapshots, told.bytes), (done.snapshots, done.bytes));
        assert_eq!(before.len() - self.count("from"), done.snapshots);
        for (told, done) in told.chains.iter().zip(&done.chains) {
            let same = |chain: &EvictedChain| {
                let refusal = chain.refusal.as_ref().map(ToString::to_string);
                (chain.images.clone(), chain.kept, chain.bytes, refusal)
            };
            assert_eq!(same(told), same(done));
        }
        assert_eq!(self.simulated.leases(NAMESPACE), []);
        done
    }
}

fn request(images: &[&str]) -> EvictRequest {
    EvictRequest::new(
        images.iter().map(|name| (*name).to_owned()).collect(),
        "from",
    )
}

/// Returns the text of the only chain's refusal.
fn refusal(eviction: &Eviction) -> String {
    assert_eq!(eviction.chains.len(), 1, "{eviction:?}");
    let chain = &eviction.chains[0];
    assert_eq!((chain.state, chain.snapshots), (EvictState::Refused, 0));
    chain.refusal.as_ref().unwrap().to_string()
}

fn top(image: &SimulatedImage) -> ChainId {
    let layers = image.layers.iter();
    let top = layers.fold(None, |parent, layer| {
        Some(ChainId::of(parent.as_ref(), &layer.diff_id))
    });
    top.unwrap()
}

#[tokio::test]
async fn layers_of_other_images_stay() {
    let node = Node::new();
    node.add("docker.io/library/a:1", &image(&["base", "a"]))
        .await;
    node.add("docker.io/library/b:1", &image(&["base", "b", "more"]))
        .await;
    let done = node.evict(request(&["b:1"])).await;
    let chain = &done.chains[0];
    assert_eq!((chain.snapshots, chain.kept), (2, 1));
    assert_eq!((done.bytes, done.inodes), (2 * PAGE, 2));
    assert_eq!(node.count("from"), 2);
    let done = node.evict(request(&["docker.io/library/a:1"])).await;
    assert_eq!((done.chains[0].snapshots, done.chains[0].kept), (2, 0));
    assert_eq!(node.count("from"), 0);
    // A second run ends well.
    let again = node.evict(request(&["a:1", "b:1"])).await;
    assert!(
        again
            .chains
            .iter()
            .all(|chain| chain.state == EvictState::Absent)
    );
}

#[tokio::test]
async fn names_and_images_of_one_chain_are_evicted_together() {
    let node = Node::new();
    let one = image(&["base", "app"]);
    for name in ["docker.io/library/a:1", "docker.io/library/a:2"] {
        node.add(name, &one).await;
    }
    // Another config on the same layers.
    let platform = "linux/riscv64".parse().unwrap();
    let other = SimulatedImage::of(&platform, ["base", "app"].map(SimulatedLayer::new));
    assert_ne!(one.config.digest, other.config.digest);
    node.add("docker.io/library/c:1", &other).await;
    node.add("docker.io/library/base:1", &image(&["base"]))
        .await;
    let done = node.evict(request(&["a:1"])).await;
    let names = ["a:1", "a:2", "c:1"].map(|name| format!("docker.io/library/{name}"));
    assert_eq!(done.chains.len(), 1);
    assert_eq!(done.chains[0].images, names);
    assert_eq!((done.chains[0].snapshots, done.chains[0].kept), (1, 1));
    // All of them at once: the shared layer is counted once.
    node.add("docker.io/library/a:1", &one).await;
    let done = node.evict(request(&["a:2", "base:1"])).await;
    assert_eq!((done.chains.len(), done.bytes), (2, 2 * PAGE));
}

#[tokio::test]
async fn containers_keep_their_chain_until_they_end() {
    let node = Node::new();
    let web = image(&["base", "web"]);
    node.add("docker.io/library/web:1", &web).await;
    node.run("c1", &top(&web)).await;
    let done = node.evict(request(&["web:1"])).await;
    let chain = &done.chains[0];
    assert_eq!(chain.state, EvictState::Evicted);
    assert_eq!(chain.in_use_by, ["container c1"]);
    assert_eq!((chain.snapshots, chain.kept, node.count("from")), (0, 2, 3));
}

#[tokio::test]
async fn leases_keep_their_chain() {
    let node = Node::new();
    let web = image(&["base", "web"]);
    node.add("docker.io/library/web:1", &web).await;
    let ports = node.simulated.ports();
    let scope = resnap_core::Scope::new(NAMESPACE);
    let lease = resnap_core::LeaseId("other".into());
    let none = labels::Labels::new();
    let created = ports.leases.create(&scope, &lease, &none);
    created.await.unwrap();
    let resource = resnap_core::Resource::Snapshot {
        snapshotter: "from".to_owned(),
        key: SnapshotKey::from(&top(&web)),
    };
    let added = ports.leases.add_resource(&scope, &lease, &resource);
    added.await.unwrap();
    let done = node.engine.evict(&request(&["web:1"])).await.unwrap();
    assert_eq!(done.chains[0].in_use_by, ["lease other"]);
    assert_eq!((done.snapshots, node.count("from")), (0, 2));
}

#[tokio::test]
async fn pinned_and_sandbox_images_stay() {
    let node = Node::new();
    let pause = image(&["pause"]);
    node.add("registry.k8s.io/pause:3.10", &pause).await;
    let mut with_sandbox = request(&["registry.k8s.io/pause:3.10"]);
    with_sandbox.sandbox_images =
        vec!["registry.k8s.io/pause:3.10".to_owned(), "none:1".to_owned()];
    let text = refusal(&node.evict(with_sandbox.clone()).await);
    assert!(text.contains("is the sandbox image"), "{text}");
    // A pin counts for all names of the image.
    node.add("docker.io/library/other:1", &pause).await;
    node.simulated.label_image(
        NAMESPACE,
        "docker.io/library/other:1",
        labels::PINNED,
        "pinned",
    );
    let text = refusal(&node.evict(request(&["registry.k8s.io/pause:3.10"])).await);
    let unpin = format!(
        "`ctr --namespace {NAMESPACE} images label docker.io/library/other:1 io.cri-containerd.pinned=`"
    );
    assert!(
        text.contains("docker.io/library/other:1 is pinned"),
        "{text}"
    );
    assert!(text.contains(&unpin), "{text}");
    // containerd would pin it again.
    let text = refusal(&node.evict(with_sandbox).await);
    assert!(
        text.contains("is the sandbox image") && !text.contains("images label"),
        "{text}"
    );
    assert_eq!(node.count("from"), 1);
}

/// A source that has everything, or nothing.
struct Fixed(bool);

#[async_trait]
impl BlobSource for Fixed {
    fn name(&self) -> &'static str {
        "registry"
    }

    async fn open(&self, blob: &MissingBlob, _offset: u64) -> Result<ByteStream> {
        assert_eq!(blob.reference.as_deref(), Some("docker.io/library/web:1"));
        match self.0 {
            true => Ok(Box::pin(futures::stream::empty())),
            false => Err(Error::new(Kind::Unauthenticated, "fetch", "a blob").with_source("401")),
        }
    }
}

#[tokio::test]
async fn an_image_that_could_not_be_unpacked_again_stays() {
    let web = image(&["base", "web"]);
    let digest = web.layers[0].descriptor.digest.to_string();
    for (has, is_prepared, expected) in [
        (true, false, Some("always = true")),
        (false, true, Some("registry: fetch a blob: 401")),
        (true, true, None),
    ] {
        let node = Node::with_sources(vec![Source::Blobs(Arc::new(Fixed(has)))]);
        node.add("docker.io/library/web:1", &web).await;
        node.discard(&web);
        let mut request = request(&["web:1"]);
        request.is_prepared = is_prepared;
        let done = node.evict(request).await;
        let Some(expected) = expected else {
            assert_eq!(done.snapshots, 2, "{done:?}");
            continue;
        };
        let text = refusal(&done);
        assert!(text.contains(expected) && text.contains(&digest), "{text}");
    }
}

#[tokio::test]
async fn layers_that_nothing_keeps_are_not_copied_later() {
    let node = Node::with_sources(vec![Source::Sibling { always: false }]);
    let web = image(&["base", "web"]);
    node.add("docker.io/library/web:1", &web).await;
    node.discard(&web);
    let mut request = request(&["web:1"]);
    request.is_prepared = true;
    // As after an eviction while a container is running.
    node.unpack_unkept("to", &web);
    let text = refusal(&node.engine.evict(&request).await.unwrap());
    assert!(
        text.contains("sibling: copy layers from to: the image does not keep"),
        "{text}"
    );
    let kept = node.engine.unpack(Request::new("web:1").on("to")).await;
    kept.unwrap();
    // A copy would find it only after the last other copy is gone.
    node.has_bad_file.store(true, Ordering::Relaxed);
    let text = refusal(&node.engine.evict(&request).await.unwrap());
    assert!(text.contains("sibling: copy a bad file"), "{text}");
    node.has_bad_file.store(false, Ordering::Relaxed);
    assert_eq!(node.evict(request).await.snapshots, 2);
}

#[tokio::test]
async fn a_repair_removes_nothing_that_cannot_be_copied() {
    let node = Node::with_sources(vec![Source::Sibling { always: false }]);
    let web = image(&["base", "web"]);
    node.simulated
        .add_image(NAMESPACE, "docker.io/library/web:1", &web);
    let unpacked = node.engine.unpack(Request::new("web:1").on("to")).await;
    unpacked.unwrap();
    node.discard(&web);
    node.unpack_unkept("from", &web);
    node.has_bad_file.store(true, Ordering::Relaxed);
    let mut request = Request::new("web:1").on("from");
    (request.repair, request.by_itself) = (true, true);
    let error = node.engine.unpack(request).await.unwrap_err();
    assert!(error_chain(&error).contains("a bad file"), "{error}");
    assert_eq!(node.count("from"), 2);
}

#[tokio::test(start_paused = true)]
async fn of_two_evictions_at_once_one_finds_the_other_gone() {
    for seed in 0..16 {
        let node = Node::with_sources(vec![Source::Sibling { always: false }]);
        let web = image(&["base", "web"]);
        node.add("docker.io/library/web:1", &web).await;
        node.engine
            .unpack(Request::new("web:1").on("to"))
            .await
            .unwrap();
        node.discard(&web);
        node.simulated.set_jitter(seed);
        let mut from = request(&["web:1"]);
        from.is_prepared = true;
        let mut to = from.clone();
        to.snapshotter = "to".to_owned();
        let (from, to) = tokio::join!(node.engine.evict(&from), node.engine.evict(&to));
        let removed = from.unwrap().snapshots + to.unwrap().snapshots;
        assert_eq!((removed, node.count("from") + node.count("to")), (2, 2));
    }
}

#[tokio::test]
async fn blobs_that_only_a_lease_keeps_count_as_missing() {
    let node = Node::new();
    let web = image(&["base", "web"]);
    node.add("docker.io/library/web:1", &web).await;
    // As on a node that discards blobs, while they were just fetched for another snapshotter.
    let ports = node.simulated.ports();
    let scope = Scope::new(NAMESPACE);
    let label = format!("{}1", labels::GC_LAYER_PREFIX);
    let removed = ports
        .labeler
        .remove_label(&scope, &web.manifest.digest, &label);
    removed.await.unwrap();
    let text = refusal(&node.evict(request(&["web:1"])).await);
    let digest = web.layers[1].descriptor.digest.as_str();
    assert!(text.contains(digest), "{text}");
}

#[tokio::test]
async fn every_name_of_a_config_is_looked_at() {
    let node = Node::new();
    let (first, second) = (image(&["base", "first"]), image(&["base", "second"]));
    let entries = [
        (Platform::host(), first.clone()),
        (Platform::host(), second.clone()),
    ];
    // Its containers need the first, but it refers to both.
    let simulated = &node.simulated;
    simulated.add_index(NAMESPACE, "docker.io/library/a:1", &entries);
    node.add("docker.io/library/b:1", &second).await;
    node.discard(&second);
    let text = refusal(&node.evict(request(&["b:1"])).await);
    assert!(text.contains("image docker.io/library/b:1"), "{text}");
}

#[tokio::test]
async fn only_what_was_moved_goes() {
    let node = Node::new();
    let web = image(&["base", "web"]);
    node.add("docker.io/library/web:1", &web).await;
    let mut request = request(&["web:1"]);
    request.moved_to = Some("to".to_owned());
    let text = refusal(&node.evict(request.clone()).await);
    assert!(text.contains("is not on to"), "{text}");
    node.unpack_unkept("to", &web);
    let text = refusal(&node.engine.evict(&request).await.unwrap());
    assert!(text.contains("is not on to"), "{text}");
    let moved = node.engine.unpack(Request::new("web:1").on("to")).await;
    moved.unwrap();
    assert_eq!(node.evict(request).await.snapshots, 2);
    assert_eq!(node.count("to"), 2);
}

#[tokio::test]
async fn an_error_of_the_backend_before_the_first_change_changes_nothing() {
    let node = Node::new();
    node.add("docker.io/library/web:1", &image(&["base", "web"]))
        .await;
    for operation in [
        Operation::ListImages,
        Operation::ListContent,
        Operation::ListSnapshots,
        Operation::ListContainers,
        Operation::ListLeases,
        Operation::SnapshotUsage,
        Operation::RemoveLabel,
    ] {
        node.simulated.set_faults([Fault {
            operation,
            call: 1,
            effect: Effect::Fail(Kind::Unavailable),
        }]);
        let failed = node
            .engine
            .evict(&request(&["docker.io/library/web:1"]))
            .await;
        assert_eq!(
            failed.unwrap_err().kind(),
            Kind::Unavailable,
            "{operation:?}"
        );
        node.simulated.collect_garbage();
        assert_eq!(node.count("from"), 2, "{operation:?}");
    }
    // The labels are removed: the next garbage collection completes the eviction.
    node.simulated.set_faults([Fault {
        operation: Operation::CollectGarbage,
        call: 1,
        effect: Effect::Fail(Kind::Unavailable),
    }]);
    let failed = node
        .engine
        .evict(&request(&["docker.io/library/web:1"]))
        .await;
    failed.unwrap_err();
    let again = node
        .engine
        .evict(&request(&["docker.io/library/web:1"]))
        .await;
    assert_eq!(again.unwrap().chains[0].state, EvictState::Absent);
    node.simulated.collect_garbage();
    assert_eq!(node.count("from"), 0);
}

#[tokio::test]
async fn lists_are_read_once_for_any_number_of_images() {
    let node = Node::new();
    let names: Vec<String> = (0..20)
        .map(|number| format!("docker.io/library/{number}:1"))
        .collect();
    for name in &names {
        node.add(name, &image(&["base", name])).await;
    }
    node.simulated.set_faults([]);
    let unpacked = node.engine.unpacked_images("from").await.unwrap();
    assert_eq!(unpacked.len(), names.len());
    let mut dry = EvictRequest::new(names, "from");
    dry.dry_run = true;
    node.engine.evict(&dry).await.unwrap();
    for operation in [
        Operation::ListImages,
        Operation::ListContent,
        Operation::ListSnapshots,
        Operation::ListContainers,
        Operation::ListLeases,
    ] {
        assert_eq!(node.simulated.calls(operation), 2, "{operation:?}");
    }
    for operation in [Operation::Stat, Operation::ContentInfo] {
        assert_eq!(node.simulated.calls(operation), 0, "{operation:?}");
    }
}
