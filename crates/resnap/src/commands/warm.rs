// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap warm`.

use std::collections::BTreeSet;

use anyhow::Result;
use resnap_api::MAKE_ROOM;
use resnap_unpacker::{Engine, Event, UnpackError};
use serde::Serialize;
use wildmatch::WildMatch;

use super::signals::listen;
use crate::args::WarmArguments;
use crate::config::Config;
use crate::connect::manifest_preference;
use crate::documents::Overview;
use crate::exit_status::ExitStatus;
use crate::output::{Output, Table, bytes, reason};
use crate::progress::Progress;
use crate::warm::{Target, Warmed, choose, decide_all, warm};

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
    pub(crate) next_step: Option<String>,
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
        let (mut unpacked, mut problem, mut next_step) = (None, None, None);
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
                next_step = Some(format!("{MAKE_ROOM}; or lower --min-free"));
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
            next_step,
        }
    }

    /// Returns whether the image should be ready and is not.
    pub(crate) fn has_failed(&self) -> bool {
        self.problem.is_some() && self.state != SKIPPED
    }
}

/// Shows rows as a table.
pub(crate) fn show<'a>(rows: impl IntoIterator<Item = &'a Row>, table: &mut Table) {
    table.header(["IMAGE", "SNAPSHOTTER", "STATE", "UNPACKED", "PROBLEM"]);
    let mut steps = BTreeSet::new();
    for row in rows {
        steps.extend(&row.next_step);
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
    for step in steps {
        table.line(format!("next: {step}"));
    }
}

pub(crate) async fn run(
    engine: &Engine,
    config: &Config,
    arguments: WarmArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    let (snapshotters, dry_run) = (&arguments.snapshotters, arguments.dry_run);
    let (signals, stop) = listen()?;
    let read = async {
        let dir = &config.runtime_dir.value;
        let overview = Overview::read(engine, dir, Some(snapshotters)).await?;
        for snapshotter in snapshotters {
            overview.reader.require_snapshotter(snapshotter).await?;
        }
        let names = overview.reader.images().await?;
        anyhow::Ok((overview, names, manifest_preference(config).await?))
    };
    let Some(read) = stop.run_until_cancelled(read).await else {
        return Ok(ExitStatus::Cancelled);
    };
    let (overview, names, pick) = read?;
    let mut patterns = arguments.images;
    for pattern in &mut patterns {
        // A name as `ctr`, Docker or `crictl` takes it; one that is nowhere is a typo.
        if !pattern.contains(['*', '?']) && !names.contains(pattern) {
            *pattern = overview.reader.resolve(pattern).await?.name;
        }
    }
    if arguments.all {
        patterns.push("*".to_owned());
    }
    let globs: Vec<WildMatch> = patterns
        .iter()
        .map(|pattern| WildMatch::new(pattern))
        .collect();
    let chosen = choose(&overview.reader, names, &globs);
    let Some(images) = stop.run_until_cancelled(chosen).await else {
        return Ok(ExitStatus::Cancelled);
    };
    let floor = arguments.min_free.unwrap_or_default();
    let targets = images.iter().flat_map(|image| {
        snapshotters.iter().map(move |snapshotter| Target {
            image,
            snapshotter,
            floor,
            pick,
        })
    });
    let targets: Vec<Target<'_>> = targets.collect();
    let decided = decide_all(&overview, &targets);
    let Some(decided) = stop.run_until_cancelled(decided).await else {
        return Ok(ExitStatus::Cancelled);
    };
    let is_left = |decided: &Result<Warmed, _>| matches!(decided, Ok(Warmed::Would)) && !dry_run;
    let left = decided.iter().filter(|decided| is_left(decided));
    let mut progress = (!output.is_json()).then(|| Progress::new(left.count()));
    let (mut rows, mut number) = (Vec::new(), 0);
    for (target, mut warmed) in targets.iter().zip(decided) {
        if is_left(&warmed) {
            // The lists are of the past by now: it is decided again.
            warmed = warm(engine, target, &stop, |event: Event| {
                if let Some(progress) = &mut progress {
                    progress.show(number, &event);
                }
            })
            .await;
            if let Some(progress) = &mut progress {
                progress.finish(number);
            }
            number += 1;
        }
        let Target {
            image, snapshotter, ..
        } = *target;
        let is_named = patterns.iter().any(|pattern| pattern == image);
        rows.push(Row::new(image, snapshotter, warmed, is_named));
    }
    signals.abort();
    output.document(&rows, |table| show(&rows, table))?;
    if stop.is_cancelled() {
        return Ok(ExitStatus::Cancelled);
    }
    let has_failed = rows.iter().any(Row::has_failed);
    Ok(if has_failed {
        ExitStatus::Failed
    } else {
        ExitStatus::Done
    })
}
