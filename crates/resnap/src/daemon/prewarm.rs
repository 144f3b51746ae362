// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The rules by which images are made ready in advance.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures::StreamExt as _;
use resnap_api::MAKE_ROOM;
use resnap_containerd::Client;
use resnap_core::{ManifestPreference, error_chain};
use resnap_unpacker::{Engine, UnpackError};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use wildmatch::WildMatch;

use crate::config::{Config, Rule};
use crate::documents::Overview;
use crate::warm::{Target, Warmed, choose, decide_all, warm};

/// The time to collect changes: a pull creates up to three names for an image, one after the other.
const GATHER: Duration = Duration::from_secs(1);

/// The pause before the next attempt to watch containerd's images.
const PAUSE: Duration = Duration::from_secs(5);

/// The rules, and what they are applied with.
struct Prewarmer {
    engine: Engine,
    rules: Vec<Rule>,
    runtime_dir: PathBuf,
    pick: ManifestPreference,
    jobs_at_once: usize,
}

/// Applies the rules for as long as it is polled.
pub(super) async fn run(config: &Config, engine: &Engine) -> Infallible {
    if config.prewarm.is_empty() {
        return std::future::pending().await;
    }
    loop {
        if let Err(error) = follow(config, engine).await {
            tracing::warn!("{}; retrying", error_chain(error.as_ref()));
        }
        sleep(PAUSE).await;
    }
}

/// Applies the rules to all images, and then to new ones, until containerd stops.
async fn follow(config: &Config, engine: &Engine) -> Result<()> {
    let client = Client::connect(&config.address.value).await?;
    let prewarmer = Arc::new(Prewarmer {
        engine: engine.clone(),
        rules: config.prewarm.clone(),
        runtime_dir: config.runtime_dir.value.clone(),
        pick: ManifestPreference::by_containerd(&client.version().await?),
        jobs_at_once: config.prewarm_jobs.value,
    });
    let mut changes = std::pin::pin!(client.image_changes(&config.namespace.value));
    let mut pending = BTreeSet::new();
    let mut running = JoinSet::new();
    let mut listed = false;
    loop {
        let idle = (pending.is_empty() && listed) || !running.is_empty();
        tokio::select! {
            change = changes.next() => match change {
                Some(name) => drop(pending.insert(name?)),
                None => return Ok(()),
            },
            Some(_) = running.join_next() => {}
            () = sleep(GATHER), if !idle => {
                if !listed {
                    // Listed after the subscription, so that no image is missed.
                    pending.extend(engine.images().await?);
                    listed = true;
                }
                let batch = std::mem::take(&mut pending);
                let prewarmer = Arc::clone(&prewarmer);
                running.spawn(async move { prewarmer.work(&batch).await });
            }
        }
    }
}

impl Prewarmer {
    /// Makes these images ready on the snapshotters of the rules.
    async fn work(&self, names: &BTreeSet<String>) {
        for rule in &self.rules {
            if let Err(error) = self.apply(rule, names).await {
                tracing::warn!(
                    snapshotters = ?rule.snapshotters,
                    error = error_chain(&error),
                    "not made ready in advance"
                );
            }
        }
    }

    async fn apply(&self, rule: &Rule, names: &BTreeSet<String>) -> Result<(), UnpackError> {
        let patterns: Vec<WildMatch> = rule.images.iter().map(|p| WildMatch::new(p)).collect();
        let is_meant = |name: &String| patterns.iter().any(|pattern| pattern.matches(name));
        if !names.iter().any(is_meant) {
            return Ok(());
        }
        let (dir, snapshotters) = (&self.runtime_dir, rule.snapshotters.as_slice());
        let overview = Overview::read(&self.engine, dir, Some(snapshotters)).await?;
        let images = choose(&overview.reader, names.iter().cloned(), &patterns).await;
        let targets: Vec<Target<'_>> = images
            .iter()
            .flat_map(|image| {
                snapshotters.iter().map(move |snapshotter| Target {
                    image,
                    snapshotter,
                    floor: rule.min_free,
                    pick: self.pick,
                })
            })
            .collect();
        let decided = decide_all(&overview, &targets).await;
        let work = targets.iter().zip(decided);
        let work: Vec<_> = work
            .map(|(target, decided)| self.one(target, decided))
            .collect();
        let mut work = futures::stream::iter(work).buffer_unordered(self.jobs_at_once);
        while work.next().await.is_some() {}
        Ok(())
    }

    async fn one(&self, target: &Target<'_>, decided: Result<Warmed, UnpackError>) {
        let Target {
            image, snapshotter, ..
        } = *target;
        let warmed = match decided {
            // The lists are of the past by now: it is decided again.
            Ok(Warmed::Would) => {
                let never = CancellationToken::new();
                warm(&self.engine, target, &never, |_| ()).await
            }
            decided => decided,
        };
        match warmed {
            Ok(Warmed::Unpacked(report)) => {
                let seconds = report.seconds;
                tracing::info!(image, snapshotter, seconds, "made ready in advance");
            }
            Ok(Warmed::NoRoom { free, floor }) => {
                tracing::warn!(
                    image,
                    snapshotter,
                    free,
                    floor,
                    next_step = format!("{MAKE_ROOM}; or lower min_free of the rule"),
                    "not made ready in advance: not enough space"
                );
            }
            Ok(Warmed::Ready | Warmed::Would) => {}
            Ok(Warmed::Skipped(error)) => {
                let error = error_chain(&error);
                tracing::debug!(
                    image,
                    snapshotter,
                    error,
                    "nothing to make ready in advance"
                );
            }
            Err(error) => {
                let error = error_chain(&error);
                tracing::warn!(image, snapshotter, error, "not made ready in advance");
            }
        }
    }
}
