// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The choice of faults by a seed, and the count of each kind.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::fault::Fault;

/// The number of faults for each test.
const COUNT: (&str, usize) = ("RESNAP_FAULTS", 84);

const SEED: (&str, u64) = ("RESNAP_FAULTS_SEED", 1);

/// The failures after which a run ends: one more would tell nothing new.
const FAILURES: usize = 20;

/// Injects faults of scenarios, which are named by their places, until there were enough: a `part` of
/// the number for each test. `inject` returns whether the fault happened.
///
/// # Errors
/// All that went wrong, with the faults.
pub(crate) fn sweep(
    names: &[String],
    mut faults: Vec<(usize, Fault)>,
    part: usize,
    mut inject: impl FnMut(usize, &Fault) -> Result<bool>,
) -> Result<()> {
    let count = setting(COUNT)? / part;
    let seed = setting(SEED)?;
    let listed = faults.len();
    fastrand::Rng::with_seed(seed).shuffle(&mut faults);
    let begin = Instant::now();
    let mut counts = Counts::default();
    let mut failures = Vec::new();
    for (place, fault) in faults.iter().take(count) {
        let name = &names[*place];
        match inject(*place, fault) {
            Ok(happened) => counts.add(name, fault, happened),
            Err(error) => {
                let failure = format!("{name}: {fault}: {error:#}");
                println!("FAULT {failure}");
                failures.push(failure);
            }
        }
        if failures.len() >= FAILURES {
            break;
        }
    }
    println!(
        "{} faults happened of {} that were injected, by seed {seed}, of {listed} that there are, in {:.0} s\n{}",
        counts.happened,
        counts.injected,
        begin.elapsed().as_secs_f64(),
        counts.table()?
    );
    if failures.is_empty() {
        return Ok(());
    }
    bail!(
        "seed {seed}: {} went wrong:\n{}",
        failures.len(),
        failures.join("\n")
    )
}

fn setting<T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    (name, default): (&str, T),
) -> Result<T> {
    match env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text:?}")),
        Err(_) => Ok(default),
    }
}

/// The numbers of faults.
#[derive(Default)]
struct Counts {
    injected: usize,
    happened: usize,
    kinds: BTreeMap<String, usize>,
    scenarios: BTreeMap<String, usize>,
}

impl Counts {
    fn add(&mut self, scenario: &str, fault: &Fault, happened: bool) {
        self.injected += 1;
        if happened {
            self.happened += 1;
            *self.kinds.entry(fault.kind()).or_default() += 1;
            *self.scenarios.entry(scenario.to_owned()).or_default() += 1;
        }
    }

    fn table(&self) -> Result<String> {
        let mut text = String::new();
        for (name, count) in self.kinds.iter().chain(&self.scenarios) {
            writeln!(text, "{count:>8}  {name}")?;
        }
        Ok(text)
    }
}
