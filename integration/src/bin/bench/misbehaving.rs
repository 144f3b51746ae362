// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The effect of misbehaving clients of `resnap serve` on another client.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use h2::SendStream;
use h2::client::ResponseFuture;
use resnap_integration::image::web;
use resnap_integration::wire::{Wire, frame};
use tokio::runtime::Builder;

use crate::setup::{Served, Setup};
use crate::table::{Row, Table};

const VERSION: &str = "/runtime.v1.RuntimeService/Version";
const CREATE_CONTAINER: &str = "/runtime.v1.RuntimeService/CreateContainer";
const READ: &str = "/containerd.services.content.v1.Content/Read";

const NAMESPACE: &str = "misbehaving";
const CALLS: usize = 5000;
const IDLE: usize = 2000;
const SLOW: usize = 64;

pub(crate) fn run(setup: &Setup) -> Result<Table> {
    let image = web()?;
    setup.import(NAMESPACE, &image)?;
    let served = setup.serve()?;
    let largest = image.layers.iter().max_by_key(|layer| layer.size);
    let blob = largest
        .map(|layer| layer.digest.clone())
        .unwrap_or_default();
    let new_runtime = || Builder::new_current_thread().enable_all().build();
    // Nothing reads for the crowd while nothing drives its runtime.
    let (runtime, crowd_runtime) = (new_runtime()?, new_runtime()?);
    let client = runtime.block_on(Wire::connect(&served.socket))?;
    runtime.block_on(calls(&client))?;
    let alone = row("alone", &served, &runtime.block_on(calls(&client))?)?;
    let crowd = crowd_runtime.block_on(crowd(&served, &blob))?;
    // Data in transit has to arrive first.
    std::thread::sleep(Duration::from_millis(500));
    let mut among = row("in the crowd", &served, &runtime.block_on(calls(&client))?)?;
    among.ratio = among.p99.zip(alone.p99).map(|(among, alone)| among / alone);
    drop(crowd);
    drop(served);
    setup.remove(NAMESPACE, &image)?;
    Ok(Table {
        name: "misbehaving",
        about: format!(
            "a client's calls through `resnap serve`, alone and with {IDLE} idle clients, {SLOW} that do\n             not read what they asked for and {SLOW} that do not end their requests. The ratio is of\n             the 99th percentiles; the memory is the proxy's, resident."
        ),
        containerd: setup.containerd.name(),
        cores: std::thread::available_parallelism()?.get(),
        rows: vec![alone, among],
    })
}

/// The clients that do not behave, with what they have begun.
type Crowd = Vec<(Wire, Option<(ResponseFuture, SendStream<Bytes>)>)>;

async fn crowd(served: &Served, blob: &str) -> Result<Crowd> {
    let mut crowd = Vec::new();
    for _ in 0..IDLE {
        crowd.push((Wire::connect(&served.socket).await?, None));
    }
    let mut message = Vec::new();
    prost::encoding::string::encode(1, &blob.to_owned(), &mut message);
    let read = frame(&message);
    let half = frame(&[0; 128 << 10]).slice(..60 << 10);
    for _ in 0..SLOW {
        for (path, body, end) in [(READ, &read, true), (CREATE_CONTAINER, &half, false)] {
            let wire = Wire::connect(&served.socket).await?;
            let request = Wire::to(path).header("containerd-namespace", NAMESPACE);
            let (reply, mut to) = wire.open(request.body(())?).await?;
            to.send_data(body.clone(), end)?;
            crowd.push((wire, Some((reply, to))));
        }
    }
    // The data has to be written first.
    tokio::time::sleep(Duration::from_millis(10)).await;
    Ok(crowd)
}

fn row(variant: &str, served: &Served, samples: &[Duration]) -> Result<Row> {
    let time: Duration = samples.iter().sum();
    let rate = samples.len() as f64 / time.as_secs_f64();
    Ok(Row {
        peak_kib: Some(served.memory("VmRSS")?),
        ..Row::calls(variant, samples, rate)
    })
}

async fn calls(client: &Wire) -> Result<Vec<Duration>> {
    let mut samples = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let request = Wire::to(VERSION).body(())?;
        let asked = Instant::now();
        let reply = client.call(request, Bytes::from_static(&[0; 5])).await?;
        samples.push(asked.elapsed());
        ensure!(reply.status() == Some(0), "{reply:?}");
    }
    Ok(samples)
}
