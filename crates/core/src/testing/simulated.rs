// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A containerd in memory.

mod behaviour;
mod garbage;
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

/// How long the containerd client waits for an answer, but for an Apply's.
const CALL_TIME: Duration = Duration::from_secs(60);

/// A snapshot as a [`Simulated`] keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimulatedSnapshot {
    /// What Stat says.
    pub info: SnapshotInfo,
    /// What was written to it and to those below, the base first. An Apply that was cut off leaves
    /// something that is no layer's.
    pub content: Vec<DiffId>,
}

impl SimulatedSnapshot {
    /// The name under which this content may be committed.
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
    /// The snapshots on it, by snapshotter and name, whether they are there or not.
    pub snapshots: Vec<(String, SnapshotKey)>,
}

/// A backend in memory with containerd's rules, garbage collection included, whose calls can be
/// made to go wrong. Clones are the same backend. Its clock is tokio's, so that a test may pause
/// it.
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
    /// A backend without anything in it.
    pub fn new() -> Self {
        Self {
            state: Arc::default(),
            started: (SystemTime::now(), Instant::now()),
        }
    }

    /// All ports of this backend.
    pub fn ports(&self) -> Ports {
        let this = Arc::new(self.clone());
        Ports {
            images: this.clone(),
            content: this.clone(),
            labeler: this.clone(),
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

    /// Puts an image's record and blobs in a namespace.
    pub fn add_image(&self, namespace: &str, name: &str, image: &SimulatedImage) {
        self.state().add_image(namespace, name, image);
    }

    /// The same with an index of several images, each under the platform that the index gives it.
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
        namespace.images.insert(name.to_owned(), target);
    }

    /// Adds a container's record, which keeps its snapshot.
    pub fn add_container(&self, namespace: &str, container: Container) {
        self.state().namespace(namespace).containers.push(container);
    }

    /// Commits a layer as somebody else would, under no lease; false if its parent is not there.
    /// One that is there stays as it is.
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

    /// Removes an image's record; garbage collection takes what it kept.
    pub fn remove_image(&self, namespace: &str, name: &str) {
        self.state().namespace(namespace).images.remove(name);
    }

    /// Labels a blob that is there, as somebody else would.
    pub fn label_blob(&self, namespace: &str, digest: &Digest, key: &str, value: &str) {
        let mut state = self.state();
        // Nobody is told where it is not.
        let _ = state
            .namespace(namespace)
            .set_label(digest, key.to_owned(), value.to_owned());
    }

    /// Removes a blob, as containerd does that discards unpacked layers.
    pub fn remove_blob(&self, namespace: &str, digest: &Digest) {
        self.state().namespace(namespace).blobs.remove(digest);
    }

    /// Makes calls go wrong from here on. Counting begins anew.
    pub fn set_faults(&self, faults: impl IntoIterator<Item = Fault>) {
        let mut state = self.state();
        state.faults = faults.into_iter().collect();
        state.fired.clear();
        state.calls.clear();
    }

    /// Makes every call take a different short time, so that tasks meet in an order that `seed`
    /// decides.
    pub fn set_jitter(&self, seed: u64) {
        self.state().jitter = Some(seed | 1);
    }

    /// The faults that took place.
    pub fn fired(&self) -> Vec<Fault> {
        self.state().fired.clone()
    }

    /// How often an operation was called since the faults were set.
    pub fn calls(&self, operation: Operation) -> usize {
        self.state().calls.get(&operation).copied().unwrap_or(0)
    }

    /// The leases of a namespace, expired ones included until garbage is collected.
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

    /// The snapshots of a snapshotter in a namespace, by name.
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

    /// Collects garbage in all namespaces, as containerd does whenever it likes.
    pub fn collect_garbage(&self) {
        let now = self.now();
        garbage::collect(&mut self.state(), now);
    }

    /// The backend's clock, by which leases expire.
    pub fn now(&self) -> SystemTime {
        let (wall, instant) = self.started;
        wall + instant.elapsed()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work`, unless a fault is meant for this call.
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
                // Only the answer is lost, whatever it was.
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
