// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! resnap as containerd's diff plugin: containerd's own pulls unpack by it.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::cri::Cri;
use resnap_integration::dm_verity::with_dm_verity;
use resnap_integration::image::{Built, Compression, Entry, ImageBuilder, Layer, hello, web};
use resnap_integration::registry::Registry;
use resnap_integration::tree::{Field, Kind, Tree, compare};

use crate::applier::choice::{SHIFTED, changed};
use crate::command::{CommandOutput, run_to_end};
use crate::integrity::{VERITY, proven_snapshot, sidecars};
use crate::metrics::metrics;
use crate::missing::{pushed, unlike_others};
use crate::node::{Node, unique};
use crate::poll::{DEADLINE, eventually};
use crate::served::Served;
use crate::suite::live_tests;
use crate::systemd::{activated_command, confined};

live_tests! {
    DiffPlugin: diff_plugin_writes_what_is_pulled,
    DiffPlugin: diff_plugin_leaves_to_containerd_what_it_does_not_write,
    DiffPlugin: diff_plugin_that_is_killed_leaves_no_half_layer,
    DiffPlugin: diff_plugin_outlives_containerd,
    DiffPlugin: diff_plugin_shows_its_jobs_and_cancels_them,
    DiffPlugin: diff_plugin_without_an_answer_is_warned_of,
    DiffPlugin: diff_plugin_by_socket_activation_always_answers,
    ErofsDiffPlugin: diff_plugin_gives_layers_trees,
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
        let socket = node.containerd.diff_socket();
        let config = format!("diff.socket = {socket:?}\n{config}");
        Self::started(node, &config, |command, _| Ok(command))
    }

    /// Starts the daemon by what is made of its command and runtime directory.
    fn started(
        node: &Node,
        config: &str,
        wrap: impl FnOnce(Command, &Path) -> Result<Command>,
    ) -> Result<Self> {
        let dir = node.containerd.scratch().join(unique("registry"));
        let registry = Registry::start(node.containerd.dist(), &dir)?;
        // Free a moment ago; the daemon says so if it is not any more.
        let metrics = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config = format!("metrics.address = \"{metrics}\"\nsources.order = []\n{config}");
        let dir = node.containerd.socket().with_file_name(unique("d"));
        std::fs::create_dir(&dir)?;
        std::fs::write(dir.join("config.toml"), &config)?;
        let mut command = node.configured_command(&config)?;
        command.arg("--address").arg(node.containerd.socket());
        command.arg("serve");
        let served = Served::begin(&mut wrap(command, &dir)?, &dir)?;
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

    /// Pulls once the plugin answers: containerd waits for it for a second, and after a failure asks it again
    /// seconds later.
    fn pulls(&self, options: &[&str], image: &str) -> Result<()> {
        eventually("a pull", DEADLINE, || {
            let output = run_to_end(&mut self.pull(options, image))?;
            Ok(output.code == Some(0))
        })
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
    let web = web()?;
    let image = pushed(node, &setup.registry, &web, "web:1")?;
    // Full copies would take long.
    for snapshotter in node.targets().filter(|name| *name != "native") {
        let on = ["--snapshotter", snapshotter, "--local"];
        run_to_end(&mut setup.pull(&on, &image.reference))?.ok()?;
        written += image.layers.len();
        let want = setup.by_containerd(snapshotter, &web, "web")?;
        assert_equal(&want, &node.tree(snapshotter, &image.reference)?)
            .with_context(|| format!("web on {snapshotter}"))?;
        setup.remove(&image.reference)?;
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

/// The files of a layer that takes a while.
const SLOW: usize = 15_000;

/// Returns an image with a layer that takes a while.
fn slow(node: &Node, registry: &Registry) -> Result<Built> {
    let text = format!("{:?}", std::time::SystemTime::now());
    let files = (0..SLOW).map(|number| Entry::file(format!("d/{number}"), &text));
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
        setup.pulls(&pull, &image.reference)?;
        is_right(&setup, snapshotter, &image)?;
    }
    setup.served.terminate()
}

fn is_right(setup: &Setup, snapshotter: &str, image: &Built) -> Result<()> {
    let have = setup.node.tree(snapshotter, &image.reference)?;
    let files = have.nodes.keys().filter(|path| path.starts_with(b"d/"));
    ensure!(files.count() == SLOW, "not all files are there");
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
            // Of an image that is unpacked in parallel, several layers.
            Ok(setup.count("cancelled")? > before && node.staged(snapshotter)?.is_empty())
        })?;
        node.containerd.restart()?;
        let pull = ["--snapshotter", snapshotter];
        run_to_end(&mut setup.pull(&pull, &image.reference))?.ok()?;
        is_right(&setup, snapshotter, &image)?;
    }
    setup.served.stop()
}

fn diff_plugin_shows_its_jobs_and_cancels_them(node: &Node) -> Result<()> {
    let node = &node.in_new_namespace();
    let setup = Setup::new(node)?;
    let image = slow(node, &setup.registry)?;
    let resnap = |arguments: &[&str]| {
        let mut command = node.resnap_command()?;
        command.env("RESNAP_RUNTIME_DIR", &setup.served.dir);
        run_to_end(command.args(arguments))
    };
    let cancel = || {
        let jobs = resnap(&["jobs", "--json"])?.json()?;
        let job = &jobs[0];
        let layer = &image.layers[1];
        let is_right = job["origin"] == "diff"
            && job["image"] == *layer.digest
            && job["snapshotter"] == "overlayfs"
            && job["state"] == "running";
        ensure!(is_right, "{jobs:#}");
        let id = job["id"].to_string();
        resnap(&["cancel", &id])?.ok().map(drop)
    };
    let output = interrupted(&setup, "overlayfs", &image, cancel)?;
    ensure!(output.code != Some(0), "{output:?}");
    ensure!(
        output.stderr.contains("its job was cancelled"),
        "{output:?}"
    );
    node.assert_no_active_snapshot("overlayfs")?;
    ensure!(node.staged("overlayfs")?.is_empty(), "files are left");
    ensure!(setup.count("cancelled")? == 1);
    run_to_end(&mut setup.pull(&[], &image.reference))?.ok()?;
    is_right(&setup, "overlayfs", &image)?;
    setup.served.stop()
}

fn diff_plugin_without_an_answer_is_warned_of(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    let warns = || {
        let mut warned = Vec::new();
        for command in [&["config", "explain"], &["check", &*image.reference]] {
            let output = node.resnap(command)?;
            ensure!(output.code == Some(0), "{output:?}");
            warned.push(output.stderr.contains("where nothing answers"));
        }
        let doctor = node.resnap(&["doctor"])?.stdout;
        ensure!(
            doctor.contains("containerd.diff-plugin") == warned[0],
            "{doctor}"
        );
        Ok(warned)
    };
    ensure!(warns()? == [true, true], "no warning");
    // Somebody listens, and does not answer.
    let silent = UnixListener::bind(node.containerd.diff_socket())?;
    ensure!(warns()? == [true, true], "no warning of a silent one");
    drop(silent);
    let setup = Setup::new(node)?;
    ensure!(warns()? == [false, false], "a warning of one that answers");
    setup.served.stop()
}

fn diff_plugin_by_socket_activation_always_answers(node: &Node) -> Result<()> {
    let node = &node.in_new_namespace();
    let socket = UnixListener::bind(node.containerd.diff_socket())?;
    for may_write in [true, false] {
        let setup = Setup::started(node, "", |command, dir| match may_write {
            true => activated_command(&command, &socket, "diff"),
            false => activated_command(&confined(&command, dir)?, &socket, "diff"),
        })?;
        let image = pushed(node, &setup.registry, &unlike_others(node)?, "activated:1")?;
        setup.pulls(&[], &image.reference)?;
        let want = if may_write { image.layers.len() } else { 0 };
        let have = setup.count("written")?;
        ensure!(have == want, "{have} layers written, want {want}");
        setup.served.terminate()?;
    }
    // A socket of its own is not opened without the right to write.
    let dir = node.containerd.scratch().join(unique("own"));
    std::fs::create_dir(&dir)?;
    let own = dir.join("diff.sock");
    let mut command = node.configured_command(&format!("diff.socket = {own:?}\n"))?;
    command.arg("serve");
    let served = Served::begin(&mut confined(&command, &dir)?, &dir)?;
    eventually("the CRI is served", DEADLINE, || Ok(served.socket.exists()))?;
    ensure!(!own.exists(), "the socket is opened");
    served.terminate()
}

/// With `integrity = "verity"`, layers that containerd pulls have the trees that resnap's own have, and no proof
/// until they have been looked at.
fn diff_plugin_gives_layers_trees(node: &Node) -> Result<()> {
    let node = &node.in_new_namespace();
    let socket = node.containerd.diff_socket();
    let config = format!("diff.socket = {socket:?}\n{VERITY}");
    let setup = Setup::started(node, &config, |command, _| Ok(with_dm_verity(&command)))?;
    let image = pushed(node, &setup.registry, &unlike_others(node)?, "verity:1")?;
    let on = ["--snapshotter", "erofs"];
    run_to_end(&mut setup.pull(&on, &image.reference))?.ok()?;
    ensure!(setup.count("written")? == image.layers.len());
    ensure!(sidecars(node)?.len() == image.layers.len(), "no sidecars");
    let resnap = |arguments: &[&str]| {
        let mut command = node.configured_command(VERITY)?;
        command.args(arguments).args(on);
        run_to_end(&mut with_dm_verity(&command))
    };
    let ready = resnap(&["check", &image.reference])?;
    ensure!(ready.code == Some(1), "a proof from nobody: {ready:?}");
    resnap(&["unpack", "--repair", &image.reference])?.ok()?;
    resnap(&["check", &image.reference])?.ok()?;
    for layer in &image.layers {
        proven_snapshot(node, &layer.chain_id)?;
    }
    setup.served.stop()
}
