// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The rules by which images are made ready in advance.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures::StreamExt as _;
use resnap_containerd::Client;
use resnap_core::{ManifestPreference, error_chain};
use resnap_unpacker::Engine;
use tokio::task::JoinSet;
use tokio::time::sleep;
use wildmatch::WildMatch;

use crate::config::{Config, Rule};
use crate::warm::{Floor, Target, Warmed, choose, warm};

/// The time to collect changes: a pull creates up to three names for an image, one after the other.
const GATHER: Duration = Duration::from_secs(1);

/// The pause before the next attempt to watch containerd's images.
const PAUSE: Duration = Duration::from_secs(5);

/// Applies the rules for as long as it is polled.
pub(super) async fn run(config: &Config, engine: &Engine) -> Infallible {
    if config.prewarm.is_empty() {
        return std::future::pending().await;
    }
    let rules: Arc<[Rule]> = config.prewarm.as_slice().into();
    loop {
        if let Err(error) = follow(config, engine, &rules).await {
            tracing::warn!("{}; retrying", error_chain(error.as_ref()));
        }
        sleep(PAUSE).await;
    }
}

/// Applies the rules to all images, and then to new ones, until containerd stops.
async fn follow(config: &Config, engine: &Engine, rules: &Arc<[Rule]>) -> Result<()> {
    let client = Client::connect(&config.address.value).await?;
    let pick = ManifestPreference::by_containerd(&client.version().await?);
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
                let (engine, rules) = (engine.clone(), Arc::clone(rules));
                let at_once = config.prewarm_jobs.value;
                running.spawn(async move { work(&engine, &rules, batch, pick, at_once).await });
            }
        }
    }
}

/// Makes these images ready on the snapshotters of the rules.
async fn work(
    engine: &Engine,
    rules: &[Rule],
    names: BTreeSet<String>,
    pick: ManifestPreference,
    at_once: usize,
) {
    for rule in rules {
        let patterns: Vec<WildMatch> = rule.images.iter().map(|p| WildMatch::new(p)).collect();
        let images = choose(engine, names.iter().cloned(), &patterns).await;
        let mut pairs = Vec::new();
        for image in images {
            let snapshotters = rule.snapshotters.iter().cloned();
            pairs.extend(snapshotters.map(|snapshotter| (image.clone(), snapshotter)));
        }
        let one = |(image, snapshotter)| one(engine, image, snapshotter, rule.min_free, pick);
        futures::stream::iter(pairs)
            .for_each_concurrent(at_once, one)
            .await;
    }
}

async fn one(
    engine: &Engine,
    image: String,
    snapshotter: String,
    floor: Floor,
    pick: ManifestPreference,
) {
    let target = Target {
        image: &image,
        snapshotter: &snapshotter,
        floor,
        pick,
    };
    match warm(engine, &target, |_| ()).await {
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
