// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images whose layer blobs are missing, as where containerd discards unpacked layers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use resnap_integration::cri::Cri;
use resnap_integration::daemon::{Containerd, Options};
use resnap_integration::image::{
    Built, EDGE_CASES_CLOCK, Entry, HELLO_SAYS, ImageBuilder, Layer, ROOT_CLOCK, edge_cases, hello,
    many, pause, shared_pair, web,
};
use resnap_integration::registry::{CREDENTIALS, Registry};
use resnap_integration::tree::{Difference, Expected, compare, surprises};
use serde_json::Value;

use crate::command::{CommandOutput, run_to_end};
use crate::node::{Node, differ_config, unique};
use crate::served::Served;
use crate::suite::live_tests;
use crate::unpack::outcomes;

live_tests! {
    One: missing_layers_come_from_an_archive,
    Containerd: missing_layers_are_written_by_containerd_too,
    One: missing_layers_without_a_source_are_an_error,
    Containerd: missing_layers_are_copied_from_overlayfs,
    Erofs: missing_layers_are_copied_from_overlayfs_to_erofs,
    Erofs: missing_layers_are_copied_from_images_of_resnap,
    Erofs: missing_layers_are_not_copied_from_images_of_others,
    Containerd: copied_layers_are_replaced_by_a_repair,
    Containerd: missing_layers_come_from_a_registry,
    Containerd: missing_layers_of_a_private_registry_are_refused,
    Alone: chains_that_create_container_made_are_copied_if_they_are_right,
    ErofsHandler: missing_layers_of_pods_are_copied,
    ErofsHandler: missing_layers_of_pods_are_fetched,
    ErofsHandler: missing_layers_of_pods_come_from_an_archive,
    NydusHandler: missing_layers_of_pods_on_nydus_are_not_needed,
    ErofsHandler: missing_layers_are_fetched_with_the_credentials_of_the_pod,
}

/// Imports the image and removes the blobs of its layers.
fn discarded(node: &Node, image: &Built) -> Result<()> {
    node.import(image)?;
    discard(node, image)
}

pub(crate) fn discard(node: &Node, image: &Built) -> Result<()> {
    for layer in &image.layers {
        // An image may have a layer twice.
        let _ = node.ctr(&["content", "rm", &layer.digest]);
    }
    node.collect_garbage()
}

/// Runs `resnap unpack` of the image with this configuration and these arguments.
pub(crate) fn try_unpack(
    node: &Node,
    config: &str,
    image: &Built,
    arguments: &[&str],
) -> Result<CommandOutput> {
    let mut command = node.configured_command(config)?;
    command.args(["unpack", "--json", &image.reference]);
    run_to_end(command.args(arguments))
}

/// Unpacks the image with this configuration and these arguments, and returns the report.
pub(crate) fn unpack(
    node: &Node,
    config: &str,
    image: &Built,
    arguments: &[&str],
) -> Result<Value> {
    try_unpack(node, config, image, arguments)?.report()
}

/// Checks that the image is the same on the snapshotter as containerd unpacks it from its blobs.
fn assert_tree(node: &Node, snapshotter: &str, image: &Built) -> Result<()> {
    let containerd = node.in_new_namespace();
    containerd.import(image)?;
    containerd.unpack_by_containerd(snapshotter, &image.reference)?;
    let differences = compare(
        &containerd.tree(snapshotter, &image.reference)?,
        &node.tree(snapshotter, &image.reference)?,
    );
    let surprises = surprises(&differences, ROOT_CLOCK);
    let report: Vec<String> = surprises.iter().map(ToString::to_string).collect();
    ensure!(report.is_empty(), "{snapshotter}: {report:#?}");
    Ok(())
}

pub(crate) fn assert_outcome(report: &Value, outcome: &str) -> Result<()> {
    let counts = outcomes(report)?;
    let layers = report["layers"].as_array().map_or(0, Vec::len);
    let expected = BTreeMap::from([(outcome.to_owned(), layers)]);
    ensure!(counts == expected, "{report}");
    Ok(())
}

pub(crate) const NO_SIBLING: &str = "sources.sibling = \"never\"\n";

fn from_archive(node: &Node, config: &str, image: &Built) -> Result<()> {
    discarded(node, image)?;
    let archive = image.archive.to_string_lossy();
    let arguments = ["--snapshotter", "overlayfs", "--from", &archive];
    let report = unpack(node, config, image, &arguments)?;
    assert_outcome(&report, "applied")?;
    assert_tree(node, "overlayfs", image)?;
    node.assert_nothing_left("overlayfs")?;
    node.collect_garbage()?;
    let snapshots = node.snapshots("overlayfs")?;
    ensure!(snapshots.len() == image.layers.len(), "{snapshots:?}");
    Ok(())
}

fn missing_layers_come_from_an_archive(node: &Node) -> Result<()> {
    from_archive(node, NO_SIBLING, &web()?)
}

fn missing_layers_are_written_by_containerd_too(node: &Node) -> Result<()> {
    let config = differ_config("containerd") + NO_SIBLING;
    from_archive(node, &config, &web()?)
}

fn missing_layers_without_a_source_are_an_error(node: &Node) -> Result<()> {
    let image = unlike_others(node)?;
    discarded(node, &image)?;
    let output = try_unpack(node, "", &image, &["--snapshotter", "native"])?;
    let text = output.error()?.to_string();
    for part in [
        &*image.reference,
        "native",
        "archive: ",
        "sibling: ",
        "--from",
    ] {
        ensure!(text.contains(part), "{part:?} is not in {text}");
    }
    node.assert_nothing_left("native")
}

/// Checks that the image is copied from the snapshots of containerd on overlayfs, with no difference.
fn copied(node: &Node, snapshotter: &str, image: &Built, expected: &[Expected]) -> Result<()> {
    node.import(image)?;
    node.unpack_by_containerd("overlayfs", &image.reference)?;
    copied_from(node, ("overlayfs", snapshotter), image, expected)
}

/// Checks that the image is copied from the snapshots of another snapshotter, with no difference.
fn copied_from(
    node: &Node,
    (from, snapshotter): (&str, &str),
    image: &Built,
    expected: &[Expected],
) -> Result<()> {
    discard(node, image)?;
    let report = unpack(node, "", image, &["--snapshotter", snapshotter])?;
    assert_outcome(&report, "copied")?;
    let snapshots = node.snapshots(snapshotter)?;
    for layer in &image.layers {
        let labels = &snapshots[&layer.chain_id].labels;
        let origin = labels.get("resnap.io/copied-from").map(String::as_str);
        ensure!(origin == Some(from), "{labels:?}");
        let is_image = labels.contains_key("resnap.io/image-writer");
        ensure!(is_image == (snapshotter == "erofs"), "{labels:?}");
    }
    let check = node.resnap(&["check", &image.reference])?.ok()?;
    ensure!(check.contains(&format!("copied from {from}")), "{check}");
    node.assert_nothing_left(snapshotter)?;
    node.assert_no_active_snapshot(from)?;
    let differences = compare(
        &node.tree(from, &image.reference)?,
        &node.tree(snapshotter, &image.reference)?,
    );
    assert_same(differences, snapshotter, expected)
}

/// Checks that a copy differs from its layers as expected only. The native snapshotter gives
/// directories that it copies the time of the copy, and directories that no layer states have the time of
/// their unpack everywhere. Attributes of security modules are not copied.
fn assert_same(
    differences: Vec<Difference>,
    snapshotter: &str,
    expected: &[Expected],
) -> Result<()> {
    let unequal = differences.into_iter().filter(|difference| {
        let text = difference.to_string();
        let has_other_time = snapshotter == "native" && text.contains(": Mtime: ");
        !(has_other_time || is_of_now(&text) || text.contains("security.test"))
    });
    let surprises = surprises(&unequal.collect::<Vec<_>>(), expected);
    let report: Vec<String> = surprises.iter().map(ToString::to_string).collect();
    ensure!(report.is_empty(), "{snapshotter}: {report:#?}");
    Ok(())
}

/// Returns the images of the suite that can be unpacked on all snapshotters.
fn usual_images() -> Result<Vec<Built>> {
    let (left, right) = shared_pair()?;
    let all = [web()?, hello()?, many(9)?];
    Ok(all.into_iter().chain([left, right]).collect())
}

/// Returns whether a difference is that of two times within the last hour, below the root.
fn is_of_now(difference: &str) -> bool {
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    let since = hour_ago.duration_since(UNIX_EPOCH).unwrap_or_default();
    let times = difference.split_once(": Mtime: ");
    let times = times.filter(|(path, _)| *path != ".");
    let times = times.and_then(|(_, times)| times.split_once(" != "));
    let is_new = |time: &str| {
        time.parse()
            .is_ok_and(|time: f64| time > since.as_secs_f64())
    };
    times.is_some_and(|(left, right)| is_new(left) && is_new(right))
}

fn missing_layers_are_copied_from_overlayfs(node: &Node) -> Result<()> {
    for image in usual_images()? {
        // They share layers.
        copied(&node.in_new_namespace(), "native", &image, &[])
            .with_context(|| image.reference.clone())?;
    }
    Ok(())
}

fn missing_layers_are_copied_from_overlayfs_to_erofs(node: &Node) -> Result<()> {
    for image in usual_images()? {
        copied(&node.in_new_namespace(), "erofs", &image, ROOT_CLOCK)
            .with_context(|| image.reference.clone())?;
    }
    let node = node.in_new_namespace();
    copied(&node, "erofs", &edge_cases()?, EDGE_CASES_CLOCK)
}

fn missing_layers_are_copied_from_images_of_resnap(node: &Node) -> Result<()> {
    for image in [web()?, edge_cases()?] {
        let node = node.in_new_namespace();
        node.import(&image)?;
        unpack(&node, "", &image, &["--snapshotter", "erofs"])?;
        copied_from(&node, ("erofs", "overlayfs"), &image, ROOT_CLOCK)?;
    }
    Ok(())
}

/// mkfs.erofs writes some of a layer's entries wrongly.
fn missing_layers_are_not_copied_from_images_of_others(node: &Node) -> Result<()> {
    let image = unlike_others(node)?;
    node.import(&image)?;
    node.unpack_by_containerd("erofs", &image.reference)?;
    discard(node, &image)?;
    let output = try_unpack(node, "", &image, &["--snapshotter", "native"])?;
    let text = output.error()?.to_string();
    ensure!(text.contains("was not written by resnap"), "{text}");
    node.assert_nothing_left("native")?;
    node.assert_no_active_snapshot("erofs")
}

fn copied_layers_are_replaced_by_a_repair(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    node.unpack_by_containerd("overlayfs", &image.reference)?;
    let always = "sources.sibling = \"always\"\n";
    let report = unpack(node, always, &image, &["--snapshotter", "native"])?;
    assert_outcome(&report, "copied")?;
    let report = unpack(
        node,
        always,
        &image,
        &["--snapshotter", "native", "--repair"],
    )?;
    assert_outcome(&report, "applied")?;
    node.assert_nothing_left("native")
}

/// Pushes the image to the registry, and returns it with its reference there.
pub(crate) fn pushed(node: &Node, registry: &Registry, image: &Built, name: &str) -> Result<Built> {
    let mut pushed = image.clone();
    pushed.reference = registry.reference(name);
    let other = node.in_new_namespace();
    other.import(image)?;
    other.ctr(&["images", "tag", &image.reference, &pushed.reference])?;
    let mut push = vec!["images", "push", "--plain-http"];
    let user = format!("{}:{}", CREDENTIALS.0, CREDENTIALS.1);
    push.extend(["--user", &user, &pushed.reference]);
    other.ctr(&push)?;
    // containerd shares content between namespaces, and would fetch nothing.
    for reference in [&image.reference, &pushed.reference] {
        other.ctr(&["images", "rm", "--sync", reference])?;
    }
    Ok(pushed)
}

/// Returns the digests of the blobs that were read from the registry since `before` requests.
pub(crate) fn fetched(registry: &Registry, before: usize) -> Result<BTreeSet<String>> {
    let requests = registry.requests()?;
    let blobs = requests[before..].iter().filter_map(|(request, status)| {
        let blob = request.strip_prefix("GET ")?.rsplit_once("/blobs/")?.1;
        (*status < 300).then(|| blob.to_owned())
    });
    Ok(blobs.collect())
}

pub(crate) fn layers(image: &Built) -> BTreeSet<String> {
    let layers = image.layers.iter();
    layers.map(|layer| layer.digest.clone()).collect()
}

/// Returns an image whose layers no other test has.
pub(crate) fn unlike_others(node: &Node) -> Result<Built> {
    let name = unique("unlike");
    let layers = ["lower", "upper"].map(|file| {
        let text = format!("{name} of {:?}", SystemTime::now());
        Layer::of(&[Entry::dir("./"), Entry::file(file, text)])
    });
    let [lower, upper] = layers;
    ImageBuilder::new(&format!("docker.io/library/{name}:1"))
        .layer(lower?)
        .layer(upper?)
        .write(&node.containerd.scratch().join(&name))
}

fn missing_layers_come_from_a_registry(node: &Node) -> Result<()> {
    let dir = node.containerd.scratch().join(unique("registry"));
    let registry = Registry::start(node.containerd.dist(), &dir)?;
    let image = pushed(node, &registry, &unlike_others(node)?, "unlike:1")?;
    node.ctr(&["images", "pull", "--plain-http", &image.reference])?;
    discard(node, &image)?;
    let before = registry.requests()?.len();
    let report = unpack(node, NO_SIBLING, &image, &["--snapshotter", "native"])?;
    assert_outcome(&report, "applied")?;
    let requests = registry.requests()?;
    ensure!(
        fetched(&registry, before)? == layers(&image),
        "{requests:#?}"
    );
    node.assert_nothing_left("native")
}

fn missing_layers_of_a_private_registry_are_refused(node: &Node) -> Result<()> {
    let dir = node.containerd.scratch().join(unique("registry"));
    let registry = Registry::start_private(node.containerd.dist(), &dir)?;
    let own = unlike_others(node)?;
    let image = pushed(node, &registry, &own, "unlike:1")?;
    node.import(&own)?;
    node.ctr(&["images", "tag", &own.reference, &image.reference])?;
    discard(node, &image)?;
    let output = try_unpack(node, "", &image, &["--snapshotter", "native"])?;
    let text = output.error()?.to_string();
    for part in [&*image.reference, "registry: ", &registry.host(), "401"] {
        ensure!(text.contains(part), "{part:?} is not in {text}");
    }
    node.assert_nothing_left("native")
}

/// Starts a containerd that discards unpacked layers, with the image of sandboxes.
pub(crate) fn discarding(node: &Node, nydus: bool) -> Result<Node> {
    let options = Options {
        nydus,
        discard_layers: true,
        ..crate::suite::options()
    };
    let node = Node {
        containerd: Arc::new(Containerd::start(node.containerd.dist(), options)?),
        namespace: node.namespace.clone(),
    };
    node.import(&pause()?)?;
    Ok(node)
}

/// Runs pods of an image that the CRI pulled for overlayfs and whose blobs it discarded: two on the
/// handler, and one on the default handler. Returns the image, and the blobs that were fetched.
fn pods_of_discarded_image(
    node: &Node,
    handler: &str,
    config: &str,
) -> Result<(Built, BTreeSet<String>)> {
    let dist = node.containerd.dist();
    let registry = Registry::start(dist, &node.containerd.scratch().join(unique("registry")))?;
    let image = pushed(node, &registry, &hello()?, "hello:1")?;
    let node = discarding(node, handler == "nydus")?;
    let guest = node.containerd.guest_root().join("etc");
    fs::create_dir_all(&guest)?;
    fs::write(guest.join("message"), "from the guest\n")?;
    let direct = Cri::connect(node.containerd.socket(), &node.containerd.scratch())?;
    direct.pull_image(&image.reference, None, None)?;
    node.collect_garbage()?;
    let content = node.ctr(&["content", "ls", "-q"])?;
    for layer in &image.layers {
        ensure!(!content.contains(&layer.digest), "it was not discarded");
    }
    let before = registry.requests()?.len();
    let served = Served::configured(&node, node.containerd.socket(), config)?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
    for (handler, name) in [(handler, "first"), (handler, "second"), ("", "default")] {
        let sandbox = cri.run_pod_sandbox(handler, name)?;
        let exit = cri.run(&sandbox, name, &image.reference, &[])?;
        let says = match handler {
            "nydus" => "from the guest",
            _ => HELLO_SAYS,
        };
        ensure!(exit.output.trim() == says, "{name}: {exit:?}");
    }
    let fetched = fetched(&registry, before)?;
    cri.remove_all()?;
    drop((cri, direct));
    served.stop()?;
    node.assert_nothing_left(handler)?;
    Ok((image, fetched))
}

fn missing_layers_of_pods_are_copied(node: &Node) -> Result<()> {
    let (_, fetched) = pods_of_discarded_image(node, "erofs", "")?;
    ensure!(fetched.is_empty(), "{fetched:?}");
    Ok(())
}

fn missing_layers_of_pods_are_fetched(node: &Node) -> Result<()> {
    let (image, fetched) = pods_of_discarded_image(node, "erofs", NO_SIBLING)?;
    ensure!(fetched == layers(&image), "{fetched:?}");
    Ok(())
}

fn missing_layers_of_pods_on_nydus_are_not_needed(node: &Node) -> Result<()> {
    let (_, fetched) = pods_of_discarded_image(node, "nydus", NO_SIBLING)?;
    ensure!(fetched.is_empty(), "{fetched:?}");
    Ok(())
}

/// From 2.2.2 on, containerd makes the chain of a container without the layers' parents.
fn chains_that_create_container_made_are_copied_if_they_are_right(node: &Node) -> Result<()> {
    let node = &Node {
        containerd: Arc::clone(&node.containerd),
        namespace: "k8s.io".to_owned(),
    };
    // A full copy cannot be told where lower layers would show again.
    let (image, snapshotter, expected): (_, _, &[_]) = match node.containerd.has_erofs() {
        true => (edge_cases()?, "erofs", EDGE_CASES_CLOCK),
        false => (web()?, "native", &[]),
    };
    node.import(&pause()?)?;
    node.import(&image)?;
    let cri = Cri::connect(node.containerd.socket(), &node.containerd.scratch())?;
    let sandbox = cri.run_pod_sandbox("", "direct")?;
    cri.create_container(&sandbox, "direct", &image.reference, &[])?;
    discard(node, &image)?;
    let config = "sources.order = [\"sibling\"]\n";
    let output = try_unpack(node, config, &image, &["--snapshotter", snapshotter])?;
    let check = node.resnap(&["check", &image.reference])?;
    let warns = check.stdout.contains("was made without its parents");
    ensure!(
        warns == (node.containerd.version() >= (2, 2, 2)),
        "{check:?}"
    );
    if warns {
        let text = output.error()?.to_string();
        for part in ["sibling: ", "overlayfs", "was made without its parents"] {
            ensure!(text.contains(part), "{part:?} is not in {text}");
        }
    } else {
        output.ok()?;
        let differences = compare(
            &node.tree("overlayfs", &image.reference)?,
            &node.tree(snapshotter, &image.reference)?,
        );
        assert_same(differences, snapshotter, expected)?;
    }
    cri.remove_all()?;
    node.assert_nothing_left(snapshotter)
}

/// The registry is gone, and there is no sibling.
fn missing_layers_of_pods_come_from_an_archive(node: &Node) -> Result<()> {
    let scratch = node.containerd.scratch();
    let registry = Registry::start(node.containerd.dist(), &scratch.join(unique("registry")))?;
    let image = pushed(node, &registry, &hello()?, "hello:1")?;
    let archives = scratch.join(unique("archives"));
    fs::create_dir(&archives)?;
    fs::copy(&image.archive, archives.join("hello.tar"))?;
    let node = discarding(node, false)?;
    let direct = Cri::connect(node.containerd.socket(), &node.containerd.scratch())?;
    direct.pull_image(&image.reference, None, None)?;
    node.collect_garbage()?;
    drop((direct, registry));
    let config = format!("[sources]\nsibling = \"never\"\narchives = [{archives:?}]\n");
    let served = Served::configured(&node, node.containerd.socket(), &config)?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
    let sandbox = cri.run_pod_sandbox("erofs", "airgap")?;
    let exit = cri.run(&sandbox, "airgap", &image.reference, &[])?;
    ensure!(exit.output.trim() == HELLO_SAYS, "{exit:?}");
    cri.remove_all()?;
    drop(cri);
    served.stop()?;
    node.assert_nothing_left("erofs")
}

/// Pod A pulls with credentials for the default handler. They fetch nothing for pod B on erofs. Those of pod C
/// fetch what C needs there.
fn missing_layers_are_fetched_with_the_credentials_of_the_pod(node: &Node) -> Result<()> {
    let dir = node.containerd.scratch().join(unique("registry"));
    let registry = Registry::start_private(node.containerd.dist(), &dir)?;
    let image = pushed(node, &registry, &hello()?, "hello:1")?;
    let node = discarding(node, false)?;
    let served = Served::configured(&node, node.containerd.socket(), NO_SIBLING)?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
    let a = cri.run_pod_sandbox("", "a")?;
    let [b, c] = ["b", "c"].map(|name| cri.run_pod_sandbox("erofs", name));
    let (b, c) = (b?, c?);
    cri.pull_image(&image.reference, Some(&a), Some(CREDENTIALS))?;
    node.collect_garbage()?;
    let refused = cri.create_container(&b, "b", &image.reference, &[]);
    let refused = format!("{:#}", refused.err().context("pod B has got the image")?);
    ensure!(refused.contains("401"), "{refused}");
    ensure!(!refused.contains(CREDENTIALS.1), "{refused}");
    cri.pull_image(&image.reference, Some(&c), Some(CREDENTIALS))?;
    let exit = cri.run(&c, "c", &image.reference, &[])?;
    ensure!(exit.output.trim() == HELLO_SAYS, "{exit:?}");
    cri.remove_all()?;
    drop(cri);
    served.stop()?;
    node.assert_nothing_left("erofs")
}
