// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Calls through `resnap serve` next to the same calls made directly.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use resnap_integration::cri::Cri;
use resnap_integration::image::{hello, pause};
use resnap_integration::wire::{Wire, frame};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use crate::setup::{Served, Setup};
use crate::table::{Row, Table};

const VERSION: &str = "/runtime.v1.RuntimeService/Version";
const CREATE_CONTAINER: &str = "/runtime.v1.RuntimeService/CreateContainer";

const OK: u16 = 0;
const FAILED_PRECONDITION: u16 = 9;

/// About what kubelet sends to create a container of a pod with a few mounts and variables.
const SIZE: usize = 8 << 10;

/// Direct and proxied take turns so often.
const ROUNDS: usize = 20;

/// Clients at a time, with a connection each, and how many calls each makes in a round.
const CLIENTS: [(usize, usize); 2] = [(1, 250), (64, 25)];

/// The number of calls between two measurements of the proxy's memory.
const MANY: usize = 100_000;

/// The fields of `CreateContainerRequest` that decide.
#[derive(Clone, PartialEq, prost::Message)]
struct Create {
    #[prost(string, tag = "1")]
    sandbox: String,
    #[prost(message, optional, tag = "2")]
    config: Option<Config>,
    /// The configuration of the pod.
    #[prost(message, optional, tag = "3")]
    pod: Option<Config>,
}

/// `ContainerConfig`, and as much of `PodSandboxConfig` as containerd wants.
#[derive(Clone, PartialEq, prost::Message)]
struct Config {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Name>,
    #[prost(message, optional, tag = "2")]
    image: Option<Name>,
    #[prost(string, repeated, tag = "4")]
    arguments: Vec<String>,
}

/// `ContainerMetadata`, `PodSandboxMetadata` and `ImageSpec`.
#[derive(Clone, PartialEq, prost::Message)]
struct Name {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

/// A call, and what it is answered by.
struct Subject {
    name: &'static str,
    path: &'static str,
    body: Bytes,
    status: u16,
}

/// One way to the same containerd.
struct Way {
    clients: Vec<Wire>,
    samples: Vec<Duration>,
    time: Duration,
}

pub(crate) fn run(setup: &Setup) -> Result<Table> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let served = setup.serve_all()?;
    let mut rows = Vec::new();
    for subject in subjects(setup)? {
        for (clients, calls) in CLIENTS {
            rows.extend(compare(setup, &served, &runtime, &subject, clients, calls)?);
        }
    }
    for (name, served) in &served {
        rows.extend(memory(name, served, &runtime)?);
    }
    drop(served);
    Ok(Table {
        name: "proxy",
        about: format!(
            "calls of {SIZE} bytes directly and through `resnap serve`, in turns. CreateContainer is\n             of a name that is taken, in a pod on {}: the proxy looks whether the image is ready\n             there, then containerd refuses. The ratio is of calls per second, to direct ones; the\n             memory is resident.",
            setup.lazy()
        ),
        containerd: setup.containerd.name(),
        cores: std::thread::available_parallelism()?.get(),
        rows,
    })
}

fn subjects(setup: &Setup) -> Result<[Subject; 2]> {
    let (image, pause) = (hello()?, pause()?);
    for image in [&image, &pause] {
        setup.import("k8s.io", image)?;
    }
    let cri = Cri::connect(setup.containerd.socket(), &setup.containerd.scratch())?;
    let handler = if setup.containerd.has_erofs() {
        "erofs"
    } else {
        ""
    };
    let sandbox = cri.run_pod_sandbox(handler, "bench")?;
    cri.create_container(&sandbox, "taken", &image.reference, &[])?;
    let name = |name: &str| Name {
        name: name.to_owned(),
        ..Name::default()
    };
    let create = Create {
        sandbox: sandbox.id().to_owned(),
        config: Some(Config {
            metadata: Some(name("taken")),
            // As kubelet names the images of containers.
            image: Some(name(&image.config)),
            arguments: vec!["x".repeat(SIZE)],
        }),
        pod: Some(Config {
            metadata: Some(Name {
                uid: "bench".to_owned(),
                namespace: "default".to_owned(),
                ..name("bench")
            }),
            ..Config::default()
        }),
    };
    let version = name(&"x".repeat(SIZE));
    Ok([
        Subject {
            name: "Version",
            path: VERSION,
            body: frame(&prost::Message::encode_to_vec(&version)),
            status: OK,
        },
        Subject {
            name: "CreateContainer",
            path: CREATE_CONTAINER,
            body: frame(&prost::Message::encode_to_vec(&create)),
            status: FAILED_PRECONDITION,
        },
    ])
}

fn compare(
    setup: &Setup,
    served: &[(String, Served)],
    runtime: &Runtime,
    subject: &Subject,
    clients: usize,
    calls: usize,
) -> Result<Vec<Row>> {
    let mut direct = Way::of(runtime, setup.containerd.socket(), clients)?;
    let proxied = served.iter();
    let proxied = proxied.map(|(_, served)| Way::of(runtime, &served.socket, clients));
    let mut proxied: Vec<_> = proxied.collect::<Result<_>>()?;
    for way in [&mut direct].into_iter().chain(&mut proxied) {
        // The first round only warms up.
        way.round(runtime, subject, calls)?;
        way.forget();
    }
    for _ in 0..ROUNDS {
        for way in [&mut direct].into_iter().chain(&mut proxied) {
            way.round(runtime, subject, calls)?;
        }
    }
    let name = |way: &str| format!("{} by {clients}: {way}", subject.name);
    let direct = direct.row(name("direct"));
    let of = |row: &Row| row.per_second.unwrap_or_default();
    let more = |more: Option<f64>, than: Option<f64>| more.zip(than).map(|(a, b)| a - b);
    let mut rows = vec![direct.clone()];
    for ((way, _), proxied) in served.iter().zip(proxied) {
        let mut proxied = proxied.row(name(way));
        proxied.ratio = Some(of(&proxied) / of(&direct));
        let added = Row {
            variant: name(&format!("added by {way}")),
            median: more(proxied.median, direct.median),
            p99: more(proxied.p99, direct.p99),
            ..Row::default()
        };
        rows.extend([proxied, added]);
    }
    Ok(rows)
}

/// Resident after some calls and after many more.
fn memory(name: &str, served: &Served, runtime: &Runtime) -> Result<[Row; 2]> {
    let subject = Subject {
        name: "Version",
        path: VERSION,
        body: frame(&[]),
        status: OK,
    };
    let mut way = Way::of(runtime, &served.socket, 64)?;
    let mut row = |calls: usize, variant: &str| {
        way.round(runtime, &subject, calls / 64)?;
        anyhow::Ok(Row {
            variant: format!("{variant}: {name}"),
            peak_kib: Some(served.memory("VmRSS")?),
            ..Row::default()
        })
    };
    Ok([
        row(MANY / 10, "memory before")?,
        row(MANY, &format!("memory after {MANY} calls"))?,
    ])
}

impl Way {
    fn of(runtime: &Runtime, socket: &Path, clients: usize) -> Result<Self> {
        let connect = async |_| Wire::connect(socket).await;
        let clients: Result<_> = runtime.block_on(async {
            let mut all = Vec::new();
            for number in 0..clients {
                all.push(connect(number).await?);
            }
            Ok(all)
        });
        Ok(Self {
            clients: clients?,
            samples: Vec::new(),
            time: Duration::ZERO,
        })
    }

    /// Every client makes so many calls, one after the other.
    fn round(&mut self, runtime: &Runtime, subject: &Subject, calls: usize) -> Result<()> {
        let start = Instant::now();
        runtime.block_on(async {
            let mut clients = JoinSet::new();
            for client in &self.clients {
                let (client, body) = (client.clone(), subject.body.clone());
                let (path, status) = (subject.path, subject.status);
                clients.spawn(async move {
                    let mut samples = Vec::with_capacity(calls);
                    for _ in 0..calls {
                        let request = Wire::to(path).header("grpc-timeout", "2M").body(())?;
                        let asked = Instant::now();
                        let reply = client.call(request, body.clone()).await?;
                        samples.push(asked.elapsed());
                        ensure!(reply.status() == Some(status), "{path}: {reply:?}");
                    }
                    anyhow::Ok(samples)
                });
            }
            while let Some(client) = clients.join_next().await {
                self.samples.extend(client.context("a client's task")??);
            }
            anyhow::Ok(())
        })?;
        self.time += start.elapsed();
        Ok(())
    }

    fn forget(&mut self) {
        self.samples.clear();
        self.time = Duration::ZERO;
    }

    fn row(&self, variant: String) -> Row {
        let rate = self.samples.len() as f64 / self.time.as_secs_f64();
        Row::calls(variant, &self.samples, rate)
    }
}
