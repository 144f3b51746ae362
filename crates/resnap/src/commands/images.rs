// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap images`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use resnap_core::Kind;
use resnap_unpacker::{Engine, Plan, Request, UnpackError};
use serde::Serialize;

use super::Outcome;
use crate::output::{Output, or_dash, reason, short};

/// One row.
#[derive(Serialize)]
struct Row {
    image: String,
    id: Option<String>,
    platform: Option<String>,
    layers: Option<usize>,
    /// Whether it is ready, by snapshotter; null where the snapshotter does not answer.
    ready: BTreeMap<String, Option<bool>>,
    /// Why the image cannot be looked at.
    problem: Option<String>,
}

impl Row {
    fn is_bare_id(&self) -> bool {
        self.id.as_ref() == Some(&self.image)
    }
}

pub(crate) async fn run(engine: &Engine, output: &mut Output) -> Result<Outcome> {
    let snapshotters = engine.working_snapshotters().await?;
    let mut rows = Vec::new();
    for image in engine.images().await? {
        rows.push(row(engine, image, &snapshotters).await?);
    }
    // The CRI keeps every image under its ID as well.
    let named: BTreeSet<String> = rows
        .iter()
        .filter(|row| !row.is_bare_id())
        .filter_map(|row| row.id.clone())
        .collect();
    rows.retain(|row| !row.is_bare_id() || !named.contains(&row.image));
    output.document(&rows, |table| {
        table.header(["IMAGE", "ID", "PLATFORM", "LAYERS", "READY ON"]);
        for row in &rows {
            let ready = row.ready.iter().filter(|(_, ready)| **ready == Some(true));
            let ready: Vec<&str> = ready.map(|(name, _)| name.as_str()).collect();
            let ready = match &row.problem {
                Some(problem) => table.cut(problem, 72),
                None => or_dash(Some(ready.join(", "))),
            };
            let silent = row.ready.iter().filter(|(_, ready)| ready.is_none());
            let silent: Vec<&str> = silent.map(|(name, _)| name.as_str()).collect();
            let ready = match silent.as_slice() {
                [] => ready,
                silent => format!("{ready} (no answer from {})", silent.join(", ")),
            };
            table.row([
                row.image.clone(),
                or_dash(row.id.as_deref().map(short)),
                or_dash(row.platform.clone()),
                or_dash(row.layers.map(|layers| layers.to_string())),
                ready,
            ]);
        }
    })?;
    Ok(Outcome::Done)
}

async fn row(engine: &Engine, image: String, snapshotters: &[String]) -> Result<Row, UnpackError> {
    let mut row = Row {
        image,
        id: None,
        platform: None,
        layers: None,
        ready: BTreeMap::new(),
        problem: None,
    };
    let plan = match engine.plan(&Request::new(&row.image, "")).await {
        Ok(plan) => plan,
        // One broken image must not hide the others.
        Err(error) => {
            row.problem = Some(reason(&error, &row.image));
            return Ok(row);
        }
    };
    row.id = Some(plan.config.digest.to_string());
    row.platform = Some(plan.platform.to_string());
    row.layers = Some(plan.layers.len());
    for snapshotter in snapshotters {
        let ready = match is_ready(engine, &row.image, &plan, snapshotter).await {
            Ok(ready) => Some(ready),
            // One snapshotter that is gone must not hide the others.
            Err(error) if error.kind() == Kind::Unavailable => None,
            Err(error) => return Err(error),
        };
        row.ready.insert(snapshotter.clone(), ready);
    }
    Ok(row)
}

/// Of an image in several forms it is the snapshotter's own that is asked for, as by `check`.
async fn is_ready(
    engine: &Engine,
    image: &str,
    plan: &Plan,
    snapshotter: &str,
) -> Result<bool, UnpackError> {
    if engine.profiles().get(snapshotter).os_features.is_empty() {
        return engine.is_ready(plan, snapshotter).await;
    }
    let own = engine.plan(&Request::new(image, snapshotter)).await?;
    engine.is_ready(&own, snapshotter).await
}
