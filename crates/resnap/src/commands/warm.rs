// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap warm`.

use anyhow::Result;
use resnap_core::ManifestPreference;
use resnap_unpacker::{Engine, Event, UnpackError};
use serde::Serialize;
use wildmatch::WildMatch;

use crate::args::WarmArguments;
use crate::exit_status::ExitStatus;
use crate::output::{Output, Table, bytes, reason};
use crate::progress::Progress;
use crate::warm::{Warmed, choose, warm};

/// The state of an image that has nothing for this machine or snapshotter.
const SKIPPED: &str = "skipped";

/// A row of the table.
#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) image: String,
    pub(crate) snapshotter: String,
    pub(crate) state: &'static str,
    /// The bytes of the blobs that were unpacked.
    pub(crate) unpacked: Option<u64>,
    /// The reason why the image is not ready.
    pub(crate) problem: Option<String>,
}

impl Row {
    /// Creates a row. An image that was named exactly, and not by a pattern, fails instead of being
    /// skipped.
    pub(crate) fn new(
        image: &str,
        snapshotter: &str,
        warmed: Result<Warmed, UnpackError>,
        is_named: bool,
    ) -> Self {
        let (mut unpacked, mut problem) = (None, None);
        let state = match warmed {
            Ok(Warmed::Ready) => "ready",
            Ok(Warmed::Would) => "would unpack",
            Ok(Warmed::Unpacked(report)) => {
                unpacked = Some(report.applied_bytes());
                "unpacked"
            }
            Ok(Warmed::NoRoom { free, floor }) => {
                let (free, floor) = (bytes(free), bytes(floor));
                problem = Some(format!("{free} are free, and {floor} must stay free"));
                "no room"
            }
            Ok(Warmed::Skipped(error)) if !is_named => {
                problem = Some(reason(&error, image));
                SKIPPED
            }
            Ok(Warmed::Skipped(error)) | Err(error) => {
                problem = Some(reason(&error, image));
                "failed"
            }
        };
        Self {
            image: image.to_owned(),
            snapshotter: snapshotter.to_owned(),
            state,
            unpacked,
            problem,
        }
    }

    /// Returns whether the image should be ready and is not.
    pub(crate) fn has_failed(&self) -> bool {
        self.problem.is_some() && self.state != SKIPPED
    }
}

/// Shows rows as a table.
pub(crate) fn show(rows: &[Row], table: &mut Table) {
    table.header(["IMAGE", "SNAPSHOTTER", "STATE", "UNPACKED", "PROBLEM"]);
    for row in rows {
        table.row([
            row.image.clone(),
            row.snapshotter.clone(),
            row.state.to_owned(),
            row.unpacked.map_or_else(|| "-".to_owned(), bytes),
            row.problem
                .as_ref()
                .map_or_else(|| "-".to_owned(), |why| table.cut(why, 72)),
        ]);
    }
}

pub(crate) async fn run(
    engine: &Engine,
    pick: ManifestPreference,
    arguments: WarmArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    for snapshotter in &arguments.snapshotters {
        engine.require_snapshotter(snapshotter).await?;
    }
    let mut patterns = arguments.images;
    if arguments.all {
        patterns.push("*".to_owned());
    }
    let globs: Vec<WildMatch> = patterns
        .iter()
        .map(|pattern| WildMatch::new(pattern))
        .collect();
    let images = choose(engine, engine.images().await?, &globs).await;
    let (floor, dry_run) = (arguments.min_free.unwrap_or_default(), arguments.dry_run);
    let mut progress = (!output.is_json()).then(|| Progress::new(images.len()));
    let mut rows = Vec::new();
    for (number, image) in images.iter().enumerate() {
        for snapshotter in &arguments.snapshotters {
            let on_event = |event: &Event| {
                if let Some(progress) = &mut progress {
                    progress.show(number, event);
                }
            };
            let warmed = warm(engine, image, snapshotter, floor, dry_run, pick, on_event).await;
            rows.push(Row::new(
                image,
                snapshotter,
                warmed,
                patterns.contains(image),
            ));
        }
        if let Some(progress) = &mut progress {
            progress.finish(number);
        }
    }
    output.document(&rows, |table| show(&rows, table))?;
    let has_failed = rows.iter().any(Row::has_failed);
    Ok(if has_failed {
        ExitStatus::Failed
    } else {
        ExitStatus::Done
    })
}
