// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers that are fetched from a registry with faults.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use resnap_integration::image::{Built, Entry, ImageBuilder, Layer, noise};
use resnap_integration::registry::{Fault, FaultyHost, Registry};

use crate::missing::{
    NO_SIBLING, assert_outcome, discard, pushed, try_unpack, unlike_others, unpack,
};
use crate::node::{Node, unique};
use crate::suite::live_tests;

live_tests! {
    One: faults_of_registries_end_well_or_as_errors,
    One: a_registry_that_stalls_is_an_error,
    Containerd: a_redirect_of_a_registry_is_followed,
    Containerd: a_registry_with_tls_and_a_mirror_is_asked_by_hosts_toml,
    Containerd: a_pull_and_an_unpack_fetch_each_blob_once,
}

/// A registry, and a host before it that injects faults.
struct Faulty {
    registry: Registry,
    host: FaultyHost,
}

impl Faulty {
    fn start(node: &Node, choose: impl Fn(usize) -> Fault + Send + Sync + 'static) -> Result<Self> {
        let dir = node.containerd.scratch().join(unique("registry"));
        let registry = Registry::start(node.containerd.dist(), &dir)?;
        let host = FaultyHost::start(registry.address(), choose)?;
        Ok(Self { registry, host })
    }

    /// Returns an image of the host, whose layers are missing on the node.
    fn image(&self, node: &Node, own: &Built) -> Result<Built> {
        let mut image = pushed(node, &self.registry, own, "faulty:1")?;
        image.reference = format!("{}/faulty:1", self.host.host());
        missing(node, own, &image)?;
        Ok(image)
    }
}

/// Imports an image by another name, without the blobs of its layers.
fn missing(node: &Node, own: &Built, image: &Built) -> Result<()> {
    node.import(own)?;
    node.ctr(&["images", "tag", &own.reference, &image.reference])?;
    node.ctr(&["images", "rm", "--sync", &own.reference])?;
    discard(node, image)
}

const NATIVE: [&str; 2] = ["--snapshotter", "native"];

fn assert_nothing_left(node: &Node) -> Result<()> {
    node.assert_nothing_left("native")?;
    node.collect_garbage()?;
    let ingests = node.ctr(&["content", "active"])?;
    ensure!(!ingests.contains("layer-"), "ingests are left: {ingests}");
    Ok(())
}

fn faults_of_registries_end_well_or_as_errors(node: &Node) -> Result<()> {
    let always = |fault: Fault| move |_: usize| fault.clone();
    let once = |fault: Fault| {
        move |number: usize| match number {
            0 => fault.clone(),
            _ => Fault::None,
        }
    };
    type Choose = Box<dyn Fn(usize) -> Fault + Send + Sync>;
    let cases: Vec<(&str, Choose, Option<&str>)> = vec![
        ("a cut", Box::new(once(Fault::Truncate(20))), None),
        (
            "a cut each time",
            Box::new(always(Fault::Truncate(0))),
            Some("the body broke"),
        ),
        ("wrong bytes once", Box::new(once(Fault::Corrupt)), None),
        (
            "wrong bytes",
            Box::new(always(Fault::Corrupt)),
            Some("sha256:"),
        ),
        (
            "refused",
            Box::new(always(Fault::Status(401, ""))),
            Some("401"),
        ),
        (
            "forbidden",
            Box::new(always(Fault::Status(403, ""))),
            Some("403"),
        ),
        (
            "gone",
            Box::new(always(Fault::Status(404, ""))),
            Some("404"),
        ),
        (
            "busy",
            Box::new(once(Fault::Status(429, "retry-after: 1\r\n"))),
            None,
        ),
        ("broken once", Box::new(once(Fault::Status(503, ""))), None),
        (
            "broken",
            Box::new(always(Fault::Status(500, ""))),
            Some("500"),
        ),
    ];
    for (name, choose, reason) in cases {
        let faulty = Faulty::start(node, choose)?;
        let image = faulty.image(node, &unlike_others(node)?)?;
        let output = try_unpack(node, NO_SIBLING, &image, &NATIVE);
        let checked = match reason {
            None => output.and_then(|output| output.ok()).map(drop),
            Some(reason) => output.and_then(|output| {
                let text = output.error()?.to_string();
                for part in [&*image.reference, "registry: ", reason] {
                    ensure!(text.contains(part), "{part:?} is not in {text}");
                }
                Ok(())
            }),
        };
        checked.with_context(|| name.to_owned())?;
        assert_nothing_left(node).with_context(|| name.to_owned())?;
    }
    let dir = node.containerd.scratch().join(unique("registry"));
    let registry = Registry::start(node.containerd.dist(), &dir)?;
    let own = unlike_others(node)?;
    let image = pushed(node, &registry, &own, "down:1")?;
    missing(node, &own, &image)?;
    drop(registry);
    let text = try_unpack(node, NO_SIBLING, &image, &NATIVE)?
        .error()?
        .to_string();
    ensure!(
        text.contains("registry: ") && text.contains("localhost:"),
        "{text}"
    );
    assert_nothing_left(node)
}

fn a_registry_that_stalls_is_an_error(node: &Node) -> Result<()> {
    let faulty = Faulty::start(node, |_| Fault::Stall(10))?;
    let image = faulty.image(node, &unlike_others(node)?)?;
    let text = try_unpack(node, NO_SIBLING, &image, &NATIVE)?
        .error()?
        .to_string();
    ensure!(
        text.contains("registry: ") && text.contains("for 30 s"),
        "{text}"
    );
    assert_nothing_left(node)
}

fn a_redirect_of_a_registry_is_followed(node: &Node) -> Result<()> {
    let dir = node.containerd.scratch().join(unique("registry"));
    let registry = Registry::start(node.containerd.dist(), &dir)?;
    let storage = FaultyHost::start(registry.address(), |_| Fault::None)?;
    let to = storage.address();
    let host = FaultyHost::start(registry.address(), move |_| Fault::Redirect(to))?;
    let faulty = Faulty { registry, host };
    let image = faulty.image(node, &unlike_others(node)?)?;
    assert_outcome(&unpack(node, NO_SIBLING, &image, &NATIVE)?, "applied")?;
    ensure!(storage.requests().len() == image.layers.len());
    assert_nothing_left(node)
}

fn a_registry_with_tls_and_a_mirror_is_asked_by_hosts_toml(node: &Node) -> Result<()> {
    let scratch = node.containerd.scratch();
    let (dist, dir) = (node.containerd.dist(), scratch.join(unique("registry")));
    let registry = Registry::start(dist, &dir)?;
    let own = unlike_others(node)?;
    pushed(node, &registry, &own, "team/web:1")?;
    // The same files, behind TLS.
    let secure = scratch.join(unique("secure"));
    fs::create_dir(&secure)?;
    std::os::unix::fs::symlink(dir.join("data"), secure.join("data"))?;
    let secure = Registry::start_tls(dist, &secure)?;
    let mirror = FaultyHost::start(registry.address(), |_| Fault::Status(404, ""))?;
    let hosts = scratch.join(unique("hosts"));
    fs::create_dir_all(hosts.join("registry.test"))?;
    let text = format!(
        "server = \"https://{}\"\nca = {:?}\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
        secure.host(),
        secure.authority(),
        mirror.host()
    );
    fs::write(hosts.join("registry.test/hosts.toml"), text)?;
    let mut image = own.clone();
    "registry.test/team/web:1".clone_into(&mut image.reference);
    missing(node, &own, &image)?;
    let config = format!("[sources]\nsibling = \"never\"\nhosts_dir = [{hosts:?}]\n");
    assert_outcome(&unpack(node, &config, &image, &NATIVE)?, "applied")?;
    let asked = mirror.requests();
    ensure!(asked.len() == image.layers.len(), "{asked:#?}");
    ensure!(
        asked.iter().all(|head| head.contains("?ns=registry.test")),
        "{asked:#?}"
    );
    assert_nothing_left(node)
}

/// Returns an image of one layer that takes seconds from a slow host.
fn slow_image(node: &Node) -> Result<Built> {
    let name = unique("slow");
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let noise = noise(u64::from(now.subsec_nanos()) << 32 | 1, 600_000);
    let layer = Layer::of(&[Entry::dir("./"), Entry::file("noise", noise)])?;
    ImageBuilder::new(&format!("docker.io/library/{name}:1"))
        .layer(layer)
        .write(&node.containerd.scratch().join(&name))
}

/// A pull of another client and an unpack wait for each other.
fn a_pull_and_an_unpack_fetch_each_blob_once(node: &Node) -> Result<()> {
    for pull_first in [true, false] {
        let faulty = Faulty::start(node, |_| Fault::Slow(Duration::from_millis(15)))?;
        let image = faulty.image(node, &slow_image(node)?)?;
        let mut pull = node.containerd.ctr(&node.namespace);
        pull.args(["images", "pull", "--plain-http", &image.reference]);
        let mut unpack = node.configured_command(NO_SIBLING)?;
        unpack.args(["unpack", &image.reference]).args(NATIVE);
        let commands = match pull_first {
            true => [pull, unpack],
            false => [unpack, pull],
        };
        let mut children = Vec::new();
        for mut command in commands {
            let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
            children.push(command.spawn()?);
            std::thread::sleep(Duration::from_millis(700));
        }
        for child in children {
            let ended = child.wait_with_output()?;
            let text = String::from_utf8_lossy(&ended.stderr);
            ensure!(ended.status.success(), "{text}");
        }
        let layer = &image.layers[0].digest;
        let asked = faulty.host.requests();
        let asked: Vec<_> = asked
            .iter()
            .filter(|head| head.contains(&**layer))
            .collect();
        ensure!(asked.len() == 1, "{asked:#?}");
        assert_nothing_left(node)?;
    }
    Ok(())
}
