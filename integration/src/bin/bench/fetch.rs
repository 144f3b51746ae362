// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The time to fetch and unpack missing layers from a registry behind a slow link.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use resnap_integration::daemon::Options;
use resnap_integration::image::Built;
use resnap_integration::registry::{Link, Registry};

use crate::process::cpu;
use crate::sample::Sample;
use crate::setup::{Setup, images};
use crate::table::{Row, Table};

const NAMESPACE: &str = "fetch";
const ROUNDS: usize = 3;

/// A gigabit per second.
const RATE: f64 = 125e6;

/// Nothing but the registry has the layers.
const CONFIG: &str = "sources.order = [\"registry\"]\n";

pub(crate) fn run(setup: &Setup) -> Result<Table> {
    let images = images()?;
    let there = setup.another(Options {
        tmpfs: Some("8g"),
        ..Options::default()
    })?;
    let dir = there.containerd.scratch().join("registry");
    let registry = Registry::start(there.containerd.dist(), &dir)?;
    let link = Link::start(registry.address(), RATE)?;
    let mut rows = Vec::new();
    for (name, image) in &images {
        // The name of a repository.
        let name = &*name.replace(' ', "-");
        push(&there, &registry, image, name)?;
        let at_link = Built {
            reference: link.reference(&format!("{name}:1")),
            ..image.clone()
        };
        for snapshotter in there.snapshotters() {
            let bed = Bed {
                setup: &there,
                registry: &registry,
                link: &link,
                name,
                image,
                at_link: &at_link,
                snapshotter,
            };
            rows.extend(bed.rows()?);
        }
    }
    drop((link, registry));
    there.stop()?;
    Ok(Table {
        name: "fetch",
        about: format!(
            "`resnap unpack` of images without their layers, from a registry on loopback behind a link\n\
             of 1 Gbit/s, and `ctr images pull --local` of the same, on tmpfs, {ROUNDS} rounds. Network:\n\
             reading all blobs. Unpack: `resnap unpack` with all blobs there. Floor: to the slower of\n\
             both. Ratio: to ctr. CPU and peak: of resnap, or of ctr alone."
        ),
        containerd: setup.containerd.name(),
        cores: std::thread::available_parallelism()?.get(),
        rows,
    })
}

/// Puts the image into the registry, and leaves nothing of it in containerd.
fn push(setup: &Setup, registry: &Registry, image: &Built, name: &str) -> Result<()> {
    let reference = registry.reference(&format!("{name}:1"));
    setup.import(NAMESPACE, image)?;
    setup.ctr(NAMESPACE, &["images", "tag", &image.reference, &reference])?;
    setup.ctr(NAMESPACE, &["images", "push", "--plain-http", &reference])?;
    setup.ctr(NAMESPACE, &["images", "rm", "--sync", &reference])?;
    setup.remove(NAMESPACE, image)
}

/// An image on a snapshotter.
struct Bed<'a> {
    setup: &'a Setup,
    registry: &'a Registry,
    link: &'a Link,
    name: &'a str,
    image: &'a Built,
    /// The same by its reference at the link.
    at_link: &'a Built,
    snapshotter: &'static str,
}

impl Bed<'_> {
    fn rows(&self) -> Result<Vec<Row>> {
        let mut network = Vec::new();
        let [mut unpacks, mut resnaps, mut pulls] = [const { Vec::new() }; 3];
        for round in 0..=ROUNDS {
            let samples = (
                self.network()?,
                self.unpack(true)?,
                self.unpack(false)?,
                self.pull()?,
            );
            // The first warms up.
            if round > 0 {
                samples.1.show(&self.variant("unpack"));
                samples.2.show(&self.variant("resnap"));
                samples.3.show(&self.variant("ctr"));
                network.push(samples.0);
                unpacks.push(samples.1);
                resnaps.push(samples.2);
                pulls.push(samples.3);
            }
        }
        let network = Row::timed(self.variant("network"), &network);
        let unpack = Sample::row(self.variant("unpack"), &unpacks);
        let floor = match network.median > unpack.median {
            true => &network,
            false => &unpack,
        };
        let ctr = Sample::row(self.variant("ctr"), &pulls);
        let resnap = Sample::row(self.variant("resnap"), &resnaps).against(&ctr);
        let [resnap, ctr] = [resnap, ctr].map(|row| Row {
            of_floor: row.of(floor),
            ..row
        });
        Ok(vec![network, unpack, resnap, ctr])
    }

    fn variant(&self, of: &str) -> String {
        format!("{}, {}: {of}", self.name, self.snapshotter)
    }

    /// Returns the time to read all blobs through the link.
    fn network(&self) -> Result<Duration> {
        let begin = Instant::now();
        let mut buffer = vec![0; 256 * 1024];
        for layer in &self.image.layers {
            let mut stream = TcpStream::connect(self.link.address())?;
            write!(
                stream,
                "GET /v2/{}/blobs/{} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
                self.name, layer.digest
            )?;
            let mut total = 0;
            loop {
                match stream.read(&mut buffer)? {
                    0 => break,
                    count => total += count as u64,
                }
            }
            ensure!(total > layer.size, "{total} bytes of {}", layer.digest);
        }
        Ok(begin.elapsed())
    }

    /// Unpacks the image, with its layers' blobs or without, and removes all that came of it.
    fn unpack(&self, has_blobs: bool) -> Result<Sample> {
        let Self { setup, image, .. } = self;
        setup.import(NAMESPACE, image)?;
        let tag = ["images", "tag", &image.reference, &self.at_link.reference];
        setup.ctr(NAMESPACE, &tag)?;
        setup.remove(NAMESPACE, image)?;
        if !has_blobs {
            let layers = image.layers.iter().map(|layer| &*layer.digest);
            let remove = ["content", "rm"].into_iter().chain(layers);
            setup.ctr(NAMESPACE, &remove.collect::<Vec<_>>())?;
            // Until garbage is collected, containerd has the blobs and would take them for fetched.
            setup.ctr(NAMESPACE, &["leases", "create", "--id", "garbage"])?;
            setup.ctr(NAMESPACE, &["leases", "delete", "--sync", "garbage"])?;
        }
        let config = setup.containerd.scratch().join("fetch.toml");
        fs::write(&config, CONFIG).with_context(|| format!("write {config:?}"))?;
        let socket = setup.containerd.socket();
        let mut command = setup.unpack(socket, NAMESPACE, self.snapshotter, self.at_link);
        let before = self.registry.requests()?.len();
        let of = if has_blobs { "unpack" } else { "resnap" };
        let sample = self.sample(of, command.arg("--config").arg(&config))?;
        let asked = self.registry.requests()?.len() - before;
        let layers = image.layers.len();
        ensure!(
            has_blobs || asked >= layers,
            "{asked} requests for {layers} layers"
        );
        setup.remove(NAMESPACE, self.at_link)?;
        Ok(sample)
    }

    /// Pulls the image with `ctr`, and removes it.
    fn pull(&self) -> Result<Sample> {
        let mut command = self.setup.containerd.ctr(NAMESPACE);
        command
            .args(["images", "pull", "--local", "--plain-http"])
            .args(["--snapshotter", self.snapshotter])
            .arg(&self.at_link.reference)
            .stdout(std::process::Stdio::null());
        let sample = self.sample("ctr", &mut command)?;
        self.setup.remove(NAMESPACE, self.at_link)?;
        Ok(sample)
    }

    /// Runs a command, and prints what the others take of the same cores meanwhile.
    fn sample(&self, of: &str, command: &mut Command) -> Result<Sample> {
        let before = self.others()?;
        let sample = Sample::of(command)?;
        let after = self.others()?;
        let [containerd, registry, link] = [0, 1, 2].map(|at| after[at] - before[at]);
        println!(
            "{}: {containerd:.2} s CPU of containerd, {registry:.2} s of the registry, {link:.2} s of \
             the link",
            self.variant(of)
        );
        Ok(sample)
    }

    /// Returns the CPU seconds of containerd, the registry and the link, which is in this process.
    fn others(&self) -> Result<[f64; 3]> {
        let containerd = self.setup.containerd.pid().context("no containerd")?;
        let (all, of_children) = cpu(std::process::id())?;
        let registry = cpu(self.registry.pid())?.0;
        Ok([cpu(containerd)?.0, registry, all - of_children])
    }
}
