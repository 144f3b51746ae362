// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The checks at the end of a run.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use resnap_core::testing::{
    Behaviour, Effect, Fault, Operation, SimulatedLease, SimulatedSnapshot,
};
use resnap_core::{ChainId, Kind, SnapshotKey, SnapshotKind, labels};
use resnap_unpacker::{Report, UnpackError};

use crate::scenario::{Caller, Layer, SNAPSHOTTERS, Then};
use crate::world::{AllSnapshots, CONTAINER, End, NAMESPACE, World};

/// A time after which all leases have expired.
const EXPIRY: Duration = Duration::from_secs(2 * 3600);

/// The checks of a world after its jobs have ended.
pub(crate) struct Check<'a> {
    world: &'a World<'a>,
}

impl<'a> Check<'a> {
    pub(crate) fn of(world: &'a World<'a>) -> Self {
        Self { world }
    }

    pub(crate) async fn all(&self, ends: &[End]) {
        let fired = self.world.simulated.fired();
        for End { caller, result } in ends {
            match result {
                Ok(report) => self.check_report(caller, report),
                Err(error) => assert!(
                    self.explains(caller, error, &fired),
                    "{caller:?}: {error:?}"
                ),
            }
        }
        for snapshot in self.world.all_snapshots().values() {
            self.check_snapshot(snapshot, &fired);
        }
        self.check_contained();
        self.check_leases(ends, &fired);
        let locks: Vec<_> = fs::read_dir(self.world.dir.path()).unwrap().collect();
        assert!(locks.is_empty(), "locks are left: {locks:?}");

        self.world.simulated.collect_garbage();
        self.check_ready(ends);
        tokio::time::sleep(EXPIRY).await;
        self.world.simulated.collect_garbage();
        self.check_ready(ends);
        let left = self.world.simulated.leases(NAMESPACE);
        assert!(left.is_empty(), "leases never expire: {left:?}");
        for snapshot in self.world.all_snapshots().values() {
            assert!(
                snapshot.info.kind == SnapshotKind::Committed || is_container(snapshot),
                "never removed: {snapshot:?}"
            );
        }
    }

    /// Checks that all jobs succeed and each layer is applied once.
    pub(crate) fn applied_once(&self, ends: &[End]) {
        for End { caller, result } in ends {
            assert!(result.is_ok(), "{caller:?}: {result:?}");
        }
        let callers = self.world.scenario.callers.iter();
        let wanted: BTreeSet<(usize, &ChainId)> = callers
            .filter(|caller| {
                let behaviour = self.world.scenario.behaviours[caller.snapshotter];
                matches!(behaviour, Behaviour::Ordinary | Behaviour::Lying(_))
            })
            .flat_map(|caller| {
                let layers = self.world.plans[caller.image].layers.iter();
                layers.map(|layer| (caller.snapshotter, &layer.chain_id))
            })
            .collect();
        assert_eq!(self.world.simulated.calls(Operation::Apply), wanted.len());
    }

    /// Checks that each repair succeeds, or changes nothing because a snapshot is in use.
    pub(crate) fn repaired(&self, ends: &[End], before: &AllSnapshots) {
        for end in ends {
            if let Err(UnpackError::InUse { .. }) = end.result {
                assert_eq!(
                    *before,
                    self.world.all_snapshots(),
                    "changed in spite of its use"
                );
            }
            let unlabelled = matches!(end.result, Err(UnpackError::Unlabelled { .. }));
            assert!(!unlabelled, "not repaired");
        }
    }

    fn check_report(&self, caller: &Caller, report: &Report) {
        let plan = &self.world.plans[caller.image];
        assert_eq!(report.chain_id.as_ref(), plan.top());
        let reported: Vec<&ChainId> = report.layers.iter().map(|layer| &layer.chain_id).collect();
        let planned: Vec<&ChainId> = plan.layers.iter().map(|layer| &layer.chain_id).collect();
        assert_eq!(reported, planned, "each layer is reported once, in order");
    }

    /// Checks that a committed snapshot has the content and labels that belong to its name, and that there is
    /// no active one.
    fn check_snapshot(&self, snapshot: &SimulatedSnapshot, fired: &[Fault]) {
        let info = &snapshot.info;
        if info.kind != SnapshotKind::Committed {
            assert!(
                is_container(snapshot) || excuses_active(fired),
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
        let known = self
            .world
            .labels
            .get(&info.key)
            .expect("a layer of no image");
        assert!(known.contains(&info.labels), "wrong labels: {snapshot:?}");
        let plans = self.world.plans.iter().flat_map(|plan| &plan.layers);
        let mut same = plans.filter(|layer| layer.chain_id == chain_id);
        let parent = same.next().and_then(|layer| layer.parent.as_ref());
        assert_eq!(info.parent, parent.map(SnapshotKey::from), "{snapshot:?}");
    }

    /// Checks that the snapshots of containers are unchanged, except for labels set in place.
    fn check_contained(&self) {
        let all = self.world.all_snapshots();
        for ((name, key), before) in &self.world.contained {
            let after = all.get(&(*name, key.clone()));
            let after = after.unwrap_or_else(|| panic!("{key} of a container was removed"));
            let is_repairable = self
                .world
                .profiles
                .need(name)
                .is_some_and(|need| need.repair_label.is_some());
            let mut same = before.clone();
            if is_repairable {
                same.info.labels.clone_from(&after.info.labels);
            }
            assert_eq!(*after, same, "snapshot of a container was changed");
        }
    }

    /// Checks that only failed jobs leave leases, each of which keeps a committed layer.
    fn check_leases(&self, ends: &[End], fired: &[Fault]) {
        let left = self.world.simulated.leases(NAMESPACE);
        if excuses_lease(fired) {
            return;
        }
        let idle: Vec<_> = left
            .iter()
            .filter(|lease| !self.keeps_layers(lease))
            .collect();
        assert!(idle.is_empty(), "leases without layers are left: {idle:?}");
        let succeeded = ends.iter().filter(|end| end.result.is_ok()).count();
        let others = self.world.scenario.callers.len() - succeeded;
        assert!(
            left.len() <= others,
            "leases of successful jobs are left: {left:?}"
        );
    }

    fn keeps_layers(&self, lease: &SimulatedLease) -> bool {
        lease.snapshots.iter().any(|(snapshotter, key)| {
            let all = self.world.simulated.snapshots(NAMESPACE, snapshotter);
            all.iter().any(|snapshot| {
                snapshot.info.key == *key && snapshot.info.kind == SnapshotKind::Committed
            })
        })
    }

    /// Checks that everything that was reported as ready exists.
    fn check_ready(&self, ends: &[End]) {
        let snapshots = self.world.all_snapshots();
        for End { caller, result } in ends {
            let gone = self.is_deleted(caller.image) || self.may_be_removed(caller.snapshotter);
            if result.is_err() || gone {
                continue;
            }
            let name = SNAPSHOTTERS[caller.snapshotter];
            let layers = &self.world.plans[caller.image].layers;
            for (index, layer) in layers.iter().enumerate() {
                let snapshot = snapshots.get(&(name, SnapshotKey::from(&layer.chain_id)));
                let snapshot = snapshot.unwrap_or_else(|| {
                    panic!("{} on {name} is missing: {caller:?}", layer.chain_id)
                });
                assert_eq!(snapshot.info.kind, SnapshotKind::Committed);
                let missing = labels::missing(&snapshot.info.labels);
                let need = self.world.profiles.need(name);
                let needed = need.is_some_and(|need| need.covers(index, layers.len()));
                assert!(!needed || missing.is_empty(), "{snapshot:?}");
            }
        }
    }

    /// Returns whether a repair may have removed snapshots without labels and failed afterwards.
    fn may_be_removed(&self, snapshotter: usize) -> bool {
        let mut callers = self.world.scenario.callers.iter();
        self.world
            .profiles
            .need(SNAPSHOTTERS[snapshotter])
            .is_none()
            && self.is_unlabelled(snapshotter)
            && callers.any(|caller| caller.repair && caller.snapshotter == snapshotter)
    }

    fn is_unlabelled(&self, snapshotter: usize) -> bool {
        let mut chains = self.world.scenario.chains.iter();
        chains.any(|chain| !chain.labelled && chain.snapshotter == snapshotter)
    }

    fn is_deleted(&self, image: usize) -> bool {
        let deletion = self.world.scenario.deletion;
        deletion.is_some_and(|(deleted, _)| deleted == image)
    }

    /// Returns whether the scenario explains an error of a job.
    fn explains(&self, caller: &Caller, error: &UnpackError, fired: &[Fault]) -> bool {
        let layers = &self.world.scenario.images[caller.image];
        // Delays alone cause no failure.
        let harmed = fired
            .iter()
            .any(|fault| !matches!(fault.effect, Effect::Delay(_)));
        if self.is_deleted(caller.image) && error.kind() == Kind::NotFound {
            return true;
        }
        // A repair also removes snapshots in the leases of other jobs.
        if self.may_be_removed(caller.snapshotter) && error.kind() == Kind::NotFound {
            return true;
        }
        match error {
            UnpackError::MissingBlob { .. } => {
                layers
                    .iter()
                    .any(|layer| matches!(layer, Layer::Missing(_)))
                    || harmed
            }
            UnpackError::WrongDiffId { .. } => layers
                .iter()
                .any(|layer| matches!(layer, Layer::Mislabelled(_))),
            UnpackError::Unlabelled { .. } => self.is_unlabelled(caller.snapshotter),
            UnpackError::InUse { .. } => caller.repair && self.is_unlabelled(caller.snapshotter),
            UnpackError::Cancelled { .. } => {
                self.world.scenario.hangs() || self.is_cancelled(caller)
            }
            UnpackError::Disagreement { .. } => {
                self.world.scenario.may_disagree(caller.snapshotter)
            }
            // A delay can exceed the separate time limit of the cleanup.
            UnpackError::Unclean { .. } => !fired.is_empty(),
            UnpackError::Broken { .. } => false,
            _ => harmed,
        }
    }

    /// Returns whether a caller of the same job cancels it.
    fn is_cancelled(&self, caller: &Caller) -> bool {
        let job = |caller: &Caller| {
            let engine = caller.engine % self.world.engines.len();
            (caller.image, caller.snapshotter, caller.repair, engine)
        };
        self.world
            .scenario
            .callers
            .iter()
            .any(|other| job(other) == job(caller) && matches!(other.then, Then::Cancels(_)))
    }
}

fn is_container(snapshot: &SimulatedSnapshot) -> bool {
    snapshot.info.key.as_str().starts_with(CONTAINER)
}

/// Returns whether the removal of a snapshot failed, or a Prepare took effect after the removal.
fn excuses_active(fired: &[Fault]) -> bool {
    fired
        .iter()
        .any(|fault| match (fault.operation, fault.effect) {
            (Operation::Prepare, Effect::Late(..)) => true,
            (Operation::Remove, effect) => !matches!(effect, Effect::LoseAnswer(_)),
            _ => false,
        })
}

/// Returns whether the deletion of a lease failed, the lease was created after its deletion, or its
/// resources were unknown. A lease that is left for an active snapshot may name layers that had already been
/// removed when they were added. After a Commit that failed, and a failed look for what it made, the layer may
/// exist, and its lease expires.
fn excuses_lease(fired: &[Fault]) -> bool {
    let has_failed = |operation| {
        let mut of_operation = fired.iter().filter(|fault| fault.operation == operation);
        of_operation.any(|fault| !matches!(fault.effect, Effect::LoseAnswer(_)))
    };
    let was_late = |fault: &Fault| {
        fault.operation == Operation::CreateLease && matches!(fault.effect, Effect::Late(..))
    };
    let were_unknown = |fault: &Fault| {
        matches!(
            fault.operation,
            Operation::ListLeases | Operation::LeaseResources
        )
    };
    let may_be_committed = has_failed(Operation::Commit)
        && (has_failed(Operation::AddResource) || has_failed(Operation::Stat));
    fired
        .iter()
        .any(|fault| was_late(fault) || were_unknown(fault))
        || has_failed(Operation::DeleteLease)
        || has_failed(Operation::Remove)
        || may_be_committed
}
