// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap verify`.

use anyhow::Result;
use resnap_api::Failure;
use resnap_unpacker::{Engine, Plan, Request, Verdict, Verification, VerifiedLayer, Verifier};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::executor::Executor;
use super::signals::listen;
use crate::args::VerifyArguments;
use crate::exit_status::ExitStatus;
use crate::output::{Output, Table, bytes, short};
use crate::progress::Progress;

pub(crate) async fn run(
    engine: &Engine,
    arguments: VerifyArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    let snapshotter = &arguments.snapshotter;
    let (signals, stop) = listen()?;
    engine.require_snapshotter(snapshotter).await?;
    let requests = match arguments.all {
        false => arguments.images.iter().map(Request::new).collect(),
        true => engine.unpacked_requests(snapshotter).await?,
    };
    let mut run = Run {
        verifier: engine.verifier(snapshotter).rate(arguments.rate),
        executor: Executor::Local(engine.clone()),
        heals: arguments.heal,
        progress: (!output.is_json()).then(|| Progress::new(0)),
        stop,
    };
    let (mut verified, mut worst) = (Vec::new(), ExitStatus::Done);
    for request in &requests {
        let image = &*request.image;
        if run.stop.is_cancelled() {
            break;
        }
        // One image that fails must not keep the others from being verified.
        match run.image(request).await {
            Err(error) => worst = worst.max(output.error(&error, Some(image))),
            Ok((document, failure)) => {
                worst = worst.max(status(&document.verification));
                verified.push(document);
                if let Some(failure) = failure {
                    worst = worst.max(output.error(&failure.into(), Some(image)));
                }
            }
        }
    }
    signals.abort();
    output.documents(&verified, show)?;
    Ok(match run.stop.is_cancelled() {
        true => ExitStatus::Cancelled,
        false => worst,
    })
}

/// The result for one image.
#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    verification: Verification,
    /// Whether layers were made again.
    is_healed: bool,
}

/// A run of the command.
struct Run {
    verifier: Verifier,
    executor: Executor,
    heals: bool,
    progress: Option<Progress>,
    stop: CancellationToken,
}

impl Run {
    /// Verifies an image, and heals it. Returns also the reason why it was not healed.
    async fn image(&mut self, request: &Request) -> Result<(Document, Option<Failure>)> {
        let mut document = Document {
            verification: self.verify(request).await?,
            is_healed: false,
        };
        let verification = &document.verification;
        if !self.heals || verification.is_stopped || !verification.has_differences() {
            return Ok((document, None));
        }
        let healing = request.clone().healing(verification);
        let healed = self.executor.unpack(healing, self.stop.clone(), |_| {});
        if let Err(failure) = healed.await {
            return Ok((document, Some(failure)));
        }
        self.verifier.forget(verification);
        document.verification = self.verify(request).await?;
        document.is_healed = true;
        Ok((document, None))
    }

    async fn verify(&mut self, request: &Request) -> Result<Verification> {
        let progress = &self.progress;
        let done = |plan: &Plan, layer: &VerifiedLayer| {
            if let Some(progress) = progress {
                progress.note(&line(plan, layer));
            }
        };
        Ok(self.verifier.verify(request, &self.stop, done).await?)
    }
}

fn status(verification: &Verification) -> ExitStatus {
    match (verification.has_differences(), verification.is_complete()) {
        (false, true) => ExitStatus::Done,
        (true, true) => ExitStatus::Negative,
        (_, false) => ExitStatus::Failed,
    }
}

/// Returns the line of a layer that was compared.
fn line(plan: &Plan, layer: &VerifiedLayer) -> String {
    let (state, read) = describe(&layer.verdict);
    let number = plan
        .layers
        .iter()
        .position(|planned| planned.chain_id == layer.chain_id);
    format!(
        "{}: layer {}/{} {}: {state} ({read}, {:.1} s)",
        plan.image.name,
        number.map_or(0, |index| index + 1),
        plan.layers.len(),
        short(layer.digest.as_str()),
        layer.seconds,
    )
}

/// Returns the state of a layer, and what was read.
fn describe(verdict: &Verdict) -> (&'static str, String) {
    match verdict {
        Verdict::Right { by, bytes: read } => {
            ("right", format!("by its {}, {}", by.as_str(), bytes(*read)))
        }
        Verdict::Wrong {
            by, bytes: read, ..
        } => ("WRONG", format!("by its {}, {}", by.as_str(), bytes(*read))),
        _ => ("unknown", "nothing".to_owned()),
    }
}

fn show(document: &Document, table: &mut Table) {
    let verification = &document.verification;
    let state = match (verification.is_stopped, document.is_healed) {
        (true, _) => ", stopped",
        (false, true) => ", healed",
        (false, false) => "",
    };
    table.line(format!(
        "image: {} on {}{state}",
        verification.image, verification.snapshotter,
    ));
    table.header(["LAYER", "DIGEST", "CHAIN ID", "STATE", "READ"]);
    for (index, layer) in verification.layers.iter().enumerate() {
        let (state, read) = describe(&layer.verdict);
        table.row([
            (index + 1).to_string(),
            short(layer.digest.as_str()),
            short(layer.chain_id.as_str()),
            state.to_owned(),
            read,
        ]);
    }
    for (index, layer) in verification.layers.iter().enumerate() {
        let number = index + 1;
        match &layer.verdict {
            Verdict::Wrong { differences, .. } => {
                for difference in &differences.first {
                    table.line(format!("layer {number}: {difference}"));
                }
                let more = differences.total - differences.first.len() as u64;
                if more > 0 {
                    table.line(format!("layer {number}: and {more} more differences"));
                }
            }
            Verdict::Unknown { reason } => table.line(format!("layer {number}: {reason}")),
            _ => {}
        }
    }
}
