// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap unpack`.

use anyhow::Result;
use resnap_unpacker::{
    Canceller, Engine, Event, Job, Outcome as LayerOutcome, Report, Request, UnpackError,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Outcome;
use crate::args::UnpackArguments;
use crate::output::{Output, bytes};
use crate::progress::Progress;

pub(crate) async fn run(
    engine: &Engine,
    arguments: UnpackArguments,
    output: &mut Output,
) -> Result<Outcome> {
    let images = arguments.images;
    let jobs = images.iter().map(|image| {
        engine.unpack(Request {
            platform: arguments.platform.clone(),
            repair: arguments.repair,
            ..Request::new(image, &arguments.snapshotter)
        })
    });
    let jobs: Vec<Job> = jobs.collect();
    let signals = listen(jobs.iter().map(Job::canceller).collect())?;
    let mut progress = (!output.is_json()).then(|| Progress::new(jobs.len()));
    let (sender, mut told) = mpsc::unbounded_channel();
    for (number, job) in jobs.into_iter().enumerate() {
        tokio::spawn(follow(number, job, sender.clone()));
    }
    drop(sender);
    let mut worst = Outcome::Done;
    while let Some((number, told)) = told.recv().await {
        match (told, &mut progress) {
            (Told::Event(event), Some(progress)) => progress.show(number, &event),
            (Told::Event(event), None) => output.json_line(&event)?,
            (Told::End(result), progress) => {
                if let Some(progress) = progress {
                    progress.finish(number);
                }
                // One image that fails must not keep the others from being unpacked.
                match *result {
                    Ok(report) if output.is_json() => {
                        output.json_line(&serde_json::json!({ "report": report }))?;
                    }
                    Ok(report) => output.line(&summary(&report))?,
                    Err(error) => {
                        worst = worst.max(
                            output.error(&error.into(), images.get(number).map(String::as_str)),
                        )
                    }
                }
            }
        }
    }
    signals.abort();
    Ok(worst)
}

/// What a job tells.
enum Told {
    Event(Event),
    End(Box<Result<Report, UnpackError>>),
}

async fn follow(number: usize, mut job: Job, told: mpsc::UnboundedSender<(usize, Told)>) {
    // Who listens does so to the end, or is gone with the process.
    while let Some(event) = job.next_event().await {
        let _ = told.send((number, Told::Event(event)));
    }
    let end = Told::End(Box::new(job.report().await));
    let _ = told.send((number, end));
}

/// The first signal cancels the jobs, which then clean up; the second does not wait for that.
fn listen(cancellers: Vec<Canceller>) -> Result<JoinHandle<()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(tokio::spawn(async move {
        for patient in [true, false] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if !patient {
                std::process::exit(Outcome::Cancelled as i32);
            }
            cancellers.iter().for_each(Canceller::cancel);
        }
    }))
}

fn summary(report: &Report) -> String {
    let parts = [
        (LayerOutcome::Applied, "applied"),
        (LayerOutcome::Existed, "already there"),
        (LayerOutcome::Staged, "staged"),
        (LayerOutcome::Remote, "remote"),
        (LayerOutcome::Joined, "made by others meanwhile"),
    ];
    let counts = parts
        .into_iter()
        .map(|(outcome, word)| (report.count(outcome), word));
    let counts: Vec<String> = counts
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    let layers = report.layers.len();
    format!(
        "{} is ready on {}: {layers} layer{} ({}), {} unpacked in {:.1} s",
        report.reference.as_ref().unwrap_or(&report.image),
        report.snapshotter,
        if layers == 1 { "" } else { "s" },
        if counts.is_empty() {
            "nothing to do".to_owned()
        } else {
            counts.join(", ")
        },
        bytes(report.applied_bytes()),
        report.seconds,
    )
}
