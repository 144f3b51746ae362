// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap unpack`.

use std::fs;

use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use resnap_api::{DaemonClient, Failure, UnpackStep};
use resnap_core::Kind;
use resnap_unpacker::{Engine, Event, JobRef, LayerOutcome, Report, Request};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::Outcome;
use super::daemon::Worker;
use crate::args::UnpackArguments;
use crate::output::{Output, bytes};
use crate::progress::Progress;
use crate::timeline;

pub(crate) async fn run(
    worker: &Worker,
    arguments: UnpackArguments,
    output: &mut Output,
) -> Result<Outcome> {
    let images = arguments.images;
    if arguments.timeline.is_some() && images.len() > 1 {
        bail!("--timeline draws one image; {} are named", images.len());
    }
    let (signals, stop) = listen()?;
    let mut progress = (!output.is_json()).then(|| Progress::new(images.len()));
    let (sender, mut told) = mpsc::unbounded_channel();
    for (number, image) in images.iter().enumerate() {
        let request = Request {
            platform: arguments.platform.clone(),
            repair: arguments.repair,
            ..Request::new(image, arguments.snapshotter.as_deref().unwrap_or_default())
        };
        let following = Following {
            number,
            told: sender.clone(),
            stop: stop.clone(),
        };
        tokio::spawn(following.unpack(worker.clone(), request));
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
                if let (Some(path), Ok(report)) = (&arguments.timeline, &*result) {
                    fs::write(path, timeline::svg(report))
                        .with_context(|| format!("write the timeline to {path:?}"))?;
                }
                match *result {
                    Ok(report) if output.is_json() => {
                        output.json_line(&serde_json::json!({ "report": report }))?;
                    }
                    Ok(report) => output.line(&summary(&report))?,
                    Err(failure) => {
                        let image = images.get(number).map(String::as_str);
                        // Others may cancel what the daemon does for us.
                        worst = worst.max(match output.error(&failure.into(), image) {
                            Outcome::Cancelled if !*stop.borrow() => Outcome::Failed,
                            outcome => outcome,
                        });
                    }
                }
            }
        }
    }
    signals.abort();
    Ok(worst)
}

/// What is told of an image.
enum Told {
    Event(Event),
    End(Box<Result<Report, Failure>>),
}

/// Follows the unpack of the image of a number.
struct Following {
    number: usize,
    told: mpsc::UnboundedSender<(usize, Told)>,
    /// Says that the user wants it no more.
    stop: watch::Receiver<bool>,
}

impl Following {
    async fn unpack(mut self, worker: Worker, request: Request) {
        let result = match worker {
            Worker::Here(engine) => self.here(&engine, request).await,
            Worker::Daemon(client) => self.there(&client, &request).await,
        };
        self.tell(Told::End(Box::new(result)));
    }

    fn tell(&self, told: Told) {
        // Who listens does so to the end, or is gone with the process.
        let _ = self.told.send((self.number, told));
    }

    /// Until the user wants it no more.
    async fn stopped(&mut self) {
        if self.stop.wait_for(|stop| *stop).await.is_err() {
            // Nobody listens for signals any more.
            std::future::pending::<()>().await;
        }
    }

    async fn here(&mut self, engine: &Engine, request: Request) -> Result<Report, Failure> {
        let job = engine.unpack(request);
        let mut events = job.events();
        let canceller = job.canceller();
        let mut cancelled = false;
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => self.tell(Told::Event(event)),
                    None => break,
                },
                () = self.stopped(), if !cancelled => {
                    cancelled = true;
                    canceller.cancel();
                }
            }
        }
        let report = job.report().await;
        report.map_err(|error| Failure::new(&error, engine.namespace()))
    }

    async fn there(&mut self, client: &DaemonClient, request: &Request) -> Result<Report, Failure> {
        let mut unpacking = client.unpack(request).await?;
        let mut begun = None;
        let mut cancelled = false;
        loop {
            tokio::select! {
                step = unpacking.next() => match step? {
                    UnpackStep::Started(job) => begun = Some(job),
                    UnpackStep::Event(event) => self.tell(Told::Event(event)),
                    UnpackStep::Report(report) => return Ok(report),
                },
                () = self.stopped(), if begun.is_some() && !cancelled => {
                    cancelled = true;
                    if let Some(job) = begun {
                        leave(client, job, request).await?;
                    }
                }
            }
        }
    }
}

/// Cancels a job that this process began, unless others wait for it; otherwise it is left to them,
/// which is an error here.
async fn leave(client: &DaemonClient, job: JobRef, request: &Request) -> Result<(), Failure> {
    let id = job.id;
    if !job.joined {
        match client.cancel(id, true).await {
            // How it ended is told to all who wait.
            Ok(_) => return Ok(()),
            Err(failure) if failure.kind == Kind::NotFound => return Ok(()),
            Err(failure) if failure.kind == Kind::FailedPrecondition => {}
            Err(failure) => return Err(failure),
        }
    }
    let Request {
        image, snapshotter, ..
    } = request;
    Err(Failure {
        kind: Kind::Cancelled,
        reason: Failure::CANCELLED.to_owned(),
        message: format!("unpacking image {image} for {snapshotter} goes on, for others"),
        next_step: Some(format!("`resnap cancel {id}` ends it for all")),
    })
}

/// The first signal says so, so that what is begun is cleaned up; the second does not wait for that.
fn listen() -> Result<(JoinHandle<()>, watch::Receiver<bool>)> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (stop, stopped) = watch::channel(false);
    let listening = tokio::spawn(async move {
        for patient in [true, false] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if !patient {
                std::process::exit(Outcome::Cancelled as i32);
            }
            // Who follows an image is gone when that is done.
            let _ = stop.send(true);
        }
    });
    Ok((listening, stopped))
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
