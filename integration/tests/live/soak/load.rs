// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The load on the daemon.

use std::collections::BTreeMap;
use std::env;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use fastrand::Rng;
use resnap_integration::cri::{Cri, Sandbox};
use resnap_integration::debian::target_dir;
use resnap_integration::image::{Built, beside_hello, hello, many, pause, shared_pair};
use resnap_integration::registry::Registry;

use super::plot;
use super::sample::{Sample, is_flat};
use crate::command::run_to_end;
use crate::missing::pushed;
use crate::node::{Node, unique};
use crate::poll::{DEADLINE, eventually};
use crate::served::Served;
use crate::suite::live_tests;

live_tests! {
    ErofsHandler: soak_stays_flat,
}

const HANDLERS: [&str; 2] = ["", "erofs"];

/// The pods that exist at a time.
const PODS: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Action {
    /// An image is pulled, and a pod of it runs to its end.
    Run,
    /// A pod is removed.
    RemovePod,
    /// An image is removed, with all that was made of it.
    RemoveImage,
    /// A command is killed, whose work the daemon does.
    KillCommand,
    /// A client leaves before it is answered.
    Leave,
    /// containerd is killed while it has a request, and starts again.
    KillContainerd,
}

/// Each as often as it should come.
const ACTIONS: [Action; 16] = [
    Action::Run,
    Action::Run,
    Action::Run,
    Action::Run,
    Action::Run,
    Action::RemovePod,
    Action::RemovePod,
    Action::RemovePod,
    Action::RemovePod,
    Action::RemoveImage,
    Action::RemoveImage,
    Action::KillCommand,
    Action::KillCommand,
    Action::Leave,
    Action::Leave,
    Action::KillContainerd,
];

struct Setup<'a> {
    node: &'a Node,
    images: Vec<Built>,
    served: Served,
    cri: Cri,
    pods: Vec<Sandbox>,
    random: Rng,
    _registry: Registry,
}

impl<'a> Setup<'a> {
    fn new(node: &'a Node, seed: u64) -> Result<Self> {
        let scratch = node.containerd.scratch();
        let registry = Registry::start(node.containerd.dist(), &scratch.join(unique("registry")))?;
        let (left, right) = shared_pair()?;
        let all = [hello()?, beside_hello()?, many(3)?, many(9)?, left, right];
        let mut images = Vec::new();
        for (number, image) in all.iter().enumerate() {
            images.push(pushed(node, &registry, image, &format!("image:{number}"))?);
        }
        node.import(&pause()?)?;
        let served = Served::start(node)?;
        Ok(Self {
            cri: Cri::connect(&served.socket, &scratch)?,
            node,
            images,
            served,
            pods: Vec::new(),
            random: Rng::with_seed(seed),
            _registry: registry,
        })
    }

    fn image(&mut self) -> String {
        let image = self.random.usize(..self.images.len());
        self.images[image].reference.clone()
    }

    fn act(&mut self, action: Action) -> Result<()> {
        let image = self.image();
        match action {
            Action::Run => self.run(&image),
            Action::RemovePod => self.remove_pod(),
            Action::RemoveImage => {
                // It may be absent.
                let _ = self.node.ctr(&["images", "rm", "--sync", &image]);
                Ok(())
            }
            Action::KillCommand => self.kill_command(&image),
            Action::Leave => self.leave(&image),
            Action::KillContainerd => self.kill_containerd(&image),
        }
    }

    fn run(&mut self, image: &str) -> Result<()> {
        while self.pods.len() >= PODS {
            self.remove_pod()?;
        }
        let handler = HANDLERS[self.random.usize(..HANDLERS.len())];
        self.cri.pull_image(image, None, None)?;
        let sandbox = self.cri.run_pod_sandbox(handler, &unique("pod"))?;
        self.pods.push(sandbox.clone());
        let exit = self.cri.run(&sandbox, "container", image, &[])?;
        ensure!(exit.code == 0, "{image} on {handler:?}: {exit:?}");
        Ok(())
    }

    fn remove_pod(&mut self) -> Result<()> {
        if self.pods.is_empty() {
            return Ok(());
        }
        let pod = self.random.usize(..self.pods.len());
        self.cri.remove_pod_sandbox(&self.pods.swap_remove(pod))
    }

    fn kill_command(&mut self, image: &str) -> Result<()> {
        self.cri.pull_image(image, None, None)?;
        let mut command = self.node.resnap_command()?;
        command.env("RESNAP_RUNTIME_DIR", &self.served.dir);
        command.args(["unpack", "--json", "--snapshotter", "native", image]);
        command.stdout(std::process::Stdio::null());
        let mut child = command.spawn()?;
        thread::sleep(Duration::from_millis(self.random.u64(..150)));
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    fn leave(&mut self, image: &str) -> Result<()> {
        self.cri.pull_image(image, None, None)?;
        let limit = Duration::from_millis(self.random.u64(1..300));
        let hurried = Cri::connect(&self.served.socket, &self.node.containerd.scratch())?;
        let hurried = hurried.with_timeout(limit);
        let sandbox = hurried.run_pod_sandbox("erofs", &unique("pod"));
        if let Ok(sandbox) = sandbox {
            // It leaves here, or is fast enough.
            let _ = hurried.create_container(&sandbox, "container", image, &[]);
        }
        Ok(())
    }

    fn kill_containerd(&mut self, image: &str) -> Result<()> {
        self.cri.pull_image(image, None, None)?;
        let (socket, scratch) = (self.served.socket.clone(), self.node.containerd.scratch());
        let image = image.to_owned();
        let pod = thread::spawn(move || {
            let cri = Cri::connect(&socket, &scratch)?;
            let sandbox = cri.run_pod_sandbox("erofs", &unique("pod"))?;
            cri.create_container(&sandbox, "container", &image, &[])
        });
        thread::sleep(Duration::from_millis(self.random.u64(..400)));
        self.node.containerd.kill()?;
        self.node.containerd.restart()?;
        // Whatever became of it.
        let _ = pod.join().map_err(|_| anyhow!("a client panicked"))?;
        eventually("the CRI answers again", DEADLINE, || {
            Ok(self.cri.status().is_ok())
        })?;
        // Those that nobody knows, too.
        self.pods.clear();
        self.cri.remove_all()
    }
}

fn setting(name: &str, default: u64) -> Result<u64> {
    match env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text:?}")),
        Err(_) => Ok(default),
    }
}

/// Returns whether an active snapshot is one that resnap writes a layer to. containerd's are the names of containers,
/// or `extract-` and a time.
fn is_of_resnap(key: &str) -> bool {
    let name = key.split_once(' ').map_or(key, |(name, _)| name);
    let number = name.strip_prefix("extract-");
    number.is_some_and(|number| {
        number.len() == 32 && number.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

fn soak_stays_flat(node: &Node) -> Result<()> {
    let time = Duration::from_secs(setting("RESNAP_SOAK_TIME", 10)?);
    let seed = setting("RESNAP_SOAK_SEED", 1)?;
    let mut setup = Setup::new(node, seed)?;
    let begin = Instant::now();
    let process = setup.served.process.id();
    let mut samples = Vec::new();
    let mut counts = BTreeMap::new();
    while begin.elapsed() < time {
        let action = ACTIONS[setup.random.usize(..ACTIONS.len())];
        setup
            .act(action)
            .with_context(|| format!("{action:?}, seed {seed}"))?;
        *counts.entry(action).or_insert(0) += 1;
        samples.push(Sample::of(process, begin.elapsed())?);
    }
    setup.pods.clear();
    setup.cri.remove_all()?;
    let page = target_dir().join("soak.html");
    let about = format!("{}, seed {seed}: {counts:?}", node.containerd.name());
    plot::write(&page, &about, &samples)?;
    println!("{about}; see {}", page.display());
    is_flat(&samples)?;
    // A containerd that was killed leaves leases and snapshots of its own.
    let own = || -> Result<Vec<String>> {
        let mut leases = node.leases()?;
        leases.retain(|lease| lease.starts_with("resnap-"));
        Ok(leases)
    };
    let gone = eventually("no lease is left", DEADLINE, || Ok(own()?.is_empty()));
    gone.with_context(|| format!("{:?}", own()))?;
    for snapshotter in node.targets() {
        let mut left = node.snapshots(snapshotter)?;
        left.retain(|key, _| is_of_resnap(key));
        ensure!(left.is_empty(), "{left:#?} are left");
        let staged = node.staged(snapshotter)?;
        ensure!(staged.is_empty(), "{staged:?} is left");
    }
    let leases = run_to_end(node.resnap_command()?.args(["leases", "--json"]))?.ok()?;
    ensure!(leases.trim() == "[]", "{leases}");
    let Setup { served, cri, .. } = setup;
    drop(cri);
    served.stop()
}
