// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap images`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use futures::{StreamExt as _, TryStreamExt as _};
use resnap_core::Kind;
use resnap_unpacker::{Engine, Plan, Reader, Request, UnpackError};
use serde::Serialize;

use crate::config::Config;
use crate::documents::{IMAGES_AT_ONCE, Overview};
use crate::exit_status::ExitStatus;
use crate::output::{Output, or_dash, reason, short};

/// A row of the table.
#[derive(Serialize)]
struct Row {
    image: String,
    id: Option<String>,
    platform: Option<String>,
    layers: Option<usize>,
    /// Whether it is ready, by snapshotter; null if the snapshotter does not answer.
    ready: BTreeMap<String, Option<bool>>,
    /// The reason why the image cannot be inspected.
    problem: Option<String>,
}

impl Row {
    fn is_bare_id(&self) -> bool {
        self.id.as_ref() == Some(&self.image)
    }
}

pub(crate) async fn run(
    engine: &Engine,
    config: &Config,
    output: &mut Output,
) -> Result<ExitStatus> {
    let overview = Overview::read(engine, &config.runtime_dir.value, None).await?;
    let reader = &overview.reader;
    let snapshotters = reader.working_snapshotters().await?;
    let rows = futures::stream::iter(overview.images().await?)
        .map(|image| row(reader, image, &snapshotters))
        .buffered(IMAGES_AT_ONCE);
    let mut rows: Vec<Row> = rows.try_collect().await?;
    overview.keep_documents();
    // The same image in another form may have a name.
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
            let unavailable = row.ready.iter().filter(|(_, ready)| ready.is_none());
            let unavailable: Vec<&str> = unavailable.map(|(name, _)| name.as_str()).collect();
            let ready = match unavailable.as_slice() {
                [] => ready,
                names => format!("{ready} (no answer from {})", names.join(", ")),
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
    Ok(ExitStatus::Done)
}

async fn row(reader: &Reader, image: String, snapshotters: &[String]) -> Result<Row, UnpackError> {
    let mut row = Row {
        image,
        id: None,
        platform: None,
        layers: None,
        ready: BTreeMap::new(),
        problem: None,
    };
    let plan = match reader.plan(&Request::new(&row.image)).await {
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
        let ready = match is_ready(reader, &row.image, &plan, snapshotter).await {
            Ok(ready) => Some(ready),
            // One unavailable snapshotter must not hide the others.
            Err(error) if error.kind() == Kind::Unavailable => None,
            Err(error) => return Err(error),
        };
        row.ready.insert(snapshotter.clone(), ready);
    }
    Ok(row)
}

/// Returns whether the image is ready. Of an image in several forms, the snapshotter's own counts, as in
/// `check`.
async fn is_ready(
    reader: &Reader,
    image: &str,
    plan: &Plan,
    snapshotter: &str,
) -> Result<bool, UnpackError> {
    if reader.profiles().get(snapshotter).os_features.is_empty() {
        return reader.is_ready(plan, snapshotter).await;
    }
    let own = reader.plan(&Request::new(image).on(snapshotter)).await?;
    reader.is_ready(&own, snapshotter).await
}
