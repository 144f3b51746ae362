// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The effect of one tenant's hostile images on the others on a node.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use resnap_integration::cri::Cri;
use resnap_integration::image::hostile::{attributes, long_ways, nested_config};
use resnap_integration::image::{Built, Entry, HELLO_SAYS, ImageBuilder, Layer, hello};
use resnap_integration::tap::{Method, Point};

use crate::api::{Running, Through};
use crate::node::{Node, unique};
use crate::poll::{DEADLINE, eventually};
use crate::proxy::pulled;
use crate::suite::live_tests;

live_tests! {
    ErofsHandler: pods_start_beside_large_requests_that_wait,
    OneAlone: a_layer_of_long_symlink_chains_is_cancelled_at_once,
    OneAlone: images_of_long_symlink_chains_do_not_block_others,
    OneAlone: images_of_large_configs_do_not_block_others,
    ErofsAlone: layers_built_ahead_share_one_memory_budget,
}

const ON: &str = "overlayfs";

/// Nearly 4 MiB together, of which the last leaves no room for another request.
const REQUESTS: [usize; 5] = [1_040_000, 1_040_000, 1_040_000, 1_040_000, 32_000];

/// Headers of a layer of long ways, for minutes of work.
const WAYS: usize = 12_800;

/// The most that a request may take that does not wait for hostile layers.
const PROMPT: Duration = Duration::from_secs(20);

/// The limit for the end of a cancelled job, and the number of tries: it may end at once by chance.
const CANCELLED: Duration = Duration::from_secs(3);
const TRIES: usize = 3;

/// The memory budget of all staged layers, and the rest of the daemon.
const MEMORY_KIB: u64 = (256 + 100) << 10;

/// The time after which memory that has not grown counts as settled.
const SETTLED: Duration = Duration::from_secs(3);

fn import(node: &Node, name: &str, layers: Vec<Layer>) -> Result<Built> {
    let archive = node.containerd.scratch().join(unique("hostile"));
    let image = ImageBuilder::new(&format!("docker.io/library/{name}:1"))
        .layers(layers)
        .write(&archive)?;
    node.import(&image)?;
    Ok(image)
}

fn small() -> Result<Layer> {
    Layer::of(&[Entry::dir("./"), Entry::file("motd", "hello\n")])
}

fn unpack(through: &Through<'_>, image: &Built, on: &str) -> Result<Running> {
    let arguments = ["unpack", "--json", &image.reference, "--snapshotter", on];
    Running::start(&mut through.command(&arguments)?)
}

fn pods_start_beside_large_requests_that_wait(node: &Node) -> Result<()> {
    pulled(node)?;
    let image = hello()?;
    let through = Through::start(node)?;
    let connect = || Cri::connect(&through.served.socket, &node.containerd.scratch());
    let cri = connect()?;
    let hostile = cri.run_pod_sandbox("erofs", "hostile")?;
    let held = through.tap.hold(Method::APPLY, 1, Point::Before);
    std::thread::scope(|scope| {
        let clients = REQUESTS.map(|bytes| {
            let (hostile, image) = (&hostile, &image.reference);
            scope.spawn(move || {
                let word = "x".repeat(bytes);
                connect()?.create_container(hostile, &unique("large"), image, &[&word])
            })
        });
        let ordinary = held
            .wait()
            .and_then(|_| through.job("all wait", |job| job["waiters"] == REQUESTS.len()))
            .and_then(|_| {
                let sandbox = cri.run_pod_sandbox("", "ordinary")?;
                // As many bytes as an ordinary one has.
                let command = ["/bin/sh", "-c", "cat /etc/message", &"x".repeat(8 << 10)];
                cri.run(&sandbox, "c", &image.reference, &command)
            });
        held.release();
        for client in clients {
            let created = client.join().map_err(|_| anyhow!("a client panicked"))?;
            created.context("one that waits")?;
        }
        let exit = ordinary.context("the ordinary pod")?;
        ensure!(exit.output.trim() == HELLO_SAYS, "{exit:?}");
        Ok(())
    })?;
    cri.remove_all()?;
    drop(cri);
    through.end()?;
    node.assert_nothing_left("erofs")
}

/// Returns whether there is a file of this name in the directory or below.
fn holds(dir: &Path, name: &str) -> Result<bool> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() == name || (entry.file_type()?.is_dir() && holds(&entry.path(), name)?)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn a_layer_of_long_symlink_chains_is_cancelled_at_once(node: &Node) -> Result<()> {
    let image = import(node, "ways", vec![long_ways("L", WAYS)?])?;
    let through = Through::start_by("resnap", node)?;
    for _ in 0..TRIES {
        let caller = unpack(&through, &image, ON)?;
        eventually("its ways are gone", DEADLINE, || {
            // Staged files may be removed during the listing.
            Ok(holds(&node.snapshotter_root(ON), "L253").unwrap_or(false))
        })?;
        let job = through.job("it runs", |job| job["state"] == "running")?;
        let asked = Instant::now();
        through.resnap(&["cancel", &job["id"].to_string()])?.ok()?;
        let error = caller.end()?.error()?;
        let taken = asked.elapsed();
        ensure!(error["kind"] == "Cancelled", "{error}");
        ensure!(taken < CANCELLED, "it took {taken:?}");
        ensure!(through.jobs()?.is_empty(), "it goes on");
    }
    through.end()?;
    node.assert_no_active_snapshot(ON)
}

fn images_of_long_symlink_chains_do_not_block_others(node: &Node) -> Result<()> {
    let ways = |image: &str| -> Result<Built> {
        let layers = (0..4).map(|layer| long_ways(&format!("{image}-{layer}-"), WAYS));
        import(node, image, layers.collect::<Result<_>>()?)
    };
    let hostile = [ways("a")?, ways("b")?];
    let image = import(node, "small", vec![small()?])?;
    let through = Through::start_by("resnap", node)?;
    let callers = hostile.each_ref().map(|image| unpack(&through, image, ON));
    eventually("both run", DEADLINE, || Ok(through.jobs()?.len() == 2))?;
    for caller in callers {
        caller?.kill()?;
    }
    let caller = unpack(&through, &image, ON)?;
    let ready = eventually("the other image is ready", PROMPT, || {
        Ok(node.snapshots(ON)?.contains_key(image.chain_id()))
    });
    if let Err(error) = ready {
        let jobs = through.jobs()?;
        caller.kill()?;
        return Err(error.context(format!("the jobs are {jobs:#?}")));
    }
    caller.report()?;
    // All their objects are removed.
    for job in through.jobs()? {
        through.resnap(&["cancel", &job["id"].to_string()])?;
    }
    eventually("they have ended", DEADLINE, || {
        Ok(through.jobs()?.is_empty())
    })?;
    through.end()?;
    node.assert_no_active_snapshot(ON)
}

/// The number of configs that would fill the window of a connection to containerd if all were read at once.
const CONFIGS: usize = 12;

fn images_of_large_configs_do_not_block_others(node: &Node) -> Result<()> {
    let mut hostile = Vec::new();
    for number in 0..CONFIGS {
        let name = format!("docker.io/library/config-{number}:1");
        let archive = node
            .containerd
            .scratch()
            .join(format!("config-{number}.tar"));
        let image = nested_config(&name, &archive)?;
        node.import(&image)?;
        fs::remove_file(archive)?;
        hostile.push(image);
    }
    let image = import(node, "small", vec![small()?])?;
    let through = Through::start_by("resnap", node)?;
    let callers: Vec<_> = hostile
        .iter()
        .map(|image| unpack(&through, image, ON))
        .collect();
    unpack(&through, &image, ON)?.report()?;
    // None waits for ever.
    for caller in callers {
        caller?.end()?.error()?;
    }
    through.end()?;
    node.assert_no_active_snapshot(ON)
}

fn layers_built_ahead_share_one_memory_budget(node: &Node) -> Result<()> {
    // Attributes that are set, and those that never are.
    if node.containerd.has_erofs() {
        bounded(node, "erofs", attributes("user.x", 60_000, 1118)?)?;
    }
    bounded(node, ON, attributes("trusted.x", 262_000, 256)?)
}

/// Checks that an image of many such layers becomes ready within the memory budget.
fn bounded(node: &Node, on: &str, layer: Layer) -> Result<()> {
    let mut layers = vec![layer; 8];
    layers.insert(0, small()?);
    let image = import(node, &format!("attributes-{on}"), layers)?;
    let through = Through::start_by("resnap", node)?;
    let peak = || peak_kib(through.served.process.id());
    // Until its turn comes, the rest is built ahead.
    let held = through.tap.hold(Method::COMMIT, 1, Point::Before);
    let caller = unpack(&through, &image, on)?;
    held.wait()?;
    let (mut last, mut grown) = (peak()?, Instant::now());
    while grown.elapsed() < SETTLED {
        std::thread::sleep(Duration::from_millis(100));
        let now = peak()?;
        if now > last {
            (last, grown) = (now, Instant::now());
        }
    }
    held.release();
    caller.report()?;
    let peak = peak()?;
    ensure!(peak < MEMORY_KIB, "on {on} it took {peak} KiB");
    through.end()?;
    node.assert_nothing_left(on)
}

/// Returns the most memory that a process has had.
fn peak_kib(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let figure = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(figure.context("no VmHWM in the status")?.parse()?)
}
