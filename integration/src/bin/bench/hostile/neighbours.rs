// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The others on a node, who mean well.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use resnap_integration::cri::{Cri, Sandbox};
use resnap_integration::image::Built;
use resnap_integration::wire::Wire;
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};
use tonic::Status;

use crate::table::Tenant;

const VERSION: &str = "/runtime.v1.RuntimeService/Version";

/// About what kubelet sends to create a container of a pod with a few mounts and variables.
const SIZE: usize = 8 << 10;

/// The interval of a client's calls, which do not wait for answers.
const EVERY: Duration = Duration::from_millis(10);

/// The time that is counted for a call without an answer.
const NEVER: Duration = Duration::from_secs(60);

/// The proxy answers so long before a deadline at most.
const EARLY: Duration = Duration::from_secs(10);

/// A client that calls Version at a steady rate.
pub(super) struct Client {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Duration>>>,
}

impl Client {
    pub(super) fn start(socket: &Path) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let wire = runtime.block_on(Wire::connect(socket))?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || runtime.block_on(calls(&wire, &stop))
        });
        Ok(Self { stop, thread })
    }

    /// Returns the time of each call.
    pub(super) fn end(self) -> Result<Vec<Duration>> {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.join();
        joined.map_err(|_| anyhow!("the other client panicked"))?
    }
}

async fn calls(wire: &Wire, stop: &AtomicBool) -> Result<Vec<Duration>> {
    let (mut ticks, mut calls) = (interval(EVERY), JoinSet::new());
    while !stop.load(Ordering::Relaxed) {
        // From when it was to be made, not from when there was time to.
        let asked = ticks.tick().await;
        let (wire, request) = (wire.clone(), Wire::to(VERSION).body(())?);
        calls.spawn(async move {
            let call = wire.call(request, Bytes::from_static(&[0; 5]));
            let Ok(reply) = timeout(NEVER, call).await else {
                return Ok(NEVER);
            };
            let reply = reply?;
            ensure!(reply.status() == Some(0), "{reply:?}");
            Ok(asked.elapsed())
        });
    }
    let mut samples = Vec::with_capacity(calls.len());
    while let Some(call) = calls.join_next().await {
        samples.push(call.context("a call's task")??);
    }
    Ok(samples)
}

/// Creates a container of an image, and returns the result.
pub(super) fn container(
    socket: &Path,
    logs: &Path,
    sandbox: &Sandbox,
    image: &Built,
    limit: Duration,
) -> Result<Tenant> {
    let cri = Cri::connect(socket, logs)?.with_timeout(limit);
    let asked = Instant::now();
    let command = ["/bin/true", &"x".repeat(SIZE)];
    let created = cri.create_container(sandbox, "tenant", &image.reference, &command);
    let taken = asked.elapsed();
    let Err(error) = created else {
        return Ok(Tenant::Ready(taken.as_secs_f64()));
    };
    if taken + EARLY > limit {
        return Ok(Tenant::Waits(taken.as_secs_f64()));
    }
    let status = error.downcast_ref::<Status>().context("no status")?;
    let code = format!("{:?}", status.code());
    Ok(Tenant::Refused(code, taken.as_secs_f64()))
}
