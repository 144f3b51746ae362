// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap snapshotters`.

use anyhow::Result;
use resnap_core::SnapshotterInfo;
use resnap_unpacker::Engine;
use serde::Serialize;

use crate::exit_status::ExitStatus;
use crate::output::{Output, or_dash};

/// A row of the table.
#[derive(Serialize)]
struct Row {
    name: String,
    working: bool,
    failure: Option<String>,
    capabilities: Vec<String>,
    platforms: Vec<String>,
    root: Option<String>,
    needs_labels: Option<String>,
}

impl Row {
    fn new(engine: &Engine, info: SnapshotterInfo) -> Self {
        let need = engine.profiles().need(&info.name);
        Self {
            needs_labels: need.map(|need| need.why.to_string()),
            working: info.failure.is_none(),
            platforms: info.platforms.iter().map(ToString::to_string).collect(),
            name: info.name,
            failure: info.failure,
            capabilities: info.capabilities,
            root: info.root,
        }
    }
}

pub(crate) async fn run(engine: &Engine, output: &mut Output) -> Result<ExitStatus> {
    let rows: Vec<Row> = engine
        .snapshotters()
        .await?
        .into_iter()
        .map(|info| Row::new(engine, info))
        .collect();
    output.document(&rows, |table| {
        table.header([
            "NAME",
            "STATUS",
            "CAPABILITIES",
            "PLATFORMS",
            "NEEDS LABELS",
        ]);
        for row in &rows {
            let status = row
                .failure
                .as_ref()
                .map_or_else(|| "ok".to_owned(), |why| table.cut(why, 48));
            table.row([
                row.name.clone(),
                status,
                or_dash(Some(row.capabilities.join(", "))),
                or_dash(Some(row.platforms.join(", "))),
                row.needs_labels
                    .as_ref()
                    .map_or_else(|| "no".to_owned(), |why| format!("yes: {why}")),
            ]);
        }
    })?;
    Ok(ExitStatus::Done)
}
