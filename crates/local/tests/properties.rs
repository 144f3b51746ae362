// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Random calls have the same results, and leave the same behind, as those on the simulated containerd.
//! `PROPTEST_CASES=1000` runs more cases.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use resnap_applier::ApplierSettings;
use resnap_core::testing::{Behaviour, Simulated, SimulatedImage, SimulatedLayer};
use resnap_core::{
    ChainId, Container, ContentInfo, Descriptor, DiffId, Digest, Error, Image, Kind, Labels,
    LeaseId, Ports, Resource, Scope, SnapshotKey, SnapshotKind, labels,
};
use resnap_local::Local;
use tempfile::TempDir;

const SNAPSHOTTER: &str = "erofs";
const IMAGE: &str = "docker.io/library/web:1";
const CONTAINER: &str = "web";

/// A call, with small numbers for names, so that many calls are about the same. A lease is that of the call.
#[derive(Debug, Clone)]
enum Call {
    CreateLease(u8, Option<bool>),
    DeleteLease(u8),
    Lease(u8, Held),
    Prepare(Option<u8>, Key, Option<u8>, Option<u8>),
    View(Option<u8>, u8, u8),
    Commit(Option<u8>, u8, Key),
    Remove(Name),
    LabelSnapshot(Name, bool),
    Root(Option<u8>),
    Ingest(Option<u8>, u8, Written),
    AddImage,
    RemoveImage,
    Collect,
}

#[derive(Debug, Clone)]
enum Held {
    Snapshot(Name),
    Blob(u8),
    Target,
}

/// The key of an active snapshot.
#[derive(Debug, Clone)]
enum Key {
    Extraction(u8),
    Container,
}

#[derive(Debug, Clone)]
enum Name {
    Key(Key),
    Chain(u8),
}

#[derive(Debug, Clone)]
enum Written {
    Half,
    Wrong,
    Aborted,
    Committed,
}

fn key(key: &Key) -> SnapshotKey {
    match key {
        Key::Extraction(number) => SnapshotKey::extraction(&number.to_string(), &chain(*number)),
        Key::Container => SnapshotKey::from(CONTAINER.to_owned()),
    }
}

fn chain(number: u8) -> ChainId {
    ChainId::of(None, &DiffId(Digest::sha256(&[number])))
}

fn name(name: &Name) -> SnapshotKey {
    match name {
        Name::Key(named) => key(named),
        Name::Chain(number) => SnapshotKey::from(&chain(*number)),
    }
}

fn lease(number: u8) -> LeaseId {
    LeaseId(format!("lease-{number}").into())
}

fn blob(number: u8) -> (Vec<u8>, Descriptor) {
    let bytes = format!("blob {number}").into_bytes();
    let descriptor = Descriptor {
        media_type: "application/octet-stream".to_owned(),
        digest: Digest::sha256(&bytes),
        size: bytes.len() as u64,
        annotations: BTreeMap::new(),
        platform: None,
    };
    (bytes, descriptor)
}

fn image() -> SimulatedImage {
    SimulatedImage::new([SimulatedLayer::new("layer")])
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let (few, chains) = (0..3_u8, 0..4_u8);
    let called = prop::option::weighted(0.8, few.clone());
    let key = prop_oneof![
        4 => few.clone().prop_map(Key::Extraction),
        1 => Just(Key::Container),
    ];
    let name = prop_oneof![
        key.clone().prop_map(Name::Key),
        chains.clone().prop_map(Name::Chain),
    ];
    let held = prop_oneof![
        3 => name.clone().prop_map(Held::Snapshot),
        1 => few.clone().prop_map(Held::Blob),
        1 => Just(Held::Target),
    ];
    let written = prop_oneof![
        Just(Written::Half),
        Just(Written::Wrong),
        Just(Written::Aborted),
        Just(Written::Committed),
    ];
    let maybe = prop::option::of(chains.clone());
    let call = prop_oneof![
        4 => (few.clone(), any::<Option<bool>>()).prop_map(|(a, b)| Call::CreateLease(a, b)),
        2 => few.clone().prop_map(Call::DeleteLease),
        2 => (few.clone(), held).prop_map(|(a, b)| Call::Lease(a, b)),
        6 => (called.clone(), key.clone(), maybe.clone(), maybe.clone())
            .prop_map(|(a, b, c, d)| Call::Prepare(a, b, c, d)),
        1 => (called.clone(), few.clone(), chains.clone())
            .prop_map(|(a, b, c)| Call::View(a, b, c)),
        6 => (called.clone(), chains, key).prop_map(|(a, b, c)| Call::Commit(a, b, c)),
        2 => name.clone().prop_map(Call::Remove),
        1 => (name, any::<bool>()).prop_map(|(a, b)| Call::LabelSnapshot(a, b)),
        2 => maybe.prop_map(Call::Root),
        3 => (called, few, written).prop_map(|(a, b, c)| Call::Ingest(a, b, c)),
        1 => Just(Call::AddImage),
        1 => Just(Call::RemoveImage),
        1 => Just(Call::Collect),
    ];
    vec(call, 1..60)
}

/// A backend, and what only its owner can do.
struct Backend {
    ports: Ports,
    owner: Owner,
}

enum Owner {
    Simulated(Simulated),
    Local(Local, TempDir),
}

type Outcome = Result<(), Kind>;

fn kind<T>(result: Result<T, Error>) -> Outcome {
    result.map(drop).map_err(|error| error.kind())
}

impl Backend {
    fn simulated() -> Self {
        let simulated = Simulated::new();
        simulated.add_snapshotter(SNAPSHOTTER, Behaviour::Ordinary);
        let container = Container {
            id: CONTAINER.to_owned(),
            snapshotter: SNAPSHOTTER.to_owned(),
            snapshot: key(&Key::Container),
        };
        simulated.add_container(Local::NAMESPACE, container);
        Self {
            ports: simulated.ports(),
            owner: Owner::Simulated(simulated),
        }
    }

    async fn local() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let local = Local::open(dir.path()).await.unwrap();
        Self {
            ports: local.ports(ApplierSettings::default()),
            owner: Owner::Local(local, dir),
        }
    }

    fn scope(&self, called: Option<u8>) -> Scope {
        let scope = Scope::new(Local::NAMESPACE);
        match called {
            Some(number) => scope.leased(lease(number)),
            None => scope,
        }
    }

    async fn call(&self, call: &Call) -> Outcome {
        let (scope, leases) = (self.scope(None), &self.ports.leases);
        let snapshotter = self.ports.snapshotters.snapshotter(SNAPSHOTTER);
        let ours = Labels::from([("example.com/of".to_owned(), format!("{call:?}"))]);
        match call {
            Call::CreateLease(number, expires) => {
                let time = expires.map(|has_expired| match has_expired {
                    true => "2001-01-01T00:00:00Z",
                    false => "2999-01-01T00:00:00Z",
                });
                let expiry = time.map(|time| (labels::GC_EXPIRE.to_owned(), time.to_owned()));
                let labels = expiry.into_iter().collect();
                kind(leases.create(&scope, &lease(*number), &labels).await)
            }
            Call::DeleteLease(number) => {
                let deleted = leases.delete(&scope, &lease(*number)).await;
                // The local one does so itself.
                self.collect(deleted.is_ok());
                kind(deleted)
            }
            Call::Lease(number, held) => {
                let resource = match held {
                    Held::Snapshot(named) => Resource::Snapshot {
                        snapshotter: SNAPSHOTTER.to_owned(),
                        key: name(named),
                    },
                    Held::Blob(number) => Resource::Content(blob(*number).1.digest),
                    Held::Target => Resource::Content(image().manifest.digest),
                };
                kind(
                    leases
                        .add_resource(&scope, &lease(*number), &resource)
                        .await,
                )
            }
            Call::Prepare(called, named, parent, target) => {
                let mut labels = ours;
                let target = target.map(|target| chain(target).to_string());
                labels.extend(target.map(|target| (labels::SNAPSHOT_REF.to_owned(), target)));
                let (scope, named, parent) = (self.scope(*called), key(named), parent.map(chain));
                let prepared = snapshotter.prepare(&scope, &named, parent.as_ref(), &labels);
                kind(prepared.await)
            }
            Call::View(called, named, parent) => {
                let (scope, named) = (self.scope(*called), key(&Key::Extraction(*named)));
                kind(snapshotter.view(&scope, &named, &chain(*parent)).await)
            }
            Call::Commit(called, number, named) => {
                let (scope, named) = (self.scope(*called), key(named));
                kind(
                    snapshotter
                        .commit(&scope, &chain(*number), &named, &ours)
                        .await,
                )
            }
            Call::Remove(named) => kind(snapshotter.remove(&scope, &name(named)).await),
            Call::LabelSnapshot(named, is_set) => {
                let value = if *is_set { "set" } else { "" };
                let labels = Labels::from([("example.com/x".to_owned(), value.to_owned())]);
                kind(snapshotter.set_labels(&scope, &name(named), &labels).await)
            }
            Call::Root(top) => {
                let (labeler, config) = (&self.ports.labeler, image().config.digest);
                let label = format!("{}{SNAPSHOTTER}", labels::GC_SNAPSHOT_PREFIX);
                match top.map(|top| chain(top).to_string()) {
                    Some(top) => kind(labeler.set_label(&scope, &config, &label, &top).await),
                    None => kind(labeler.remove_label(&scope, &config, &label).await),
                }
            }
            Call::Ingest(called, number, written) => {
                kind(self.ingest(&self.scope(*called), *number, written).await)
            }
            Call::AddImage => {
                self.add_image().await;
                Ok(())
            }
            Call::RemoveImage => {
                let images = &self.ports.images;
                if images.get(&scope, IMAGE).await.is_err() {
                    return Ok(());
                }
                match &self.owner {
                    Owner::Simulated(simulated) => {
                        simulated.remove_image(Local::NAMESPACE, IMAGE);
                        simulated.collect_garbage();
                    }
                    Owner::Local(local, _) => local.remove_image(IMAGE).await.unwrap(),
                }
                Ok(())
            }
            Call::Collect => {
                let collected = kind(leases.collect_garbage(&scope).await);
                self.collect(true);
                collected
            }
        }
    }

    fn collect(&self, is_due: bool) {
        if let (Owner::Simulated(simulated), true) = (&self.owner, is_due) {
            simulated.collect_garbage();
        }
    }

    async fn ingest(&self, scope: &Scope, number: u8, written: &Written) -> Result<(), Error> {
        let (writer, (bytes, descriptor)) = (&self.ports.writer, blob(number));
        let name = format!("layer-{}", descriptor.digest);
        if let Written::Aborted = written {
            return writer.abort(scope, &name).await;
        }
        let mut ingest = writer.ingest(scope, &name, &descriptor).await?;
        let from = usize::try_from(ingest.offset()).unwrap().min(bytes.len());
        let to = match written {
            Written::Half => from.max(bytes.len() / 2),
            _ => bytes.len(),
        };
        ingest.write(bytes[from..to].to_vec().into()).await?;
        match written {
            Written::Wrong => ingest.write(b"more".to_vec().into()).await,
            Written::Committed => {
                let labels = Labels::from([("example.com/x".to_owned(), "y".to_owned())]);
                ingest.commit(&labels).await
            }
            _ => Ok(()),
        }
    }

    /// Adds the image, and those of its blobs that are missing.
    async fn add_image(&self) {
        let image = image();
        let (local, dir) = match &self.owner {
            Owner::Simulated(simulated) => {
                return simulated.add_image(Local::NAMESPACE, IMAGE, &image);
            }
            Owner::Local(local, dir) => (local, dir),
        };
        let scope = self.scope(None);
        let (config, layer) = (&image.config, &image.layers[0].descriptor);
        for digest in [&image.manifest.digest, &config.digest, &layer.digest] {
            if self.ports.content.info(&scope, digest).await.is_ok() {
                continue;
            }
            put(dir.path(), digest, image.blob(digest).unwrap());
            if *digest == image.manifest.digest {
                for (name, child) in [("l.0", layer), ("config", config)] {
                    let key = format!("{}.{name}", labels::GC_CONTENT_PREFIX);
                    let labeler = &self.ports.labeler;
                    let set = labeler.set_label(&scope, digest, &key, child.digest.as_str());
                    set.await.unwrap();
                }
            }
        }
        let record = Image {
            name: IMAGE.to_owned(),
            target: image.manifest.clone(),
            labels: Labels::new(),
        };
        local.set_image(&record).await.unwrap();
    }

    /// Returns all that is there. Resources of leases that do not exist are left out: whether they are kept is no
    /// matter.
    async fn left(&self) -> Left {
        let scope = self.scope(None);
        let snapshotter = self.ports.snapshotters.snapshotter(SNAPSHOTTER);
        let all = snapshotter.list(&scope).await.unwrap().into_iter();
        let snapshots: BTreeMap<_, _> = all
            .map(|info| (info.key, (info.kind, info.parent, info.labels)))
            .collect();
        let blobs = self.ports.labeler.list(&scope).await.unwrap();
        let mut leases = BTreeMap::new();
        for lease in self.ports.leases.list(&scope, None).await.unwrap() {
            let resources = self
                .ports
                .leases
                .resources(&scope, &lease.id)
                .await
                .unwrap();
            let exists = |resource: &Resource| match resource {
                Resource::Content(digest) => blobs.contains_key(digest),
                Resource::Snapshot { key, .. } => snapshots.contains_key(key),
                Resource::Ingest(_) => false,
            };
            let resources = resources.into_iter().filter(exists).collect();
            leases.insert(lease.id.0.to_string(), (lease.labels, resources));
        }
        let mut ingests = Vec::new();
        for number in 0..3 {
            let name = format!("layer-{}", blob(number).1.digest);
            ingests.push(self.ports.writer.written(&scope, &name).await.ok());
        }
        Left {
            snapshots,
            blobs,
            leases,
            ingests,
        }
    }
}

#[derive(Debug, PartialEq)]
struct Left {
    snapshots: BTreeMap<SnapshotKey, (SnapshotKind, Option<SnapshotKey>, Labels)>,
    blobs: BTreeMap<Digest, ContentInfo>,
    leases: BTreeMap<String, (Labels, BTreeSet<Resource>)>,
    /// The number of bytes of each.
    ingests: Vec<Option<u64>>,
}

fn put(root: &Path, digest: &Digest, bytes: &[u8]) {
    let directory = root.join("blobs").join(digest.algorithm());
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join(digest.encoded()), bytes).unwrap();
}

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok();
    ProptestConfig {
        cases: cases.and_then(|text| text.parse().ok()).unwrap_or(32),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_store_does_what_containerd_does(calls in calls()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (simulated, local) = (Backend::simulated(), Backend::local().await);
            for (number, call) in calls.iter().enumerate() {
                let wanted = simulated.call(call).await;
                assert_eq!(local.call(call).await, wanted, "{number}: {call:?}");
                assert_eq!(local.left().await, simulated.left().await, "{number}: {call:?}");
            }
        });
    }
}
