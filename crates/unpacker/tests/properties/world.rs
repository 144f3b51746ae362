// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The execution of a scenario.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use futures::future::{join_all, join3};
use resnap_core::testing::{Simulated, SimulatedSnapshot};
use resnap_core::{ChainId, Container, Labels, Profiles, Scope, SnapshotKey, labels};
use resnap_unpacker::{
    Clock, Engine, EngineSettings, Plan, PlannedLayer, Report, Request, UnpackError,
};
use tempfile::TempDir;

use crate::scenario::{Caller, Chain, Layer, SNAPSHOTTERS, Scenario, Then, image_name};

pub(crate) const NAMESPACE: &str = "k8s.io";

/// The prefix of the names of containers and their snapshots.
pub(crate) const CONTAINER: &str = "container-";

/// A time limit for all jobs. One fault delays an Apply by about an hour.
const LONG: Duration = Duration::from_secs(10 * 3600);

/// The time after which callers cancel jobs with an Apply that never ends.
const PATIENCE: Duration = Duration::from_secs(400);

/// The time at the start of a run in which garbage is collected more often.
const BUSY: Duration = Duration::from_secs(1);

/// The snapshots of all snapshotters.
pub(crate) type AllSnapshots = BTreeMap<(&'static str, SnapshotKey), SimulatedSnapshot>;

/// The backend and engines of a scenario, and the expected content of the backend.
pub(crate) struct World<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) simulated: Simulated,
    pub(crate) engines: Vec<Engine>,
    pub(crate) profiles: Profiles,
    /// The runtime directory that the engines share.
    pub(crate) dir: TempDir,
    /// One per image.
    pub(crate) plans: Vec<std::sync::Arc<Plan>>,
    /// The labels that a layer's snapshot may have.
    pub(crate) labels: BTreeMap<SnapshotKey, BTreeSet<Labels>>,
    /// The snapshots of containers.
    pub(crate) contained: AllSnapshots,
}

/// The end of a job whose caller waited for it.
pub(crate) struct End {
    pub(crate) caller: Caller,
    pub(crate) result: Result<Report, UnpackError>,
}

impl<'a> World<'a> {
    pub(crate) async fn new(scenario: &'a Scenario) -> Self {
        let simulated = Simulated::new();
        // In memory, as thousands of locks are slow on a disk.
        let memory = tempfile::tempdir_in("/dev/shm");
        let dir = memory.or_else(|_| tempfile::tempdir()).unwrap();
        let engines = (0..scenario.engines).map(|_| engine(&simulated, scenario, dir.path()));
        let engines: Vec<Engine> = engines.collect();
        let mut plans = Vec::new();
        let mut labels: BTreeMap<SnapshotKey, BTreeSet<Labels>> = BTreeMap::new();
        for (index, layers) in scenario.images.iter().enumerate() {
            let image = scenario.image(index);
            simulated.add_image(NAMESPACE, &image_name(index), &image);
            for (layer, simulated_layer) in layers.iter().zip(&image.layers) {
                if matches!(layer, Layer::Missing(_)) {
                    simulated.remove_blob(NAMESPACE, &simulated_layer.descriptor.digest);
                }
            }
            let request = Request::new(image_name(index));
            let plan = engines[0].plan(&request).await.unwrap();
            for layer in &plan.layers {
                let known = labels.entry(SnapshotKey::from(&layer.chain_id));
                known.or_default().insert(layer.labels.clone());
            }
            plans.push(plan);
        }
        let mut world = Self {
            scenario,
            simulated,
            engines,
            profiles: Profiles::default(),
            dir,
            plans,
            labels,
            contained: AllSnapshots::new(),
        };
        for chain in scenario.chains.iter().filter(|chain| !chain.labelled) {
            for layer in &world.plans[chain.image].layers {
                let known = world.labels.entry(SnapshotKey::from(&layer.chain_id));
                known.or_default().insert(Labels::new());
            }
        }
        world.add_repaired_labels();
        for (name, behaviour) in SNAPSHOTTERS.into_iter().zip(scenario.behaviours) {
            world.simulated.add_snapshotter(name, behaviour);
        }
        let before = |chain: &&Chain| chain.comes.is_none();
        for chain in scenario.chains.iter().filter(before) {
            let top = world.unpack_elsewhere(chain);
            if let (true, Some(top)) = (chain.contained, top) {
                world.contain(chain, &top).await;
            }
        }
        world.simulated.set_jitter(scenario.seed);
        world.simulated.set_faults(scenario.faults.clone());
        world
    }

    /// Adds the labels that a repair sets on a top layer.
    fn add_repaired_labels(&mut self) {
        let profiles = &self.profiles;
        let needs = SNAPSHOTTERS
            .into_iter()
            .filter_map(|name| profiles.need(name));
        for (key, value) in needs.filter_map(|need| need.repair_label) {
            for top in self.plans.iter().filter_map(|plan| plan.layers.last()) {
                let mut labels = top.labels.clone();
                labels.insert(key.to_owned(), value.to_owned());
                let known = self.labels.entry(SnapshotKey::from(&top.chain_id));
                known.or_default().insert(labels);
            }
        }
    }

    /// Unpacks a chain as another client does, and returns its top layer.
    fn unpack_elsewhere(&self, chain: &Chain) -> Option<ChainId> {
        let name = SNAPSHOTTERS[chain.snapshotter];
        let plan = &self.plans[chain.image];
        let none = Labels::new();
        let mut top = None;
        for layer in self.layers_elsewhere(chain) {
            let labels = if chain.labelled { &layer.labels } else { &none };
            let (parent, diff_id) = (layer.parent.as_ref(), &layer.diff_id);
            let unpacked = self
                .simulated
                .unpack(NAMESPACE, name, parent, diff_id, labels);
            if !unpacked {
                // Garbage collection removed the parent.
                return top;
            }
            top = Some(layer.chain_id.clone());
        }
        if let (true, Some(top)) = (chain.rooted, plan.top()) {
            let label = format!("{}{name}", labels::GC_SNAPSHOT_PREFIX);
            let config = &plan.config.digest;
            self.simulated
                .label_blob(NAMESPACE, config, &label, top.as_str());
        }
        top
    }

    fn layers_elsewhere(&self, chain: &Chain) -> impl Iterator<Item = &PlannedLayer> {
        let layers = &self.scenario.images[chain.image];
        let whole = |layer: &&Layer| matches!(layer, Layer::Whole(_));
        let whole = layers.iter().take_while(whole).count();
        let planned = self.plans[chain.image].layers.iter();
        planned.take(whole.min(chain.layers))
    }

    /// Creates a container on a chain.
    async fn contain(&mut self, chain: &Chain, top: &ChainId) {
        let name = SNAPSHOTTERS[chain.snapshotter];
        let id = format!("{CONTAINER}{}", self.contained.len());
        let snapshot = SnapshotKey::from(id.clone());
        let snapshotter = self.simulated.ports().snapshotters.snapshotter(name);
        let (scope, none) = (Scope::new(NAMESPACE), Labels::new());
        let mounts = snapshotter.prepare(&scope, &snapshot, Some(top), &none);
        mounts.await.unwrap();
        let container = Container {
            id,
            snapshotter: name.to_owned(),
            snapshot: snapshot.clone(),
        };
        self.simulated.add_container(NAMESPACE, container);
        let all = self.all_snapshots();
        let mut next = Some(snapshot);
        while let Some(key) = next {
            let snapshot = all[&(name, key.clone())].clone();
            next = snapshot.info.parent.clone();
            self.contained.insert((name, key), snapshot);
        }
    }

    /// Returns all snapshots of all snapshotters.
    pub(crate) fn all_snapshots(&self) -> AllSnapshots {
        let of = |name| self.simulated.snapshots(NAMESPACE, name).into_iter();
        let all = SNAPSHOTTERS
            .into_iter()
            .flat_map(|name| of(name).map(move |snapshot| (name, snapshot)));
        all.map(|(name, snapshot)| ((name, snapshot.info.key.clone()), snapshot))
            .collect()
    }

    /// Runs all callers, and waits for the end of all jobs.
    pub(crate) async fn run(&self) -> Vec<End> {
        let callers = &self.scenario.callers;
        let served = join_all(callers.iter().map(|caller| self.serve(caller)));
        let elsewhere = self.scenario.chains.iter().filter_map(|chain| {
            let comes = chain.comes?;
            Some(async move {
                tokio::time::sleep(comes).await;
                self.unpack_elsewhere(chain);
            })
        });
        let deletion = async {
            if let Some((image, time)) = self.scenario.deletion {
                tokio::time::sleep(time).await;
                self.simulated.remove_image(NAMESPACE, &image_name(image));
            }
        };
        let all = join3(served, join_all(elsewhere), deletion);
        let collecting = async {
            let Some(pause) = self.scenario.garbage else {
                return std::future::pending().await;
            };
            let mut time = Duration::ZERO;
            loop {
                let pause = if time < BUSY { pause } else { 100 * pause };
                tokio::time::sleep(pause).await;
                time += pause;
                self.simulated.collect_garbage();
            }
        };
        let ends = tokio::select! {
            ends = tokio::time::timeout(LONG, all) => ends.expect("a job never ends").0,
            () = collecting => unreachable!("garbage collection never ends"),
        };
        // Jobs without a caller may still be running.
        tokio::time::sleep(LONG).await;
        ends.into_iter().flatten().collect()
    }

    async fn serve(&self, caller: &Caller) -> Option<End> {
        tokio::time::sleep(caller.comes).await;
        let snapshotter = SNAPSHOTTERS[caller.snapshotter];
        let mut request = Request::new(image_name(caller.image)).on(snapshotter);
        request.repair = caller.repair;
        let job = self.engines[caller.engine % self.engines.len()].unpack(request);
        let canceller = job.canceller();
        let patience = async {
            if self.scenario.hangs() {
                tokio::time::sleep(PATIENCE).await;
                canceller.cancel();
            }
            std::future::pending().await
        };
        let wait = async {
            match caller.then {
                Then::Waits => Some(job.report().await),
                Then::Leaves(after) => {
                    tokio::time::sleep(after).await;
                    drop(job);
                    if self.scenario.hangs() {
                        tokio::time::sleep(PATIENCE).await;
                        canceller.cancel();
                    }
                    None
                }
                Then::Cancels(after) => {
                    let mut report = pin!(job.report());
                    if let Ok(result) = tokio::time::timeout(after, &mut report).await {
                        return Some(result);
                    }
                    canceller.cancel();
                    Some(report.await)
                }
            }
        };
        let result = tokio::select! {
            result = wait => result?,
            () = patience => unreachable!("a caller never stops waiting"),
        };
        let caller = caller.clone();
        Some(End { caller, result })
    }
}

/// Returns an engine that shares a runtime directory with the other engines.
pub(crate) fn engine(simulated: &Simulated, scenario: &Scenario, dir: &Path) -> Engine {
    let mut settings = EngineSettings::default();
    settings.runtime_dir = Some(dir.to_owned());
    settings.lease_lifetime = scenario.lifetime;
    let backend = simulated.clone();
    settings.clock = Clock::new(move || backend.now());
    Engine::new(simulated.ports(), NAMESPACE, settings).unwrap()
}
