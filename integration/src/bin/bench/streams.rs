// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Streams through `resnap serve` next to the same streams directly, and what they leave in its memory.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use resnap_integration::image::{digest, noise};

use crate::setup::{Served, Setup, time, time_all};
use crate::table::{Row, Table};

const NAMESPACE: &str = "streams";

/// The bytes of a stream.
const SIZE: usize = 300 << 20;

/// All take turns so often.
const ROUNDS: usize = 7;

/// The streams at once in a burst, and the time after it until memory is measured.
const BURST: usize = 16;
const REST: Duration = Duration::from_secs(20);

/// A blob, and how to send and to get it.
struct Blob<'a> {
    setup: &'a Setup,
    path: PathBuf,
    digest: String,
}

/// One way to the containerd.
struct Way {
    name: String,
    socket: PathBuf,
    to: Vec<Duration>,
    from: Vec<Duration>,
}

pub(crate) fn run(setup: &Setup) -> Result<Table> {
    let [sent, kept] = [Blob::new(setup, 1)?, Blob::new(setup, 2)?];
    kept.keep()?;
    let served = setup.serve_all()?;
    let mut ways = vec![Way::new("directly", setup.containerd.socket())];
    for (name, served) in &served {
        ways.push(Way::new(name, &served.socket));
    }
    for _ in 0..ROUNDS {
        for way in &mut ways {
            way.to.push(sent.ingest(&way.socket)?);
            // Garbage collection may have been faster.
            sent.ctr(setup.containerd.socket())
                .args(["rm", &sent.digest])
                .stderr(Stdio::null())
                .status()?;
            way.from.push(kept.get(&way.socket)?);
        }
    }
    let mut rows = Vec::new();
    for (name, times) in [("to", true), ("from", false)] {
        let of = |way: &Way| {
            let samples = if times { &way.to } else { &way.from };
            Row::timed(format!("{name} containerd: {}", way.name), samples)
        };
        let direct = of(&ways[0]);
        rows.push(direct.clone());
        rows.extend(ways[1..].iter().map(|way| of(way).against(&direct)));
    }
    for (name, served) in &served {
        rows.extend(kept.burst(name, served)?);
    }
    Ok(Table {
        name: "streams",
        about: format!(
            "{} MiB by `ctr content ingest` and `ctr content get`, directly and through `resnap serve`, in\n\
             turns. Memory is what is resident before {BURST} `get` at once, and {} s after them.",
            SIZE >> 20,
            REST.as_secs()
        ),
        containerd: setup.containerd.name(),
        cores: std::thread::available_parallelism()?.get(),
        rows,
    })
}

impl Way {
    fn new(name: &str, socket: &Path) -> Self {
        Self {
            name: name.to_owned(),
            socket: socket.to_owned(),
            to: Vec::new(),
            from: Vec::new(),
        }
    }
}

impl<'a> Blob<'a> {
    fn new(setup: &'a Setup, seed: u64) -> Result<Self> {
        let bytes = noise(seed, SIZE);
        let path = setup.containerd.scratch().join(format!("blob-{seed}"));
        std::fs::write(&path, &bytes)?;
        let digest = digest(&bytes);
        Ok(Self {
            setup,
            path,
            digest,
        })
    }

    fn ctr(&self, socket: &Path) -> Command {
        let mut command = self.setup.containerd.ctr(NAMESPACE);
        // The last one counts.
        command.arg("--address").arg(socket).arg("content");
        command.stdout(Stdio::null());
        command
    }

    fn ingest(&self, socket: &Path) -> Result<Duration> {
        let mut command = self.ctr(socket);
        command.args(["ingest", "--expected-digest", &self.digest, "blob"]);
        time(command.stdin(File::open(&self.path)?))
    }

    fn get(&self, socket: &Path) -> Result<Duration> {
        time(self.ctr(socket).args(["get", &self.digest]))
    }

    /// Puts the blob into containerd, for good.
    fn keep(&self) -> Result<()> {
        let socket = self.setup.containerd.socket();
        self.ingest(socket)?;
        let label = "containerd.io/gc.root=bench";
        time(self.ctr(socket).args(["label", &self.digest, label])).map(drop)
    }

    /// The memory of a proxy before and after many streams at once.
    fn burst(&self, name: &str, served: &Served) -> Result<[Row; 2]> {
        let memory = |when: &str| {
            anyhow::Ok(Row {
                variant: format!("memory {when}: {name}"),
                peak_kib: Some(served.memory("VmRSS")?),
                ..Row::default()
            })
        };
        let before = memory("before")?;
        let get = || {
            let mut command = self.ctr(&served.socket);
            command.args(["get", &self.digest]);
            command
        };
        let mut burst: Vec<_> = (0..BURST).map(|_| get()).collect();
        time_all(&mut burst)?;
        std::thread::sleep(REST);
        Ok([before, memory("afterwards")?])
    }
}
