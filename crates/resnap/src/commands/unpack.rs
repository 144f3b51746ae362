// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap unpack`.

use std::fs;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use resnap_api::Failure;
use resnap_unpacker::{Event, LayerOutcome, Report, Request};
use tokio::sync::{Semaphore, mpsc};

use super::executor::Executor;
use super::signals::listen;
use crate::args::UnpackArguments;
use crate::config::Config;
use crate::connect::working_engine;
use crate::exit_status::ExitStatus;
use crate::output::{Output, bytes};
use crate::progress::Progress;
use crate::timeline;

pub(crate) async fn run(
    executor: &Executor,
    config: &Config,
    arguments: UnpackArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    let (requests, jobs) = match (&arguments.snapshotter, arguments.all) {
        (Some(snapshotter), true) => {
            let engine = working_engine(config).await?;
            let requests = engine.unpacked_requests(snapshotter).await?;
            (requests, config.prewarm_jobs.value)
        }
        _ => {
            let requests = arguments.images.iter().map(|image| {
                let mut request = Request::new(image);
                request.snapshotter.clone_from(&arguments.snapshotter);
                request.platform.clone_from(&arguments.platform);
                request
            });
            (requests.collect(), Semaphore::MAX_PERMITS)
        }
    };
    let images: Vec<_> = requests
        .iter()
        .map(|request| request.image.clone())
        .collect();
    if arguments.timeline.is_some() && images.len() > 1 {
        bail!("--timeline draws one image; {} are named", images.len());
    }
    let (signals, stop) = listen()?;
    let mut progress = (!output.is_json()).then(|| Progress::new(images.len()));
    let jobs = Arc::new(Semaphore::new(jobs));
    let (sender, mut updates) = mpsc::unbounded_channel();
    for (number, mut request) in requests.into_iter().enumerate() {
        request.repair = arguments.repair;
        let (executor, sender, stop) = (executor.clone(), sender.clone(), stop.clone());
        let (pending, namespace) = (config.pending.clone(), config.namespace.value.clone());
        let jobs = Arc::clone(&jobs);
        tokio::spawn(async move {
            let _job = jobs.acquire().await;
            let send = |update| {
                // The receiver is dropped only when the process ends.
                let _ = sender.send((number, update));
            };
            let name = request.image.clone();
            let unpacked = executor.unpack(request, stop, |event| send(Update::Event(event)));
            let mut unpacked = unpacked.await;
            if let (Ok(_), Some(pending)) = (&unpacked, pending)
                && let Err(error) = pending.record(&name).await
            {
                unpacked = Err(Failure::new(&error.into(), &namespace));
            }
            send(Update::End(Box::new(unpacked)));
        });
    }
    drop(sender);
    let mut worst = ExitStatus::Done;
    while let Some((number, update)) = updates.recv().await {
        match (update, &mut progress) {
            (Update::Event(event), Some(progress)) => progress.show(number, &event),
            (Update::Event(event), None) => output.json_line(&event)?,
            (Update::End(result), progress) => {
                if let Some(progress) = progress {
                    progress.finish(number);
                }
                // One image that fails must not keep the others from being unpacked.
                if let (Some(path), Ok(report)) = (&arguments.timeline, &*result) {
                    fs::write(path, timeline::svg(report))
                        .with_context(|| format!("write the timeline to {path:?}"))?;
                }
                let image = images.get(number).map(String::as_str);
                worst = worst.max(match print(*result, image, output)? {
                    // Another client cancelled the daemon's job.
                    ExitStatus::Cancelled if !stop.is_cancelled() => ExitStatus::Failed,
                    status => status,
                });
            }
        }
    }
    signals.abort();
    Ok(worst)
}

fn print(
    result: Result<Report, Failure>,
    image: Option<&str>,
    output: &mut Output,
) -> Result<ExitStatus> {
    match result {
        Ok(report) if output.is_json() => {
            output.json_line(&serde_json::json!({ "report": report }))?;
        }
        Ok(report) => output.line(&summary(&report))?,
        Err(failure) => return Ok(output.error(&failure.into(), image)),
    }
    Ok(ExitStatus::Done)
}

/// News of one image.
enum Update {
    Event(Event),
    End(Box<Result<Report, Failure>>),
}

fn summary(report: &Report) -> String {
    let parts = [
        (LayerOutcome::Applied, "applied"),
        (LayerOutcome::Copied, "copied from another snapshotter"),
        (LayerOutcome::Existed, "already there"),
        (LayerOutcome::Staged, "staged"),
        (LayerOutcome::Remote, "remote"),
        (LayerOutcome::Joined, "unpacked by another process"),
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
