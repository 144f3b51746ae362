// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A simulated containerd in memory.

mod behaviour;
mod garbage;
mod ingest;
mod ports;
mod snapshots;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

pub use self::behaviour::Behaviour;
use self::snapshots::Commit;
use self::state::State;
use super::{Effect, Fault, Operation, SimulatedImage, image};
use crate::{
    ChainId, Container, DiffId, Digest, Error, Kind, Labels, LeaseId, Platform, Ports, Result,
    Scope, SnapshotInfo, SnapshotKey,
};

/// The time limit of calls of the containerd client, except Apply.
const CALL_TIME: Duration = Duration::from_secs(60);

/// A snapshot as a [`Simulated`] keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimulatedSnapshot {
    /// The result of Stat.
    pub info: SnapshotInfo,
    /// The layers that were written to it and to its ancestors, the base first. An interrupted Apply
    /// leaves a diff ID that belongs to no layer.
    pub content: Vec<DiffId>,
}

impl SimulatedSnapshot {
    /// Returns the chain ID of this content.
    pub fn chain_id(&self) -> Option<ChainId> {
        self.content.iter().fold(None, |parent, diff_id| {
            Some(ChainId::of(parent.as_ref(), diff_id))
        })
    }
}

/// A lease as a [`Simulated`] keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimulatedLease {
    /// Its name.
    pub id: LeaseId,
    /// Its labels.
    pub labels: Labels,
    /// The snapshots on it, by snapshotter and name, whether they exist or not.
    pub snapshots: Vec<(String, SnapshotKey)>,
}

/// A backend in memory with containerd's rules, including garbage collection, and with fault injection.
/// Clones share their state. Its clock is that of tokio, so that tests can pause it.
#[derive(Debug, Clone)]
pub struct Simulated {
    state: Arc<Mutex<State>>,
    started: (SystemTime, Instant),
}

impl Default for Simulated {
    fn default() -> Self {
        Self::new()
    }
}

impl Simulated {
    /// Creates an empty backend.
    pub fn new() -> Self {
        Self {
            state: Arc::default(),
            started: (SystemTime::now(), Instant::now()),
        }
    }

    /// Returns all ports of this backend.
    pub fn ports(&self) -> Ports {
        let this = Arc::new(self.clone());
        Ports {
            images: this.clone(),
            content: this.clone(),
            labeler: this.clone(),
            writer: this.clone(),
            snapshotters: this.clone(),
            applier: this.clone(),
            leases: this.clone(),
            containers: this.clone(),
            introspection: this,
        }
    }

    /// Adds a snapshotter.
    pub fn add_snapshotter(&self, name: &str, behaviour: Behaviour) {
        self.state().snapshotters.insert(name.to_owned(), behaviour);
    }

    /// Adds an image's record and blobs to a namespace.
    pub fn add_image(&self, namespace: &str, name: &str, image: &SimulatedImage) {
        self.state().add_image(namespace, name, image);
    }

    /// Adds an index of several images, each with its platform in the index.
    pub fn add_index(&self, namespace: &str, name: &str, entries: &[(Platform, SimulatedImage)]) {
        let mut state = self.state();
        for (_, image) in entries {
            state.add_image(namespace, name, image);
        }
        let (target, blob) = image::index(entries);
        let references = entries.iter().enumerate().map(|(index, (_, image))| {
            let key = format!("containerd.io/gc.ref.content.m.{index}");
            (key, image.manifest.digest.to_string())
        });
        let references = references.collect();
        let namespace = state.namespace(namespace);
        let blobs = &mut namespace.blobs;
        blobs.insert(target.digest.clone(), (blob, references));
        namespace.set_image(name, target);
    }

    /// Adds a container's record, which holds its snapshot.
    pub fn add_container(&self, namespace: &str, container: Container) {
        self.state().namespace(namespace).containers.push(container);
    }

    /// Commits a layer like another client, without a lease. Returns false if its parent does not exist.
    /// An existing snapshot is kept.
    pub fn unpack(
        &self,
        namespace: &str,
        snapshotter: &str,
        parent: Option<&ChainId>,
        diff_id: &DiffId,
        labels: &Labels,
    ) -> bool {
        let chain_id = ChainId::of(parent, diff_id);
        let commit = Commit {
            scope: Scope::new(namespace),
            snapshotter: snapshotter.to_owned(),
            name: SnapshotKey::from(&chain_id),
            key: SnapshotKey::extraction("elsewhere", &chain_id),
            labels: labels.clone(),
        };
        let parent = parent.map(SnapshotKey::from);
        snapshots::unpack(&mut self.state(), commit, parent, diff_id)
    }

    /// Labels an image's record like another client.
    pub fn label_image(&self, namespace: &str, name: &str, key: &str, value: &str) {
        let mut state = self.state();
        // A missing image is ignored.
        if let Some((_, labels)) = state.namespace(namespace).images.get_mut(name) {
            labels.insert(key.to_owned(), value.to_owned());
        }
    }

    /// Removes an image's record.
    pub fn remove_image(&self, namespace: &str, name: &str) {
        self.state().namespace(namespace).images.remove(name);
    }

    /// Labels an existing blob like another client.
    pub fn label_blob(&self, namespace: &str, digest: &Digest, key: &str, value: &str) {
        let mut state = self.state();
        // A missing blob is ignored.
        let _ = state
            .namespace(namespace)
            .set_label(digest, key.to_owned(), value.to_owned());
    }

    /// Removes a blob, like a containerd that discards unpacked layers.
    pub fn remove_blob(&self, namespace: &str, digest: &Digest) {
        self.state().namespace(namespace).blobs.remove(digest);
    }

    /// Returns whether a blob exists.
    pub fn has_blob(&self, namespace: &str, digest: &Digest) -> bool {
        let mut state = self.state();
        state.namespace(namespace).blobs.contains_key(digest)
    }

    /// Returns the names of the ingests that were not committed.
    pub fn ingests(&self, namespace: &str) -> Vec<String> {
        let mut state = self.state();
        let ingests = &state.namespace(namespace).ingests;
        ingests.keys().cloned().collect()
    }

    /// Sets the faults of the following calls, and resets the counters.
    pub fn set_faults(&self, faults: impl IntoIterator<Item = Fault>) {
        let mut state = self.state();
        state.faults = faults.into_iter().collect();
        state.fired.clear();
        state.calls.clear();
    }

    /// Gives every call a short delay that depends on `seed`, and with it the order of concurrent tasks.
    pub fn set_jitter(&self, seed: u64) {
        self.state().jitter = Some(seed | 1);
    }

    /// Returns the faults that took place.
    pub fn fired(&self) -> Vec<Fault> {
        self.state().fired.clone()
    }

    /// Returns the number of calls of an operation since the faults were set.
    pub fn calls(&self, operation: Operation) -> usize {
        self.state().calls.get(&operation).copied().unwrap_or(0)
    }

    /// Returns the leases of a namespace, including expired ones until garbage is collected.
    pub fn leases(&self, namespace: &str) -> Vec<SimulatedLease> {
        let mut state = self.state();
        let leases = state.namespace(namespace).leases.iter();
        leases
            .map(|(id, lease)| SimulatedLease {
                id: LeaseId(Arc::clone(id)),
                labels: lease.labels.clone(),
                snapshots: lease.snapshots.iter().cloned().collect(),
            })
            .collect()
    }

    /// Returns the snapshots of a snapshotter in a namespace, ordered by name.
    pub fn snapshots(&self, namespace: &str, snapshotter: &str) -> Vec<SimulatedSnapshot> {
        let mut state = self.state();
        let all = state.namespace(namespace).snapshots.iter();
        all.filter(|((owner, _), _)| owner == snapshotter)
            .map(|((_, key), snapshot)| SimulatedSnapshot {
                info: snapshot.info(key),
                content: snapshot.content.clone(),
            })
            .collect()
    }

    /// Collects garbage in all namespaces, as containerd may do at any time.
    pub fn collect_garbage(&self) {
        let now = self.now();
        garbage::collect(&mut self.state(), now);
    }

    /// Returns the time of the backend's clock, by which leases expire.
    pub fn now(&self) -> SystemTime {
        let (wall, instant) = self.started;
        wall + instant.elapsed()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work`, with the fault for this call if there is one.
    async fn call<T: Send + 'static>(
        &self,
        operation: Operation,
        subject: &str,
        work: impl FnOnce(&mut State) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (fault, jitter) = self.state().begin(operation);
        match jitter {
            Some(jitter) => tokio::time::sleep(jitter).await,
            None => tokio::task::yield_now().await,
        }
        let fail =
            |kind| Err(Error::new(kind, "simulate", subject).with_source("an injected fault"));
        match fault {
            None => work(&mut self.state()),
            Some(Effect::Fail(kind)) => fail(kind),
            Some(Effect::LoseAnswer(kind)) => {
                // The answer is lost, whatever it was.
                let _ = work(&mut self.state());
                fail(kind)
            }
            Some(Effect::Late(kind, delay)) => {
                let this = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    let _ = work(&mut this.state());
                });
                fail(kind)
            }
            Some(Effect::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                work(&mut self.state())
            }
            Some(Effect::Hang) if operation == Operation::Apply => std::future::pending().await,
            Some(Effect::Hang) => {
                tokio::time::sleep(CALL_TIME).await;
                fail(Kind::DeadlineExceeded)
            }
        }
    }
}
