// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! resnap as containerd's diff plugin: containerd's own pulls unpack by it.

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::cri::Cri;
use resnap_integration::image::{Built, Compression, Entry, ImageBuilder, Layer, hello};
use resnap_integration::registry::Registry;
use resnap_integration::tree::{Field, Kind, Tree, compare};

use crate::applier::choice::{SHIFTED, changed};
use crate::command::{CommandOutput, run_to_end};
use crate::metrics::metrics;
use crate::missing::{pushed, unlike_others};
use crate::node::{Node, unique};
use crate::poll::{DEADLINE, eventually};
use crate::served::Served;
use crate::suite::live_tests;

live_tests! {
    DiffPlugin: diff_plugin_writes_what_is_pulled,
    DiffPlugin: diff_plugin_leaves_to_containerd_what_it_does_not_write,
    DiffPlugin: diff_plugin_that_is_killed_leaves_no_half_layer,
    DiffPlugin: diff_plugin_outlives_containerd,
}

/// A daemon that is the diff plugin of a node, and a registry.
struct Setup {
    /// With a namespace in which the CRI keeps no image.
    node: Node,
    registry: Registry,
    served: Served,
    metrics: SocketAddr,
}

impl Setup {
    fn new(node: &Node) -> Result<Self> {
        Self::configured(node, "")
    }

    fn configured(node: &Node, config: &str) -> Result<Self> {
        let dir = node.containerd.scratch().join(unique("registry"));
        let registry = Registry::start(node.containerd.dist(), &dir)?;
        // Free a moment ago; the daemon says so if it is not any more.
        let metrics = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let socket = node.containerd.diff_socket();
        let config = format!(
            "diff.socket = {socket:?}\nmetrics.address = \"{metrics}\"\nsources.order = []\n{config}"
        );
        let served = Served::configured(node, node.containerd.socket(), &config)?;
        let this = Self {
            node: Node {
                containerd: Arc::clone(&node.containerd),
                namespace: node.namespace.clone(),
            },
            registry,
            served,
            metrics,
        };
        this.is_served()?;
        Ok(this)
    }

    fn is_served(&self) -> Result<()> {
        let socket = self.node.containerd.diff_socket();
        eventually("the diff plugin answers", DEADLINE, || {
            Ok(std::os::unix::net::UnixStream::connect(&socket).is_ok())
        })
    }

    /// Returns the number of layers with this outcome.
    fn count(&self, outcome: &str) -> Result<usize> {
        let (_, samples) = metrics(self.metrics)?;
        let name = format!("resnap_diff_layers_total{{outcome=\"{outcome}\"}}");
        let count = samples.get(&name).context(name)?;
        // A counter.
        Ok(*count as usize)
    }

    fn pull(&self, options: &[&str], image: &str) -> Command {
        let mut command = self.node.containerd.ctr(&self.node.namespace);
        command.args(["images", "pull", "--plain-http"]);
        command.args(options).arg(image);
        command
    }

    /// Removes an image with its layers.
    fn remove(&self, image: &str) -> Result<()> {
        self.node.ctr(&["images", "rm", "--sync", image]).map(drop)
    }

    /// Returns the tree that containerd's differs make of an image, asked for by resnap.
    fn by_containerd(&self, snapshotter: &str, image: &Built, name: &str) -> Result<Tree> {
        let other = self.node.in_new_namespace();
        other.import(image)?;
        let written = self.count("written")?;
        other.unpack_with_differ("containerd", snapshotter, &image.reference)?;
        ensure!(self.count("written")? == written, "resnap wrote {name}");
        let tree = other.tree(snapshotter, &image.reference)?;
        other.ctr(&["images", "rm", "--sync", &image.reference])?;
        Ok(tree)
    }
}

/// Returns the options of the ways in which `ctr` pulls by the plugin.
fn ways(node: &Node) -> &'static [&'static [&'static str]] {
    match node.containerd.version() >= (2, 0, 0) {
        true => &[&[], &["--local"]],
        false => &[&[]],
    }
}

fn assert_equal(left: &Tree, right: &Tree) -> Result<()> {
    let mut differences = compare(left, right);
    // Of a directory that no layer states, and of those in which the runtime makes mount points.
    differences.retain(|difference| {
        let node = left.nodes.get(&difference.path);
        let is_directory = node.is_some_and(|node| node.kind == Kind::Directory);
        !is_directory || difference.field != Field::Mtime
    });
    let all: Vec<_> = differences.iter().map(ToString::to_string).collect();
    ensure!(all.is_empty(), "{}", all.join("\n"));
    Ok(())
}

fn diff_plugin_writes_what_is_pulled(node: &Node) -> Result<()> {
    let node = &node.in_new_namespace();
    let setup = Setup::new(node)?;
    let hello = hello()?;
    let image = pushed(node, &setup.registry, &hello, "hello:1")?;
    let layers = image.layers.len();
    let mut written = 0;
    for snapshotter in node.targets() {
        let want = setup.by_containerd(snapshotter, &hello, snapshotter)?;
        for way in ways(node) {
            let on = [&["--snapshotter", snapshotter], *way].concat();
            run_to_end(&mut setup.pull(&on, &image.reference))?.ok()?;
            written += layers;
            let have = setup.count("written")?;
            ensure!(have == written, "{have} layers by {on:?}, want {written}");
            assert_equal(&want, &node.tree(snapshotter, &image.reference)?)
                .with_context(|| format!("{on:?}"))?;
            ensure!(node.staged(snapshotter)?.is_empty(), "{on:?} left files");
            setup.remove(&image.reference)?;
        }
    }
    let image = pushed(node, &setup.registry, &unlike_others(node)?, "cri:1")?;
    let cri = Cri::connect(node.containerd.socket(), &node.containerd.scratch())?;
    cri.pull_image(&image.reference, None, None)?;
    let have = setup.count("written")?;
    ensure!(
        have == written + image.layers.len(),
        "{have} after {written}"
    );
    for outcome in ["failed", "cancelled"] {
        ensure!(setup.count(outcome)? == 0, "{outcome}");
    }
    setup.served.stop()
}

fn diff_plugin_leaves_to_containerd_what_it_does_not_write(node: &Node) -> Result<()> {
    let node = &node.in_new_namespace();
    let setup = Setup::configured(node, "snapshotters.native.differ = \"containerd\"\n")?;
    let hello = hello()?;
    let shifted = changed(node, &hello, SHIFTED, |blob| {
        blob.into_iter().map(|byte| byte.wrapping_add(1)).collect()
    })?;
    let shifted_there = setup.registry.reference("shifted:1");
    node.ctr(&["images", "tag", &shifted, &shifted_there])?;
    node.ctr(&["images", "push", "--plain-http", &shifted_there])?;
    for name in [&shifted, &shifted_there] {
        setup.remove(name)?;
    }
    let plain = pushed(node, &setup.registry, &hello, "hello:1")?;
    for way in ways(node) {
        for (image, snapshotter, left) in [
            (&shifted_there, "overlayfs", 1),
            (&plain.reference, "native", 3),
        ] {
            let before = (setup.count("written")?, setup.count("left")?);
            let on = [&["--snapshotter", snapshotter], *way].concat();
            run_to_end(&mut setup.pull(&on, image))?.ok()?;
            let after = (setup.count("written")?, setup.count("left")?);
            let want = (before.0 + hello.layers.len() - left, before.1 + left);
            ensure!(after == want, "{image} {on:?}: {after:?}, want {want:?}");
            node.tree(snapshotter, image)?;
            setup.remove(image)?;
        }
    }
    setup.served.stop()
}

/// Returns an image with a layer that takes a while.
fn slow(node: &Node, registry: &Registry) -> Result<Built> {
    let text = format!("{:?}", std::time::SystemTime::now());
    let files = (0..30_000).map(|number| Entry::file(format!("d/{number}"), &text));
    let entries: Vec<_> = [Entry::dir("./"), Entry::dir("d")]
        .into_iter()
        .chain(files)
        .collect();
    let base = hello()?;
    let mut programs = Vec::new();
    std::io::Read::read_to_end(
        &mut flate2::read::GzDecoder::new(&*base.blob(&base.layers[0].digest)?),
        &mut programs,
    )?;
    let image = ImageBuilder::new("docker.io/library/slow:1")
        .layer(Layer::new(&programs, Compression::Gzip)?)
        .layer(Layer::of(&entries)?)
        .write(&node.containerd.scratch().join(unique("slow")))?;
    pushed(node, registry, &image, "slow:1")
}

/// Starts a pull, calls `interrupt` while its second layer is being written, and returns the pull's end.
fn interrupted(
    setup: &Setup,
    snapshotter: &str,
    image: &Built,
    interrupt: impl FnOnce() -> Result<()>,
) -> Result<CommandOutput> {
    let mut pull = setup.pull(&["--snapshotter", snapshotter], &image.reference);
    let caller = thread::spawn(move || run_to_end(&mut pull));
    let is_writing = || {
        let snapshots = setup.node.snapshotter_root(snapshotter).join("snapshots");
        let mut places: Vec<_> = setup.node.staged(snapshotter)?;
        for snapshot in snapshots.read_dir()? {
            places.push(snapshot?.path());
        }
        let begun = |place: &std::path::PathBuf| {
            let below = ["0/d", "d"].map(|name| place.join(name));
            let entries = below.iter().filter_map(|path| path.read_dir().ok());
            entries.map(Iterator::count).any(|count| count > 100)
        };
        Ok(places.iter().any(begun))
    };
    let began = eventually("the layer is being written", DEADLINE, is_writing);
    interrupt()?;
    let output = caller.join().ok().context("the test panicked")??;
    began?;
    Ok(output)
}

fn diff_plugin_that_is_killed_leaves_no_half_layer(node: &Node) -> Result<()> {
    let node = &node.in_new_namespace();
    let mut setup = Setup::new(node)?;
    let image = slow(node, &setup.registry)?;
    for snapshotter in ["overlayfs", "native"] {
        let pid = i32::try_from(setup.served.process.id())?;
        let kill = || {
            let pid = rustix::process::Pid::from_raw(pid).context("no process")?;
            Ok(rustix::process::kill_process(
                pid,
                rustix::process::Signal::KILL,
            )?)
        };
        let output = interrupted(&setup, snapshotter, &image, kill)?;
        ensure!(output.code != Some(0), "{snapshotter}: {output:?}");
        // Without the plugin nothing can be pulled.
        let pull = ["--snapshotter", snapshotter];
        let output = run_to_end(&mut setup.pull(&pull, &image.reference))?;
        ensure!(output.code != Some(0), "{snapshotter}: {output:?}");
        node.assert_no_active_snapshot(snapshotter)?;
        setup.served.kill()?;
        setup.served = setup.served.again(node, node.containerd.socket())?;
        setup.is_served()?;
        eventually("a pull after the restart", DEADLINE, || {
            let output = run_to_end(&mut setup.pull(&pull, &image.reference))?;
            Ok(output.code == Some(0))
        })?;
        is_right(&setup, snapshotter, &image)?;
    }
    setup.served.terminate()
}

fn is_right(setup: &Setup, snapshotter: &str, image: &Built) -> Result<()> {
    let have = setup.node.tree(snapshotter, &image.reference)?;
    let files = have.nodes.keys().filter(|path| path.starts_with(b"d/"));
    ensure!(files.count() == 30_000, "not all files are there");
    eventually("no staged layer is left", DEADLINE, || {
        Ok(setup.node.staged(snapshotter)?.is_empty())
    })?;
    setup.remove(&image.reference)
}

fn diff_plugin_outlives_containerd(node: &Node) -> Result<()> {
    let node = &node.in_new_namespace();
    let setup = Setup::new(node)?;
    let image = slow(node, &setup.registry)?;
    for snapshotter in ["overlayfs", "native"] {
        let before = setup.count("cancelled")?;
        let kill = || node.containerd.kill();
        let output = interrupted(&setup, snapshotter, &image, kill)?;
        ensure!(output.code != Some(0), "{snapshotter}: {output:?}");
        eventually("the work ends", DEADLINE, || {
            Ok(setup.count("cancelled")? == before + 1 && node.staged(snapshotter)?.is_empty())
        })?;
        node.containerd.restart()?;
        let pull = ["--snapshotter", snapshotter];
        run_to_end(&mut setup.pull(&pull, &image.reference))?.ok()?;
        is_right(&setup, snapshotter, &image)?;
    }
    setup.served.stop()
}
