// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Engines that are killed at any time, and engines that take over their work.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use resnap_core::{SnapshotKey, SnapshotKind};
use resnap_unpacker::{LayerOutcome, Owner};

use crate::check::Check;
use crate::runtime::runtime;
use crate::scenario::{SNAPSHOTTERS, Scenario, Then};
use crate::world::{NAMESPACE, World, engine};

/// Stops all engines after this time, and checks that new engines complete the same requests.
pub(crate) fn check(scenario: &Scenario, after: Duration) {
    let first = runtime();
    let mut world = first.block_on(async {
        let world = World::new(scenario).await;
        // A run that is complete by then leaves nothing to take over.
        let _ = tokio::time::timeout(after, world.run()).await;
        world
    });
    let left = fs::read_dir(world.dir.path()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().path()).collect();
    // This stops all tasks at once. Unlike a kill, it removes their lock files.
    drop(first);
    for file in left {
        fs::write(file, "process 1 (dead)").unwrap();
    }
    // Leases keep the committed layers for the next engines.
    let committed = committed(&world);
    world.simulated.collect_garbage();
    assert_eq!(committed, self::committed(&world), "lost by the crash");

    let mut second = scenario.clone();
    for caller in &mut second.callers {
        caller.then = Then::Waits;
    }
    world.scenario = &second;
    runtime().block_on(async {
        let engines =
            (0..second.engines).map(|_| engine(&world.simulated, &second, world.dir.path()));
        world.engines = engines.collect();
        for lease in world.engines[0].leases().await.unwrap() {
            assert_eq!(lease.owner, Owner::Orphaned, "{lease:?}");
        }
        let ends = world.run().await;
        for end in &ends {
            let report = end.result.as_ref().unwrap();
            let name = SNAPSHOTTERS[end.caller.snapshotter];
            for layer in &report.layers {
                let key = (name, SnapshotKey::from(&layer.chain_id));
                let again = layer.outcome == LayerOutcome::Applied && committed.contains(&key);
                assert!(!again, "applied twice: {layer:?}");
            }
        }
        let leases = world.simulated.leases(NAMESPACE);
        assert!(leases.is_empty(), "leases are left: {leases:?}");
        Check::of(&world).all(&ends).await;
    });
}

fn committed(world: &World<'_>) -> BTreeSet<(&'static str, SnapshotKey)> {
    let all = world.all_snapshots().into_iter();
    all.filter(|(_, snapshot)| snapshot.info.kind == SnapshotKind::Committed)
        .map(|(key, _)| key)
        .collect()
}
