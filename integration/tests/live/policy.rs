// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap serve` on a node with faults, and by its operator's configuration.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use resnap_integration::cri::Cri;
use resnap_integration::daemon::{Containerd, Options};
use resnap_integration::image::{Built, HELLO_SAYS, hello, pause, shared_pair};
use resnap_integration::registry::Registry;
use resnap_integration::tap::{Call, Method, Point};
use tonic::{Code, Status};

use crate::node::Node;
use crate::poll::{DEADLINE, eventually};
use crate::proxy::{CREATE_CONTAINER, pulled};
use crate::served::Served;
use crate::suite::live_tests;
use crate::unpack::assert_labels;

live_tests! {
    NydusHandler: policy_repairs_pods_with_layers_of_the_host,
    NydusHandler: policy_sandbox_image_is_pulled,
    NydusHandler: policy_unlabelled_is_as_configured,
    Alone: policy_retries_images_that_containerd_could_not_unpack,
    Alone: policy_always,
}

const GUEST_SAYS: &str = "from the guest";

/// The first containerd that labels what it unpacks for another handler.
const MENDED: (u32, u32, u32) = (2, 2, 2);

/// The guest shows what no layer has.
fn furnish_guest(node: &Node) -> Result<()> {
    std::fs::create_dir_all(node.containerd.guest_root().join("tmp"))?;
    let etc = node.containerd.guest_root().join("etc");
    std::fs::create_dir_all(&etc)?;
    for file in ["message", "side"] {
        std::fs::write(etc.join(file), format!("{GUEST_SAYS}\n"))?;
    }
    Ok(())
}

/// Returns whether the top layer of `image` on nydus is pulled in the guest.
fn is_remote(node: &Node, image: &Built) -> Result<bool> {
    let labels = node.labels("nydus", image.chain_id())?;
    Ok(labels.contains_key("containerd.io/snapshot/nydus-proxy-mode"))
}

fn status(error: &anyhow::Error) -> Result<&Status> {
    error.downcast_ref().context("no status")
}

fn policy_repairs_pods_with_layers_of_the_host(node: &Node) -> Result<()> {
    pulled(node)?;
    furnish_guest(node)?;
    let (left, _) = shared_pair()?;
    node.import(&left)?;
    node.unpack_by_containerd("overlayfs", &left.reference)?;
    // Pods from before, with the host's files in place of the guest's.
    let direct = Cri::connect(node.containerd.socket(), &node.containerd.scratch())?;
    let old = direct.run_pod_sandbox("nydus", "old")?;
    let wait = [
        "/bin/sh",
        "-c",
        "until [ -e /tmp/go ]; do sleep 0.1; done; cat /etc/side",
    ];
    let running = direct.create_container(&old, "running", &left.reference, &wait)?;
    direct.start_container(&running)?;
    let is_mended = node.containerd.version() >= MENDED;
    for image in [&left, &pause()?] {
        ensure!(is_remote(node, image)? == is_mended, "{}", image.reference);
    }

    let served = Served::start(node)?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
    let new = cri.run_pod_sandbox("nydus", "new")?;
    let exit = cri.run(&new, "same", &left.reference, &["/bin/cat", "/etc/side"])?;
    ensure!(exit.output.trim() == GUEST_SAYS, "{exit:?}");
    for image in [&left, &pause()?] {
        ensure!(is_remote(node, image)?, "{}", image.reference);
    }
    // One more in the old pod, and the old one goes on as it began.
    let exit = cri.run(&old, "added", &left.reference, &["/bin/cat", "/etc/side"])?;
    ensure!(exit.output.trim() == GUEST_SAYS, "{exit:?}");
    let go = ["/bin/sh", "-c", ": > /tmp/go"];
    cri.exec(&running, &go)?;
    let exit = cri.wait(&running)?;
    let before = if is_mended { GUEST_SAYS } else { "left" };
    ensure!(exit.output.trim() == before, "{exit:?}");
    cri.remove_all()?;
    drop((direct, cri));
    served.stop()?;
    node.assert_nothing_left("nydus")
}

/// A node on which the image of sandboxes is not, and its first pod.
fn policy_sandbox_image_is_pulled(node: &Node) -> Result<()> {
    let dist = node.containerd.dist();
    let registry = Registry::start(dist, &node.containerd.scratch().join("registry"))?;
    let reference = registry.reference("pause:1");
    node.import(&pause()?)?;
    node.ctr(&["images", "tag", &pause()?.reference, &reference])?;
    node.ctr(&["images", "push", "--plain-http", &reference])?;
    let options = Options {
        nydus: true,
        pause_image: reference.clone(),
        ..crate::suite::options()
    };
    let node = Node {
        containerd: Arc::new(Containerd::start(dist, options)?),
        namespace: node.namespace.clone(),
    };
    let served = Served::start(&node)?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
    cri.run_pod_sandbox("nydus", "first")?;
    // containerd 2 does not say which image it is before it is there: that pod has it bare.
    eventually("the sandbox's image has its labels", DEADLINE, || {
        is_remote(&node, &pause()?)
    })?;
    let labels = node.labels("nydus", pause()?.chain_id())?;
    let named = labels.get("containerd.io/snapshot/cri.image-ref");
    ensure!(named == Some(&reference), "{labels:#?}");
    cri.run_pod_sandbox("nydus", "second")?;
    let calls = node.containerd.mount_helper_calls()?;
    ensure!(
        !calls.is_empty(),
        "the second pod was not pulled in the guest"
    );
    if node.containerd.version() < (2, 0, 0) {
        ensure!(calls.len() == 2, "nor was the first: {calls:?}");
    }
    cri.remove_all()?;
    drop(cri);
    served.stop()?;
    node.assert_nothing_left("nydus")
}

fn policy_unlabelled_is_as_configured(node: &Node) -> Result<()> {
    pulled(node)?;
    furnish_guest(node)?;
    if node.containerd.version() >= MENDED {
        // Nothing is unlabelled here, so both words mean the same.
        let served =
            Served::configured(node, node.containerd.socket(), "cri.unlabelled = \"fail\"")?;
        let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
        let sandbox = cri.run_pod_sandbox("nydus", "pod")?;
        let exit = cri.run(&sandbox, "c", &hello()?.reference, &[])?;
        ensure!(exit.output.trim() == GUEST_SAYS, "{exit:?}");
        cri.remove_all()?;
        drop(cri);
        return served.stop();
    }
    let direct = Cri::connect(node.containerd.socket(), &node.containerd.scratch())?;
    let sandbox = direct.run_pod_sandbox("nydus", "old")?;
    let image = hello()?;
    direct.create_container(&sandbox, "unlabelled", &image.reference, &[])?;

    let with = |word: &str| {
        let config = format!("[cri]\nunlabelled = {word:?}\n");
        let served = Served::configured(node, node.containerd.socket(), &config)?;
        let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
        anyhow::Ok((served, cri))
    };
    let (served, cri) = with("fail")?;
    let error = cri.create_container(&sandbox, "fail", &image.reference, &[]);
    let error = error.err().context("it was created without labels")?;
    ensure!(
        status(&error)?.code() == Code::FailedPrecondition,
        "{error:?}"
    );
    ensure!(
        status(&error)?.message().contains(&image.reference),
        "{error:?}"
    );
    drop(cri);
    served.stop()?;
    let (served, cri) = with("forward")?;
    let exit = cri.run(&sandbox, "forward", &image.reference, &[])?;
    ensure!(exit.output.trim() == HELLO_SAYS, "{exit:?}");
    ensure!(!is_remote(node, &image)?);
    direct.remove_all()?;
    drop((direct, cri));
    served.stop()
}

fn policy_retries_images_that_containerd_could_not_unpack(node: &Node) -> Result<()> {
    pulled(node)?;
    let image = hello()?;
    let tap = node.containerd.tap()?;
    let served = Served::before(node, tap.socket())?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
    let sandbox = cri.run_pod_sandbox("", "pod")?;
    // Its layers are gone, and so is the blob of one; it comes back when containerd has failed.
    let top = image.layers.last().context("an image without layers")?;
    node.ctr(&["snapshots", "rm", &top.chain_id])?;
    node.ctr(&["content", "rm", &top.digest])?;
    let held = tap.hold(CREATE_CONTAINER, 1, Point::After);
    let (socket, scratch) = (served.socket.clone(), node.containerd.scratch());
    let reference = image.reference.clone();
    let caller = std::thread::spawn(move || {
        let cri = Cri::connect(&socket, &scratch)?;
        let container = cri.create_container(&sandbox, "c", &reference, &[])?;
        cri.start_container(&container)?;
        cri.wait(&container)
    });
    held.wait()?;
    node.import(&image)?;
    held.release();
    let exit = caller
        .join()
        .map_err(|_| anyhow!("the client panicked"))??;
    ensure!(exit.output.trim() == HELLO_SAYS, "{exit:?}");
    let calls = tap.calls();
    let creates = calls.iter().filter(|call| CREATE_CONTAINER.is(&call.path));
    let answers: Vec<Option<Code>> = creates.map(Call::status).collect();
    ensure!(
        answers == [Some(Code::NotFound), Some(Code::Ok)],
        "{answers:?}"
    );

    // A blob that stays away is containerd's to complain of, in its own words.
    let (_, right) = shared_pair()?;
    node.import(&right)?;
    let top = right.layers.last().context("an image without layers")?;
    node.ctr(&["content", "rm", &top.digest])?;
    let direct = Cri::connect(node.containerd.socket(), &node.containerd.scratch())?;
    let sandbox = direct.run_pod_sandbox("", "other")?;
    let fail = |cri: &Cri| {
        let error = cri.create_container(&sandbox, "d", &right.reference, &[]);
        let error = error.err().context("it was created without a blob")?;
        let status = status(&error)?;
        anyhow::Ok((status.code(), status.message().to_owned()))
    };
    let (code, message) = fail(&direct)?;
    ensure!(message.contains(&top.digest), "{message}");
    let proxied = fail(&cri)?;
    ensure!(
        proxied.0 == code && proxied.1.contains(&top.digest),
        "{proxied:?}"
    );
    ensure!(tap.count(Method::APPLY) > 0, "resnap did not try");
    cri.remove_all()?;
    drop((cri, direct));
    served.stop()?;
    tap.finish()
}

fn policy_always(node: &Node) -> Result<()> {
    // Nothing is unpacked for anybody yet.
    for image in [&hello()?, &pause()?] {
        node.import(image)?;
    }
    let served = Served::configured(node, node.containerd.socket(), "cri.always = true")?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
    let sandbox = cri.run_pod_sandbox("", "pod")?;
    let exit = cri.run(&sandbox, "c", &hello()?.reference, &[])?;
    ensure!(exit.output.trim() == HELLO_SAYS, "{exit:?}");
    for image in [&hello()?, &pause()?] {
        assert_labels(node, "overlayfs", image, &[])?;
    }
    cri.remove_all()?;
    drop(cri);
    served.stop()
}
