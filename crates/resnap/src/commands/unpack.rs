// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap unpack`.

use anyhow::Result;
use resnap_unpacker::{Engine, Outcome as LayerOutcome, Report, Request};

use super::Outcome;
use crate::args::UnpackArguments;
use crate::output::{Output, bytes};
use crate::progress::Progress;

pub(crate) async fn run(
    engine: &Engine,
    arguments: UnpackArguments,
    output: &mut Output,
) -> Result<Outcome> {
    let mut worst = Outcome::Done;
    for image in arguments.images {
        let request = Request {
            platform: arguments.platform.clone(),
            ..Request::new(image, &arguments.snapshotter)
        };
        // One image that fails must not keep the others from being unpacked.
        if let Err(error) = unpack(engine, request, output).await {
            worst = worst.max(output.error(&error));
        }
    }
    Ok(worst)
}

async fn unpack(engine: &Engine, request: Request, output: &mut Output) -> Result<()> {
    let mut job = engine.unpack(request);
    let mut progress = (!output.is_json()).then(Progress::new);
    while let Some(event) = job.next_event().await {
        match &mut progress {
            Some(progress) => progress.show(&event),
            None => output.json_line(&event)?,
        }
    }
    if let Some(progress) = progress {
        progress.finish();
    }
    let report = job.report().await?;
    if output.is_json() {
        return output.json_line(&serde_json::json!({ "report": report }));
    }
    output.line(summary(&report))
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
