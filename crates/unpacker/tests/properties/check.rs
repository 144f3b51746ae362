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

/// Longer than any lease lives.
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
        assert!(left.is_empty(), "leases for ever: {left:?}");
        for snapshot in self.world.all_snapshots().values() {
            assert!(
                snapshot.info.kind == SnapshotKind::Committed || is_container(snapshot),
                "for ever: {snapshot:?}"
            );
        }
    }

    /// Nothing is made twice, where nothing is lost.
    pub(crate) fn made_once(&self, ends: &[End]) {
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

    /// A repair does its work, or changes nothing and says why.
    pub(crate) fn repaired(&self, ends: &[End], before: &AllSnapshots) {
        for end in ends {
            if let Err(UnpackError::InUse { .. }) = end.result {
                assert_eq!(*before, self.world.all_snapshots(), "in use, and changed");
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
        assert_eq!(reported, planned, "every layer is told of once, in order");
    }

    /// A committed snapshot holds what its name says, and says so; active ones are gone.
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
            let after = after.unwrap_or_else(|| panic!("{key} went from under a container"));
            let mendable = self
                .world
                .profiles
                .need(name)
                .is_some_and(|need| need.repair_label.is_some());
            let mut same = before.clone();
            if mendable {
                same.info.labels.clone_from(&after.info.labels);
            }
            assert_eq!(*after, same, "changed under a container");
        }
    }

    /// A lease is left only by a job that failed, and for the layers it made.
    fn check_leases(&self, ends: &[End], fired: &[Fault]) {
        let left = self.world.simulated.leases(NAMESPACE);
        if excuses_lease(fired) {
            return;
        }
        let idle: Vec<_> = left
            .iter()
            .filter(|lease| !self.keeps_layers(lease))
            .collect();
        assert!(idle.is_empty(), "leases are left for nothing: {idle:?}");
        let succeeded = ends.iter().filter(|end| end.result.is_ok()).count();
        let others = self.world.scenario.callers.len() - succeeded;
        assert!(left.len() <= others, "of jobs that succeeded: {left:?}");
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
        let there = self.world.all_snapshots();
        for End { caller, result } in ends {
            let gone = self.is_deleted(caller.image) || self.may_be_removed(caller.snapshotter);
            if result.is_err() || gone {
                continue;
            }
            let name = SNAPSHOTTERS[caller.snapshotter];
            let layers = &self.world.plans[caller.image].layers;
            for (index, layer) in layers.iter().enumerate() {
                let snapshot = there.get(&(name, SnapshotKey::from(&layer.chain_id)));
                let snapshot = snapshot.unwrap_or_else(|| {
                    panic!("{} on {name} is not there: {caller:?}", layer.chain_id)
                });
                assert_eq!(snapshot.info.kind, SnapshotKind::Committed);
                let missing = labels::missing(&snapshot.info.labels);
                let need = self.world.profiles.need(name);
                let needed = need.is_some_and(|need| need.covers(index, layers.len()));
                assert!(!needed || missing.is_empty(), "{snapshot:?}");
            }
        }
    }

    /// Whether a repair may have removed what was ready without labels, and failed then.
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

    /// Whether a job could fail so.
    fn explains(&self, caller: &Caller, error: &UnpackError, fired: &[Fault]) -> bool {
        let layers = &self.world.scenario.images[caller.image];
        // What only takes longer makes nothing fail.
        let harmed = fired
            .iter()
            .any(|fault| !matches!(fault.effect, Effect::Delay(_)));
        if self.is_deleted(caller.image) && error.kind() == Kind::NotFound {
            return true;
        }
        // A repair does not ask who has leased what it removes.
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
            // Undoing has a time limit of its own, which a delay can use up.
            UnpackError::Unclean { .. } => !fired.is_empty(),
            UnpackError::Broken { .. } => false,
            _ => harmed,
        }
    }

    /// Whether somebody cancels this caller's job.
    fn is_cancelled(&self, caller: &Caller) -> bool {
        let of = |caller: &Caller| {
            let engine = caller.engine % self.world.engines.len();
            (caller.image, caller.snapshotter, caller.repair, engine)
        };
        self.world
            .scenario
            .callers
            .iter()
            .any(|other| of(other) == of(caller) && matches!(other.then, Then::Cancels(_)))
    }
}

fn is_container(snapshot: &SimulatedSnapshot) -> bool {
    snapshot.info.key.as_str().starts_with(CONTAINER)
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

/// Whether ending a lease was what went wrong, or it was made after it was ended, or nobody could
/// tell whether there was something to keep: a lease that is left for its active snapshot may name
/// layers that were gone when they were added.
fn excuses_lease(fired: &[Fault]) -> bool {
    fired
        .iter()
        .any(|fault| match (fault.operation, fault.effect) {
            (Operation::CreateLease, Effect::Late(..)) => true,
            (Operation::ListLeases | Operation::LeaseResources, _) => true,
            (Operation::DeleteLease | Operation::Remove, effect) => {
                !matches!(effect, Effect::LoseAnswer(_))
            }
            _ => false,
        })
}
