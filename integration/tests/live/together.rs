// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Requests for the same image share one job, which goes on without its callers.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream::BoxStream;
use resnap_containerd::Client;
use resnap_core::{Applied, Applier, Descriptor, Kind, Mount, Ports, Scope};
use resnap_integration::image::{Built, Entry, HELLO_SAYS, ImageBuilder, Layer};
use resnap_integration::image::{hello, shared_pair};
use resnap_integration::tap::{Method, Point, Tap};
use resnap_unpacker::{
    Engine, EngineSettings, Event, Job, LayerOutcome, Phase, Report, Request, UnpackError,
};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Barrier;

use crate::node::{Node, unique};
use crate::poll::eventually;
use crate::suite::live_tests;
use crate::unpack::assert_labels;

live_tests! {
    Containerd: a_cold_plan_reads_each_document_once,
    Containerd: requests_of_one_process_unpack_once,
    Containerd: processes_unpack_once,
    One: images_that_share_layers_unpack_them_once,
    Containerd: a_job_outlives_its_callers,
    Containerd: a_panic_fails_a_job_once,
    Containerd: cancel_stops_a_job_for_all_callers,
    Containerd: layers_at_once_are_limited,
}

const CALLERS: usize = 16;

const ON: &str = "overlayfs";

/// The deadline of conditions that need no waiting of their own.
const DEADLINE: Duration = Duration::from_secs(60);

/// An engine of this process, through a tap.
struct Works {
    runtime: Runtime,
    tap: Tap,
    engine: Engine,
}

impl Works {
    fn new(node: &Node, change: impl FnOnce(&mut Ports, &mut EngineSettings)) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let tap = node.containerd.tap()?;
        let client = runtime.block_on(Client::connect(&tap.socket().to_string_lossy()))?;
        let (mut ports, mut settings) = (client.ports(), EngineSettings::default());
        change(&mut ports, &mut settings);
        let engine = Engine::new(ports, &node.namespace, settings)?;
        Ok(Self {
            runtime,
            tap,
            engine,
        })
    }

    fn unpack(&self, image: &str) -> Job {
        let _entered = self.runtime.enter();
        self.engine.unpack(Request::new(image).on(ON))
    }

    fn end(&self, jobs: impl IntoIterator<Item = Job>) -> Vec<Result<Report, UnpackError>> {
        let reports = jobs.into_iter().map(Job::report);
        self.runtime.block_on(join_all(reports))
    }

    fn report(&self, image: &str) -> Result<Report> {
        let job = self.unpack(image);
        Ok(self.runtime.block_on(job.report())?)
    }

    /// Waits for the next event of a job. The first one comes before the first call.
    fn next(&self, events: &mut BoxStream<'static, Event>) -> Result<Event> {
        let event = self.runtime.block_on(events.next());
        event.context("the job has no more events")
    }

    fn is_ready(&self, image: &str) -> Result<bool> {
        self.runtime.block_on(async {
            let plan = self.engine.plan(&Request::new(image).on(ON)).await?;
            Ok(self.engine.is_ready(&plan, ON).await?)
        })
    }
}

fn counts(tap: &Tap, method: Method, want: usize) -> Result<()> {
    let have = tap.count(method);
    ensure!(have == want as u64, "{have} of {method}, want {want}");
    Ok(())
}

fn all_ready(ends: Vec<Result<Report, UnpackError>>, layers: usize) -> Result<()> {
    for end in ends {
        let report = end?;
        ensure!(report.layers.len() == layers, "{report:?}");
    }
    Ok(())
}

/// Another name for an image.
fn tag(node: &Node, image: &Built) -> Result<String> {
    let other = "docker.io/library/other:1".to_owned();
    node.ctr(&["images", "tag", &image.reference, &other])?;
    Ok(other)
}

fn requests_of_one_process_unpack_once(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    let other = tag(node, &image)?;
    let works = Works::new(node, |_, _| {})?;
    let held = works.tap.hold(Method::APPLY, 1, Point::Before);
    let names = [&image.reference, &other].into_iter().cycle();
    let jobs: Vec<Job> = names.take(CALLERS).map(|name| works.unpack(name)).collect();
    held.wait()?;
    for job in &jobs {
        works.next(&mut job.events())?;
    }
    held.release();
    all_ready(works.end(jobs), image.layers.len())?;
    for method in [Method::PREPARE, Method::APPLY, Method::COMMIT] {
        counts(&works.tap, method, image.layers.len())?;
    }
    // One job for each name.
    counts(&works.tap, Method::LEASE_CREATE, 2)?;
    for name in [&image.reference, &other] {
        ensure!(works.is_ready(name)?, "{name} is not ready");
    }
    node.assert_nothing_left(ON)?;
    let output = node.run(ON, &other)?;
    ensure!(output == HELLO_SAYS, "it says {output:?}");
    works.tap.finish()
}

/// A process that unpacks, and what it tells.
struct UnpackStream {
    child: Child,
    tells: BufReader<ChildStdout>,
}

impl UnpackStream {
    /// Starts one of several processes through `tap`, with its locks in `dir`.
    fn start(node: &Node, tap: &Tap, dir: &str, image: &str) -> Result<Self> {
        let mut child = node
            .tapped_command(tap)?
            .args(["unpack", "--json", image, "--snapshotter", ON])
            .args(["--runtime-dir", dir])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let tells = child.stdout.take().context("it has no output")?;
        Ok(Self {
            child,
            tells: BufReader::new(tells),
        })
    }

    fn next(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.tells.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("it tells {line:?}"))
    }

    /// Reads until it makes the first layer that is made, or waits for who does.
    fn at_work(&mut self) -> Result<()> {
        loop {
            let told = self.next()?;
            if told["event"] == "waiting" || told["event"] == "applying" {
                return Ok(());
            }
        }
    }

    /// Returns the number of layers it made, after it has succeeded.
    fn end(mut self) -> Result<usize> {
        let report = loop {
            let told = self.next()?;
            if told.get("event").is_none() {
                break told;
            }
        };
        ensure!(self.child.wait()?.success(), "{report}");
        let layers = report["report"]["layers"].as_array();
        let layers = layers.context("its last words are no report")?;
        let applied = layers.iter().filter(|layer| layer["outcome"] == "applied");
        Ok(applied.count())
    }
}

/// Runs a process for each image, all at once; `layers` are to be made.
fn run_processes<'a>(
    node: &Node,
    images: impl IntoIterator<Item = &'a str>,
    layers: usize,
) -> Result<()> {
    let tap = node.containerd.tap()?;
    let dir = node.containerd.scratch().join(unique("locks"));
    let dir = dir.to_string_lossy();
    let held = tap.hold(Method::APPLY, 1, Point::Before);
    let processes = images
        .into_iter()
        .map(|image| UnpackStream::start(node, &tap, &dir, image));
    let mut processes = processes.collect::<Result<Vec<_>>>()?;
    held.wait()?;
    for process in &mut processes {
        process.at_work()?;
    }
    held.release();
    let made = processes.into_iter().map(UnpackStream::end);
    let made: usize = made.sum::<Result<_>>()?;
    ensure!(made == layers, "{made} layers made, want {layers}");
    for method in [Method::PREPARE, Method::APPLY, Method::COMMIT] {
        counts(&tap, method, layers)?;
    }
    node.assert_nothing_left(ON)?;
    let locks = std::fs::read_dir(&*dir)?.count();
    ensure!(locks == 0, "{locks} locks are left");
    tap.finish()
}

fn a_cold_plan_reads_each_document_once(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    let works = Works::new(node, |_, _| {})?;
    let request = Request::new(&image.reference).on(ON);
    works.runtime.block_on(works.engine.plan(&request))?;
    let documents = 2 + usize::from(image.index.is_some());
    counts(&works.tap, Method::CONTENT_READ, documents)?;
    // The next plan of it reads nothing.
    works.runtime.block_on(works.engine.plan(&request))?;
    counts(&works.tap, Method::CONTENT_READ, documents)
}

fn processes_unpack_once(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    let names = std::iter::repeat_n(image.reference.as_str(), CALLERS);
    run_processes(node, names, image.layers.len())?;
    assert_labels(node, ON, &image, &[])
}

fn images_that_share_layers_unpack_them_once(node: &Node) -> Result<()> {
    let (left, right) = shared_pair()?;
    let layers = 4;
    let names = [left.reference.as_str(), &right.reference];
    let elsewhere = Node {
        containerd: Arc::clone(&node.containerd),
        namespace: unique("processes"),
    };
    for node in [node, &elsewhere] {
        node.import(&left)?;
        node.import(&right)?;
    }
    let works = Works::new(node, |_, _| {})?;
    let held = works.tap.hold(Method::APPLY, 1, Point::Before);
    let jobs: Vec<Job> = names.map(|name| works.unpack(name)).into();
    held.wait()?;
    for job in &jobs {
        works.next(&mut job.events())?;
    }
    held.release();
    all_ready(works.end(jobs), 3)?;
    counts(&works.tap, Method::APPLY, layers)?;
    node.assert_nothing_left(ON)?;
    works.tap.finish()?;

    run_processes(&elsewhere, [names, names].concat(), layers)?;
    for (node, image, says) in [(node, &left, "left"), (&elsewhere, &right, "right")] {
        let output = node.run(ON, &image.reference)?;
        ensure!(output == says, "{} says {output:?}", image.reference);
    }
    Ok(())
}

fn a_job_outlives_its_callers(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    let file = |name: &str| Layer::of(&[Entry::dir("./"), Entry::file(name, name)]);
    let archive = node.containerd.scratch().join(unique("small"));
    let small = ImageBuilder::new("docker.io/library/small:1")
        .layers([file("a")?, file("b")?, file("c")?])
        .write(&archive)?;
    node.import(&small)?;
    let works = Works::new(node, |_, _| {})?;

    // One goes, the other stays.
    let held = works.tap.hold(Method::APPLY, 2, Point::Before);
    let first = works.unpack(&image.reference);
    held.wait()?;
    let second = works.unpack(&image.reference);
    works.next(&mut second.events())?;
    drop(first);
    held.release();
    all_ready(works.end([second]), 3)?;
    counts(&works.tap, Method::APPLY, 3)?;
    counts(&works.tap, Method::LEASE_CREATE, 1)?;

    // All go, before anything is done and in the midst of it.
    let held = works.tap.hold(Method::APPLY, 2, Point::Before);
    let jobs = [(); CALLERS].map(|()| works.unpack(&small.reference));
    drop(jobs);
    held.wait()?;
    let late = works.unpack(&small.reference);
    works.next(&mut late.events())?;
    drop(late);
    held.release();
    eventually("it is ready", DEADLINE, || works.is_ready(&small.reference))?;
    eventually("the job is over", DEADLINE, || {
        Ok(node.leases()?.is_empty())
    })?;
    counts(&works.tap, Method::APPLY, 6)?;
    let next = works.report(&small.reference)?;
    ensure!(next.count(LayerOutcome::Existed) == 3, "{next:?}");
    node.assert_nothing_left(ON)?;
    works.tap.finish()
}

/// Panics at one Apply.
struct Panics {
    inner: Arc<dyn Applier>,
    calls: AtomicU64,
    at: u64,
}

#[async_trait]
impl Applier for Panics {
    async fn apply(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        sync_fs: bool,
    ) -> resnap_core::Result<Applied> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        if call == self.at {
            // As a panic does, without its words on the terminal.
            std::panic::resume_unwind(Box::new("of the test"));
        }
        self.inner.apply(scope, layer, mounts, sync_fs).await
    }
}

fn a_panic_fails_a_job_once(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    let works = Works::new(node, |ports, _| {
        let inner = Arc::clone(&ports.applier);
        ports.applier = Arc::new(Panics {
            inner,
            calls: AtomicU64::new(0),
            at: 2,
        });
    })?;
    let held = works.tap.hold(Method::COMMIT, 1, Point::Before);
    let jobs = [(); 2].map(|()| works.unpack(&image.reference));
    held.wait()?;
    for job in &jobs {
        works.next(&mut job.events())?;
    }
    held.release();
    for end in works.end(jobs) {
        let error = end.err().context("it went well")?;
        ensure!(
            matches!(error, UnpackError::Broken { .. }) && error.kind() == Kind::Internal,
            "{error:?}"
        );
        let text = error.to_string();
        ensure!(text.contains(&image.reference), "{text}");
    }
    // The layer below is kept for the next one.
    assert_one_layer_kept(node)?;
    let next = works.report(&image.reference)?;
    ensure!(next.count(LayerOutcome::Applied) == 2, "{next:?}");
    node.assert_nothing_left(ON)?;
    works.tap.finish()
}

/// Checks that there is one layer under a lease and nothing else.
fn assert_one_layer_kept(node: &Node) -> Result<()> {
    node.assert_no_active_snapshot(ON)?;
    let (snapshots, leases) = (node.snapshots(ON)?, node.leases()?);
    ensure!(
        snapshots.len() == 1 && leases.len() == 1,
        "{snapshots:?} {leases:?}"
    );
    node.collect_garbage()?;
    ensure!(node.snapshots(ON)? == snapshots, "the layer is not kept");
    Ok(())
}

fn cancel_stops_a_job_for_all_callers(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    let works = Works::new(node, |_, _| {})?;
    let held = works.tap.hold(Method::APPLY, 2, Point::Before);
    let first = works.unpack(&image.reference);
    let mut events = first.events();
    held.wait()?;
    let mut told = Vec::new();
    while !told
        .last()
        .is_some_and(|event: &Event| event.layer == 2 && event.phase == Phase::Applying)
    {
        told.push(works.next(&mut events)?);
    }
    let jobs = [(); 3].map(|()| works.unpack(&image.reference));
    for job in &jobs {
        let mut events = job.events();
        // Later callers get all events from the start.
        for event in &told {
            let heard = works.next(&mut events)?;
            ensure!(heard == *event, "{heard:?} instead of {event:?}");
        }
    }
    let [second, third, gone] = jobs;
    let canceller = second.canceller();
    drop(gone);
    canceller.cancel();
    for end in works.end([first, second, third]) {
        let error = end.err().context("it went well")?;
        ensure!(
            matches!(error, UnpackError::Cancelled { .. }) && error.kind() == Kind::Cancelled,
            "{error:?}"
        );
    }
    assert_one_layer_kept(node)?;
    held.release();
    // Nor does a second time stop what comes after.
    canceller.cancel();
    let next = works.report(&image.reference)?;
    ensure!(
        next.count(LayerOutcome::Existed) == 1 && next.count(LayerOutcome::Applied) == 2,
        "{next:?}"
    );
    node.assert_nothing_left(ON)?;
    works.tap.finish()
}

/// An applier that lets Applies go on in pairs and counts how many run at once.
struct Pairs {
    inner: Arc<dyn Applier>,
    pair: Barrier,
    now: AtomicUsize,
    most: AtomicUsize,
}

#[async_trait]
impl Applier for Pairs {
    async fn apply(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        sync_fs: bool,
    ) -> resnap_core::Result<Applied> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        // One at a time would wait here for ever.
        let paired = tokio::time::timeout(DEADLINE, self.pair.wait()).await;
        let applied = self.inner.apply(scope, layer, mounts, sync_fs).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        let alone = |_| resnap_core::Error::new(Kind::Internal, "apply", "two layers at once");
        paired.map_err(alone)?;
        applied
    }
}

fn layers_at_once_are_limited(node: &Node) -> Result<()> {
    let mut names = Vec::new();
    for number in 0..6 {
        let name = format!("docker.io/library/one-layer:{number}");
        let archive = node.containerd.scratch().join(unique("one-layer"));
        let layer = Layer::of(&[Entry::dir("./"), Entry::file("name", &name)])?;
        node.import(&ImageBuilder::new(&name).layer(layer).write(&archive)?)?;
        names.push(name);
    }
    let mut pairs = None;
    let works = Works::new(node, |ports, settings| {
        settings.parallel_applies = 2;
        let applier = Arc::new(Pairs {
            inner: Arc::clone(&ports.applier),
            pair: Barrier::new(2),
            now: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        });
        pairs = Some(Arc::clone(&applier));
        ports.applier = applier;
    })?;
    let jobs: Vec<Job> = names.iter().map(|name| works.unpack(name)).collect();
    all_ready(works.end(jobs), 1)?;
    let most = pairs.map_or(0, |pairs| pairs.most.load(Ordering::SeqCst));
    // Each job that somebody waits for and that writes nothing may write one more, up to as many.
    ensure!((2..=4).contains(&most), "{most} layers at once");
    node.assert_nothing_left(ON)?;
    works.tap.finish()
}
