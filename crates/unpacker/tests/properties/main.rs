// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Invariants of the engine, checked on a simulated backend with random images, snapshotters, callers,
//! containers, faults and crashes. `PROPTEST_CASES=10000` runs more cases.

// Tests fail by panicking.
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
    // Some races of tasks with garbage collection are too rare for the default of 256 cases.
    #![proptest_config(config(8))]

    #[test]
    fn invariants_hold_in_random_scenarios(scenario in scenarios()) {
        runtime().block_on(async {
            let world = World::new(&scenario).await;
            let ends = world.run().await;
            Check::of(&world).all(&ends).await;
        });
    }
}

proptest! {
    #![proptest_config(config(1))]

    #[test]
    fn concurrent_jobs_apply_each_layer_once(scenario in scenarios()) {
        let scenario = scenario.calm();
        runtime().block_on(async {
            let world = World::new(&scenario).await;
            let ends = world.run().await;
            Check::of(&world).all(&ends).await;
            Check::of(&world).applied_once(&ends);
        });
    }

    #[test]
    fn repair_does_not_change_snapshots_in_use(scenario in scenarios()) {
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
    fn work_of_crashed_engines_is_taken_over(scenario in scenarios(), time in 0..300_u64) {
        crash::check(&scenario.calm(), Duration::from_millis(time));
    }
}

/// Returns a configuration with `share` eighths of the cases.
fn config(share: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok();
    let cases = cases.and_then(|text| text.parse().ok()).unwrap_or(2000);
    ProptestConfig {
        cases: cases * share / 8,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}
