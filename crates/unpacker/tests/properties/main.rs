// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Properties of the engine that always hold: random images, snapshotters, callers, containers,
//! faults and crashes, on a simulated backend. `PROPTEST_CASES=10000` tries harder.

// Test code: it fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod check;
mod crash;
mod runtime;
mod scenario;
mod world;

use std::time::Duration;

use check::Check;
use proptest::prelude::*;
use runtime::runtime;
use scenario::scenarios;
use world::World;

proptest! {
    // Rare meetings of several tasks and garbage collection take more than the usual 256.
    #![proptest_config(config(8))]

    #[test]
    fn whatever_happens(scenario in scenarios()) {
        runtime().block_on(async {
            let world = World::new(&scenario).await;
            let ends = world.run().await;
            Check::of(&world).all(&ends).await;
        });
    }
}

proptest! {
    #![proptest_config(config(1))]

    /// However many ask, and of however many engines.
    #[test]
    fn a_layer_is_made_once(scenario in scenarios()) {
        let scenario = scenario.calm();
        runtime().block_on(async {
            let world = World::new(&scenario).await;
            let ends = world.run().await;
            Check::of(&world).all(&ends).await;
            Check::of(&world).made_once(&ends);
        });
    }

    #[test]
    fn repair_changes_nothing_in_use(scenario in scenarios()) {
        let scenario = scenario.repair_alone();
        runtime().block_on(async {
            let world = World::new(&scenario).await;
            let before = world.all_snapshots();
            let ends = world.run().await;
            Check::of(&world).repaired(&ends, &before);
            Check::of(&world).all(&ends).await;
        });
    }

    #[test]
    fn the_dead_are_taken_over(scenario in scenarios(), time in 0..300_u64) {
        crash::check(&scenario.calm(), Duration::from_millis(time));
    }
}

/// `share` eighths of the cases.
fn config(share: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok();
    let cases = cases.and_then(|text| text.parse().ok()).unwrap_or(2000);
    ProptestConfig {
        cases: cases * share / 8,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}
