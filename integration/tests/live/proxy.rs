// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap serve` between a CRI client and containerd.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use resnap_integration::cri::Cri;
use resnap_integration::image::{HELLO_SAYS, hello, pause};
use resnap_integration::tap::{Method, Point};
use tonic::{Code, Status};

use crate::node::Node;
use crate::poll::{DEADLINE, eventually};
use crate::served::Served;
use crate::suite::live_tests;
use crate::unpack::assert_labels;

live_tests! {
    ErofsHandler: proxy_pod_on_erofs,
    NydusHandler: proxy_pod_on_nydus,
    ErofsHandler: proxy_answers_before_the_deadline,
    ErofsHandler: proxy_unpacks_once_for_many_pods,
    ErofsHandler: proxy_survives_restarts,
    ErofsHandler: proxy_forwards_unknown_requests,
}

pub(crate) const CREATE_CONTAINER: Method =
    Method::new("/runtime.v1.RuntimeService/CreateContainer");

/// The images of a pod on the node, as after pulls for the default snapshotter.
pub(crate) fn pulled(node: &Node) -> Result<()> {
    for image in [&hello()?, &pause()?] {
        node.import(image)?;
        node.unpack_by_containerd("overlayfs", &image.reference)?;
    }
    Ok(())
}

/// Returns the output of a pod under this handler, through the proxy.
fn run(node: &Node, handler: &str) -> Result<String> {
    pulled(node)?;
    let served = Served::start(node)?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
    let sandbox = cri.run_pod_sandbox(handler, "pod")?;
    let exit = cri.run(&sandbox, "container", &hello()?.reference, &[])?;
    for image in [&hello()?, &pause()?] {
        let own = ["containerd.io/snapshot/nydus-proxy-mode"];
        assert_labels(node, handler, image, &own)?;
    }
    cri.remove_all()?;
    drop(cri);
    served.stop()?;
    node.assert_nothing_left(handler)?;
    Ok(exit.output.trim().to_owned())
}

fn proxy_pod_on_erofs(node: &Node) -> Result<()> {
    let output = run(node, "erofs")?;
    ensure!(output == HELLO_SAYS, "{output:?}");
    Ok(())
}

fn proxy_pod_on_nydus(node: &Node) -> Result<()> {
    let guest = node.containerd.guest_root().join("etc");
    std::fs::create_dir_all(&guest)?;
    std::fs::write(guest.join("message"), "from the guest\n")?;
    let output = run(node, "nydus")?;
    ensure!(output == "from the guest", "{output:?}");
    Ok(())
}

fn proxy_answers_before_the_deadline(node: &Node) -> Result<()> {
    const TIMEOUT: Duration = Duration::from_secs(2);
    pulled(node)?;
    let image = hello()?;
    let tap = node.containerd.tap()?;
    let served = Served::before(node, tap.socket())?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
    let sandbox = cri.run_pod_sandbox("erofs", "patient")?;
    let hurried = Cri::connect(&served.socket, &node.containerd.scratch())?.with_timeout(TIMEOUT);
    let held = tap.hold(Method::APPLY, 2, Point::Before);
    let before = tap.count(Method::APPLY);
    for _ in 0..2 {
        let asked = Instant::now();
        let error = hurried.create_container(&sandbox, "c", &image.reference, &[]);
        let took = asked.elapsed();
        let error = error.err().context("it was created without its image")?;
        let status = error.downcast_ref::<Status>().context("no status")?;
        ensure!(status.code() == Code::DeadlineExceeded, "{status:?}");
        let says = format!("unpacking {} for erofs: 1 of 3 layers", image.reference);
        ensure!(status.message().starts_with(&says), "{status:?}");
        ensure!(status.message().ends_with("still running"), "{status:?}");
        ensure!(took < TIMEOUT, "answered after {took:?}");
    }
    ensure!(
        tap.count(CREATE_CONTAINER) == 0,
        "containerd got a call too early"
    );
    held.wait()?;
    held.release();
    let exit = cri.run(&sandbox, "c", &image.reference, &[])?;
    ensure!(exit.output.trim() == HELLO_SAYS, "{exit:?}");
    ensure!(
        tap.count(Method::APPLY) - before == 3,
        "unpacked more than once"
    );
    ensure!(tap.count(CREATE_CONTAINER) == 1);
    cri.remove_all()?;
    drop((cri, hurried));
    served.stop()?;
    tap.finish()
}

fn proxy_unpacks_once_for_many_pods(node: &Node) -> Result<()> {
    pulled(node)?;
    let image = hello()?;
    let tap = node.containerd.tap()?;
    let served = Served::before(node, tap.socket())?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
    let sandbox = cri.run_pod_sandbox("erofs", "herd")?;
    let before = tap.count(Method::APPLY);
    let socket = &served.socket;
    std::thread::scope(|scope| {
        let create = |number: usize| {
            let (sandbox, image) = (&sandbox, &image);
            scope.spawn(move || {
                let cri = Cri::connect(socket, &node.containerd.scratch())?;
                let name = format!("c{number}");
                cri.create_container(sandbox, &name, &image.reference, &[])
            })
        };
        let all: Vec<_> = (0..32).map(create).collect();
        for one in all {
            one.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        anyhow::Ok(())
    })?;
    ensure!(
        tap.count(Method::APPLY) - before == 3,
        "{}",
        tap.count(Method::APPLY)
    );
    cri.remove_all()?;
    drop(cri);
    served.stop()?;
    tap.finish()
}

fn proxy_survives_restarts(node: &Node) -> Result<()> {
    pulled(node)?;
    let image = hello()?;
    let tap = node.containerd.tap()?;
    let mut served = Served::before(node, tap.socket())?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
    let sandbox = cri.run_pod_sandbox("erofs", "stubborn")?;

    // containerd goes and comes; the proxy and its client stay.
    node.containerd.kill()?;
    let error = cri.status().err().context("answered by nobody")?;
    let status = error.downcast_ref::<Status>().context("no status")?;
    ensure!(status.code() == Code::Unavailable, "{status:?}");
    node.containerd.restart()?;
    eventually("the proxy reaches containerd again", DEADLINE, || {
        Ok(cri.status().is_ok())
    })?;

    // The proxy is killed while it unpacks; the next one goes on from there.
    let held = tap.hold(Method::APPLY, 2, Point::During);
    let before = tap.count(Method::APPLY);
    let caller = std::thread::spawn({
        let (sandbox, reference) = (sandbox.clone(), image.reference.clone());
        move || cri.create_container(&sandbox, "c", &reference, &[]).err()
    });
    held.wait()?;
    served.kill()?;
    let error = caller.join().map_err(|_| anyhow!("the client panicked"))?;
    ensure!(error.is_some(), "answered by a dead proxy");
    held.release();
    let served = served.again(node, tap.socket())?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
    let exit = cri.run(&sandbox, "c", &image.reference, &[])?;
    ensure!(exit.output.trim() == HELLO_SAYS, "{exit:?}");
    // The one that was torn, and no other, twice.
    ensure!(
        tap.count(Method::APPLY) - before == 4,
        "{}",
        tap.count(Method::APPLY)
    );
    cri.remove_all()?;
    drop(cri);
    served.stop()?;
    node.assert_nothing_left("erofs")?;
    tap.finish()
}

fn proxy_forwards_unknown_requests(node: &Node) -> Result<()> {
    pulled(node)?;
    let served = Served::start(node)?;
    let direct = Cri::connect(node.containerd.socket(), &node.containerd.scratch())?;
    let proxied = Cri::connect(&served.socket, &node.containerd.scratch())?;
    let sandbox = proxied.run_pod_sandbox("erofs", "pod")?;
    let create = |cri: &Cri| {
        let created = cri.create_container(&sandbox, "c", "docker.io/library/nobody:1", &[]);
        let error = created.err().context("it was created")?;
        let status = error.downcast_ref::<Status>().context("no status")?;
        anyhow::Ok((status.code(), status.message().to_owned()))
    };
    ensure!(create(&direct)? == create(&proxied)?);
    // Handlers on the default snapshotter are nobody's business.
    let plain = proxied.run_pod_sandbox("", "plain")?;
    let exit = proxied.run(&plain, "c", &hello()?.reference, &[])?;
    ensure!(exit.output.trim() == HELLO_SAYS, "{exit:?}");
    let labels = node.labels("overlayfs", hello()?.chain_id())?;
    ensure!(
        labels.keys().all(|key| !key.contains("cri.")),
        "{labels:#?}"
    );
    // containerd's own API is there as well.
    let own = node
        .resnap_command()?
        .arg("--address")
        .arg(&served.socket)
        .arg("images")
        .output()?;
    ensure!(own.status.success(), "{own:?}");
    proxied.remove_all()?;
    drop((direct, proxied));
    served.stop()
}
