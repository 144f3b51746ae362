// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The rules by which images are made ready ahead.

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
use crate::warm::{Floor, Warmed, choose, warm};

/// A pull makes up to three names for an image, one after the other.
const GATHER: Duration = Duration::from_secs(1);

/// Before the next try to hear of containerd's images.
const PAUSE: Duration = Duration::from_secs(5);

/// Follows the rules for as long as it is polled.
pub(super) async fn run(config: &Config, engine: &Engine) -> Infallible {
    if config.prewarm.is_empty() {
        return std::future::pending().await;
    }
    let rules: Arc<[Rule]> = config.prewarm.as_slice().into();
    loop {
        if let Err(error) = follow(config, engine, &rules).await {
            tracing::warn!("{}; trying again", error_chain(error.as_ref()));
        }
        sleep(PAUSE).await;
    }
}

/// Does what there is to do, and then what comes up, until containerd ends.
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
                    // After the subscription, so that none is missed.
                    pending.extend(engine.images().await?);
                    listed = true;
                }
                let batch = std::mem::take(&mut pending);
                let (engine, rules) = (engine.clone(), Arc::clone(rules));
                let at_once = config.prewarm_jobs;
                running.spawn(async move { work(&engine, &rules, batch, pick, at_once).await });
            }
        }
    }
}

/// Makes these images ready where the rules want them.
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
    match warm(engine, &image, &snapshotter, floor, false, pick, |_| ()).await {
        Ok(Warmed::Unpacked(report)) => {
            let seconds = report.seconds;
            tracing::info!(image, snapshotter, seconds, "made ready ahead");
        }
        Ok(Warmed::NoRoom { free, floor }) => {
            tracing::warn!(
                image,
                snapshotter,
                free,
                floor,
                "not made ready ahead: no room"
            );
        }
        Ok(Warmed::Ready | Warmed::Would) => {}
        Ok(Warmed::Skipped(error)) => {
            let error = error_chain(&error);
            tracing::debug!(image, snapshotter, error, "nothing to be made ready ahead");
        }
        Err(error) => {
            let error = error_chain(&error);
            tracing::warn!(image, snapshotter, error, "not made ready ahead");
        }
    }
}
