// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap jobs` and `resnap cancel`.

use std::time::Duration;

use anyhow::Result;
use resnap_api::DaemonClient;
use resnap_api::JobStatus;
use resnap_unpacker::JobState;

use super::daemon_client;
use crate::args::{CancelArguments, JobsArguments};
use crate::config::Config;
use crate::exit_status::ExitStatus;
use crate::output::{Output, bytes, or_dash};

const HEADER: [&str; 9] = [
    "ID",
    "STATE",
    "LAYERS",
    "BYTES",
    "AGE",
    "WAITERS",
    "ORIGIN",
    "SNAPSHOTTER",
    "IMAGE",
];

pub(crate) async fn run(
    config: &Config,
    arguments: JobsArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    let client = daemon_client::connect(config).await?;
    if arguments.watch {
        return watch(&client, output).await;
    }
    let jobs = client.jobs().await?;
    output.document(&jobs, |table| {
        table.header(HEADER);
        for job in &jobs {
            table.row(cells(job));
        }
    })?;
    Ok(ExitStatus::Done)
}

/// Prints a line for each running job, then one for each change, until standard output is closed.
async fn watch(client: &DaemonClient, output: &mut Output) -> Result<ExitStatus> {
    let mut changes = client.watch_jobs().await?;
    if !output.is_json() {
        output.line(&line(HEADER.map(str::to_owned)))?;
    }
    while !output.is_closed() {
        for job in changes.next().await? {
            if output.is_json() {
                output.json_line(&job)?;
            } else {
                output.line(&line(cells(&job)))?;
            }
        }
    }
    Ok(ExitStatus::Done)
}

pub(crate) async fn cancel(
    config: &Config,
    arguments: CancelArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    let client = daemon_client::connect(config).await?;
    let mut worst = ExitStatus::Done;
    for id in arguments.ids {
        match client.cancel(id, false).await {
            Ok(job) if output.is_json() => output.json_line(&job)?,
            Ok(job) => output.line(&format!(
                "job {id} {}: {} on {}",
                end(&job),
                job.image,
                job.snapshotter
            ))?,
            // A job that has ended must not keep the others from being cancelled.
            Err(failure) => worst = worst.max(output.error(&failure.into(), None)),
        }
    }
    Ok(worst)
}

fn end(job: &JobStatus) -> &'static str {
    match job.state {
        JobState::Running | JobState::Cancelling => "still runs",
        JobState::Done => "was done before it could be cancelled",
        JobState::Failed => "failed before it could be cancelled",
        JobState::Cancelled => "cancelled",
    }
}

fn cells(job: &JobStatus) -> [String; 9] {
    let state = match job.state {
        JobState::Running => "running",
        JobState::Cancelling => "cancelling",
        JobState::Done => "done",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    };
    // The clock may have been set back.
    let age = job.started.elapsed().unwrap_or_default();
    let age = Duration::from_secs(age.as_secs());
    [
        job.id.to_string(),
        state.to_owned(),
        format!("{}/{}", job.ready_layers, job.layers),
        format!(
            "{}/{} ({} %)",
            bytes(job.read_bytes),
            bytes(job.bytes),
            job.percent()
        ),
        humantime::format_duration(age).to_string(),
        job.waiters.to_string(),
        or_dash(Some(job.origin.clone())),
        job.snapshotter.clone(),
        job.image.clone(),
    ]
}

/// Formats cells in columns of fixed width, since later rows are not known yet.
fn line(cells: [String; 9]) -> String {
    let widths = [4, 10, 7, 28, 8, 7, 7, 12, 0];
    let cells = cells.iter().zip(widths);
    let line: String = cells
        .map(|(cell, width)| format!("{cell:<width$}   "))
        .collect();
    line.trim_end().to_owned()
}
