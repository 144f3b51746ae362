// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What holds of the engine whatever happens: random images, snapshotters, callers and faults, on
//! a simulated backend. `PROPTEST_CASES=10000` tries harder.

// Test code: it fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod scenario;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use proptest::prelude::*;
use resnap_core::labels::NeededOn;
use resnap_core::testing::{
    Effect, Fault, Operation, Simulated, SimulatedLease, SimulatedSnapshot,
};
use resnap_core::{ChainId, Kind, Labels, SnapshotKey, SnapshotKind, labels};
use resnap_unpacker::{Engine, Plan, PlannedLayer, Report, Request, Settings, UnpackError};
use scenario::{Caller, Chain, Layer, SNAPSHOTTERS, Scenario, Then, image_name, scenarios};

const NAMESPACE: &str = "k8s.io";

/// No job takes so long: faults delay calls by seconds.
const LONG: Duration = Duration::from_secs(600);

/// Longer than any lease lives.
const EXPIRY: Duration = Duration::from_secs(2 * 3600);

proptest! {
    #![proptest_config(config())]

    #[test]
    fn whatever_happens(scenario in scenarios()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let world = World::new(&scenario).await;
            let ends = world.run().await;
            world.check(&ends).await;
        });
    }
}

fn config() -> ProptestConfig {
    ProptestConfig {
        // Rare meetings of several tasks and garbage collection take more than the usual 256.
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// A backend as a scenario wants it, and what may be there afterwards.
struct World<'a> {
    scenario: &'a Scenario,
    simulated: Simulated,
    engine: Engine,
    /// Of each image.
    plans: Vec<Plan>,
    /// The labels that a layer's snapshot may have.
    labels: BTreeMap<SnapshotKey, BTreeSet<Labels>>,
}

/// The end of a job whose caller waited for it.
struct End {
    caller: Caller,
    result: Result<Report, UnpackError>,
}

impl<'a> World<'a> {
    async fn new(scenario: &'a Scenario) -> Self {
        let simulated = Simulated::new();
        let engine = Engine::new(simulated.ports(), NAMESPACE, Settings::default()).unwrap();
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
            let plan = engine.plan(&request(index, 0)).await.unwrap();
            for layer in &plan.layers {
                let known = labels.entry(SnapshotKey::from(&layer.chain_id));
                known.or_default().insert(layer.labels.clone());
            }
            plans.push(plan);
        }
        let mut world = Self {
            scenario,
            simulated,
            engine,
            plans,
            labels,
        };
        for chain in scenario.chains.iter().filter(|chain| !chain.labelled) {
            for layer in &world.plans[chain.image].layers {
                let known = world.labels.entry(SnapshotKey::from(&layer.chain_id));
                known.or_default().insert(Labels::new());
            }
        }
        let before = |chain: &&Chain| chain.comes.is_none();
        for chain in scenario.chains.iter().filter(before) {
            world.unpack_elsewhere(chain);
        }
        for (name, behaviour) in SNAPSHOTTERS.into_iter().zip(scenario.behaviours) {
            world.simulated.add_snapshotter(name, behaviour);
        }
        world.simulated.set_jitter(scenario.seed);
        world.simulated.set_faults(scenario.faults.clone());
        world
    }

    /// Makes a chain as somebody else does.
    fn unpack_elsewhere(&self, chain: &Chain) {
        let name = SNAPSHOTTERS[chain.snapshotter];
        let plan = &self.plans[chain.image];
        let none = Labels::new();
        for layer in self.layers_elsewhere(chain) {
            let labels = if chain.labelled { &layer.labels } else { &none };
            let (parent, diff_id) = (layer.parent.as_ref(), &layer.diff_id);
            let unpacked = self
                .simulated
                .unpack(NAMESPACE, name, parent, diff_id, labels);
            if !unpacked {
                // Garbage collection was faster.
                return;
            }
        }
        if let (true, Some(top)) = (chain.rooted, plan.top()) {
            let label = format!("{}{name}", labels::GC_SNAPSHOT_PREFIX);
            let config = &plan.config.digest;
            self.simulated
                .label_blob(NAMESPACE, config, &label, top.as_str());
        }
    }

    fn layers_elsewhere(&self, chain: &Chain) -> impl Iterator<Item = &PlannedLayer> {
        let layers = &self.scenario.images[chain.image];
        let whole = |layer: &&Layer| matches!(layer, Layer::Whole(_));
        let whole = layers.iter().take_while(whole).count();
        let planned = self.plans[chain.image].layers.iter();
        planned.take(whole.min(chain.layers))
    }

    /// Lets all callers come and go, and all jobs end.
    async fn run(&self) -> Vec<End> {
        let callers = self
            .scenario
            .callers
            .iter()
            .map(|caller| self.serve(caller));
        let served = join_all(callers);
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
        let all = futures::future::join3(served, join_all(elsewhere), deletion);
        let collecting = async {
            let Some(pause) = self.scenario.garbage else {
                return std::future::pending().await;
            };
            loop {
                tokio::time::sleep(pause).await;
                self.simulated.collect_garbage();
            }
        };
        let ends = tokio::select! {
            ends = tokio::time::timeout(LONG, all) => ends.expect("a job never ends").0,
            () = collecting => unreachable!("garbage is collected for ever"),
        };
        // The jobs of those who left.
        tokio::time::sleep(LONG).await;
        ends.into_iter().flatten().collect()
    }

    async fn serve(&self, caller: &Caller) -> Option<End> {
        tokio::time::sleep(caller.comes).await;
        let job = self
            .engine
            .unpack(request(caller.image, caller.snapshotter));
        match caller.then {
            Then::Waits => Some(End {
                caller: caller.clone(),
                result: job.report().await,
            }),
            Then::Leaves(after) => {
                tokio::time::sleep(after).await;
                drop(job);
                None
            }
        }
    }

    async fn check(&self, ends: &[End]) {
        let fired = self.simulated.fired();
        for End { caller, result } in ends {
            match result {
                Ok(report) => self.check_report(caller, report),
                Err(error) => assert!(self.explains(caller, error, &fired), "{error:?}"),
            }
        }
        for name in SNAPSHOTTERS {
            for snapshot in self.simulated.snapshots(NAMESPACE, name) {
                self.check_snapshot(&snapshot, &fired);
            }
        }
        self.check_leases(ends, &fired);

        self.simulated.collect_garbage();
        self.check_ready(ends);
        tokio::time::sleep(EXPIRY).await;
        self.simulated.collect_garbage();
        self.check_ready(ends);
        let left = self.simulated.leases(NAMESPACE);
        assert!(left.is_empty(), "leases for ever: {left:?}");
        for name in SNAPSHOTTERS {
            for snapshot in self.simulated.snapshots(NAMESPACE, name) {
                assert_eq!(
                    snapshot.info.kind,
                    SnapshotKind::Committed,
                    "for ever: {snapshot:?}"
                );
            }
        }
    }

    fn check_report(&self, caller: &Caller, report: &Report) {
        let plan = &self.plans[caller.image];
        assert_eq!(report.chain_id.as_ref(), plan.top());
        let reported: Vec<&ChainId> = report.layers.iter().map(|layer| &layer.chain_id).collect();
        let planned: Vec<&ChainId> = plan.layers.iter().map(|layer| &layer.chain_id).collect();
        assert_eq!(reported, planned, "every layer is told of once, in order");
    }

    /// A committed snapshot holds what its name says, and says so; active ones are gone.
    fn check_snapshot(&self, snapshot: &SimulatedSnapshot, fired: &[Fault]) {
        let info = &snapshot.info;
        if info.kind != SnapshotKind::Committed {
            assert!(
                excuses_active(fired),
                "an active snapshot is left: {snapshot:?}"
            );
            return;
        }
        let chain_id = snapshot
            .chain_id()
            .expect("a committed snapshot has layers");
        assert_eq!(
            info.key,
            SnapshotKey::from(&chain_id),
            "wrong content: {snapshot:?}"
        );
        let known = self.labels.get(&info.key).expect("a layer of no image");
        assert!(known.contains(&info.labels), "wrong labels: {snapshot:?}");
        let plans = self.plans.iter().flat_map(|plan| &plan.layers);
        let mut same = plans.filter(|layer| layer.chain_id == chain_id);
        let parent = same.next().and_then(|layer| layer.parent.as_ref());
        assert_eq!(info.parent, parent.map(SnapshotKey::from), "{snapshot:?}");
    }

    /// A lease is left only by a job that failed, and for the layers it made.
    fn check_leases(&self, ends: &[End], fired: &[Fault]) {
        let left = self.simulated.leases(NAMESPACE);
        if excuses_lease(fired) {
            return;
        }
        let idle: Vec<_> = left
            .iter()
            .filter(|lease| !self.keeps_layers(lease))
            .collect();
        assert!(idle.is_empty(), "leases are left for nothing: {idle:?}");
        let succeeded = ends.iter().filter(|end| end.result.is_ok()).count();
        let others = self.scenario.callers.len() - succeeded;
        assert!(left.len() <= others, "of jobs that succeeded: {left:?}");
    }

    fn keeps_layers(&self, lease: &SimulatedLease) -> bool {
        lease.snapshots.iter().any(|(snapshotter, key)| {
            let all = self.simulated.snapshots(NAMESPACE, snapshotter);
            all.iter().any(|snapshot| {
                snapshot.info.key == *key && snapshot.info.kind == SnapshotKind::Committed
            })
        })
    }

    /// What was reported as ready is there.
    fn check_ready(&self, ends: &[End]) {
        for End { caller, result } in ends {
            if result.is_err() || self.is_deleted(caller.image) {
                continue;
            }
            let name = SNAPSHOTTERS[caller.snapshotter];
            let there: BTreeMap<SnapshotKey, SimulatedSnapshot> = self
                .simulated
                .snapshots(NAMESPACE, name)
                .into_iter()
                .map(|snapshot| (snapshot.info.key.clone(), snapshot))
                .collect();
            let layers = &self.plans[caller.image].layers;
            for (index, layer) in layers.iter().enumerate() {
                let snapshot = there.get(&SnapshotKey::from(&layer.chain_id));
                let snapshot = snapshot.unwrap_or_else(|| {
                    panic!("{} on {name} is not there: {caller:?}", layer.chain_id)
                });
                assert_eq!(snapshot.info.kind, SnapshotKind::Committed);
                let missing = labels::missing(&snapshot.info.labels);
                let needed = labels::need(name).is_some_and(|need| {
                    need.layers == NeededOn::Every || index + 1 == layers.len()
                });
                assert!(!needed || missing.is_empty(), "{snapshot:?}");
            }
        }
    }

    fn is_deleted(&self, image: usize) -> bool {
        let deletion = self.scenario.deletion;
        deletion.is_some_and(|(deleted, _)| deleted == image)
    }

    /// Whether a job could fail so.
    fn explains(&self, caller: &Caller, error: &UnpackError, fired: &[Fault]) -> bool {
        let layers = &self.scenario.images[caller.image];
        if self.is_deleted(caller.image) && error.kind() == Kind::NotFound {
            return true;
        }
        match error {
            UnpackError::MissingBlob { .. } => {
                layers
                    .iter()
                    .any(|layer| matches!(layer, Layer::Missing(_)))
                    || !fired.is_empty()
            }
            UnpackError::WrongDiffId { .. } => layers
                .iter()
                .any(|layer| matches!(layer, Layer::Mislabelled(_))),
            UnpackError::Unlabelled { .. } => {
                let chains = &self.scenario.chains;
                chains.iter().any(|chain| !chain.labelled)
            }
            UnpackError::Disagreement { .. } => self.scenario.may_disagree(caller.snapshotter),
            UnpackError::Broken { .. } => false,
            _ => !fired.is_empty(),
        }
    }
}

fn request(image: usize, snapshotter: usize) -> Request {
    Request::new(image_name(image), SNAPSHOTTERS[snapshotter])
}

/// Whether undoing a Prepare was what went wrong, or a Prepare came after it was undone.
fn excuses_active(fired: &[Fault]) -> bool {
    fired
        .iter()
        .any(|fault| match (fault.operation, fault.effect) {
            (Operation::Prepare, Effect::Late(..)) => true,
            (Operation::Remove, effect) => !matches!(effect, Effect::LoseAnswer(_)),
            _ => false,
        })
}

/// Whether ending a lease was what went wrong, or it was made after it was ended.
fn excuses_lease(fired: &[Fault]) -> bool {
    fired
        .iter()
        .any(|fault| match (fault.operation, fault.effect) {
            (Operation::CreateLease, Effect::Late(..)) => true,
            (Operation::DeleteLease, effect) => !matches!(effect, Effect::LoseAnswer(_)),
            _ => false,
        })
}
