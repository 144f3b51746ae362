// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap serve` asked to stop in the middle of its work: whoever has asked is answered.

use std::sync::Arc;
use std::thread::Scope;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use async_trait::async_trait;
use resnap_core::{EnsureProgress, EnsureRequest, ManifestPreference, NotReady, UnpackService};
use resnap_cri_proxy::{Proxy, ProxySettings};
use resnap_integration::cri::{Container, Cri, Sandbox};
use resnap_integration::image::hello;
use resnap_integration::tap::{Method, Point, Tap};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::node::{Node, unique};
use crate::poll::eventually;
use crate::proxy::{CREATE_CONTAINER, pulled};
use crate::served::Served;
use crate::suite::live_tests;

live_tests! {
    ErofsHandler: proxy_stops_after_all_calls,
    ErofsHandler: proxy_answers_all_calls_when_it_stops,
}

const CLIENTS: usize = 32;

/// The grace period of `resnap serve`.
const GRACE: Duration = Duration::from_secs(30);

fn proxy_stops_after_all_calls(node: &Node) -> Result<()> {
    pulled(node)?;
    let back = node.containerd.tap()?;
    let mut served = Served::before(node, back.socket())?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
    let front = front(&served.socket)?;
    let sandbox = cri.run_pod_sandbox("erofs", "pod")?;
    let held = back.hold(Method::APPLY, 2, Point::Before);
    let took = std::thread::scope(|scope| {
        let creates = creates(scope, node, &front, &sandbox)?;
        held.wait()?;
        let pid = i32::try_from(served.process.id())?;
        kill_process(Pid::from_raw(pid).context("no process")?, Signal::TERM)?;
        let asked = Instant::now();
        // Longer than streams have that do not end: these are none. Who comes is served.
        while asked.elapsed() < Duration::from_millis(1200) {
            let late = Cri::connect(&served.socket, &node.containerd.scratch())?;
            late.status().context("a late client is not served")?;
        }
        ensure!(served.process.try_wait()?.is_none(), "it has ended");
        held.release();
        for create in creates {
            let created = create.join().map_err(|_| anyhow!("a client panicked"))?;
            created.context("one was not served")?;
        }
        let status = served.process.wait()?;
        ensure!(status.success(), "resnap serve ended with {status}");
        Ok(asked.elapsed())
    })?;
    ensure!(took < GRACE, "it took {took:?}");
    ensure!(!served.socket.exists(), "its socket is left");
    ensure!(back.count(CREATE_CONTAINER) == CLIENTS as u64);
    drop(cri);
    Cri::connect(node.containerd.socket(), &node.containerd.scratch())?.remove_all()?;
    front.finish()?;
    back.finish()
}

/// A service for which no image is ever ready.
struct Endless;

#[async_trait]
impl UnpackService for Endless {
    async fn ensure(
        &self,
        _want: EnsureRequest<'_>,
        _tell: &(dyn Fn(EnsureProgress) + Send + Sync),
    ) -> Result<(), NotReady> {
        std::future::pending().await
    }

    async fn is_ready(
        &self,
        _image: &str,
        _snapshotter: &str,
        _pick: ManifestPreference,
    ) -> Result<bool, NotReady> {
        std::future::pending().await
    }

    async fn is_remote(&self, _image: &str, _snapshotter: &str) -> Result<bool, NotReady> {
        std::future::pending().await
    }
}

/// The work takes longer than the grace, which is short here.
fn proxy_answers_all_calls_when_it_stops(node: &Node) -> Result<()> {
    pulled(node)?;
    let direct = Cri::connect(node.containerd.socket(), &node.containerd.scratch())?;
    let sandbox = direct.run_pod_sandbox("erofs", "pod")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let socket = node.containerd.socket().with_file_name(unique("p"));
    let listener = {
        let _entered = runtime.enter();
        UnixListener::bind(&socket)?
    };
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let proxy = Proxy::new(
        node.containerd.socket(),
        Arc::new(Endless),
        ProxySettings::default(),
        None,
    );
    let serve = async move {
        let grace = Duration::from_secs(4);
        proxy.serve(listener, stopped, grace).await
    };
    let serving = runtime.spawn(serve);
    let front = front(&socket)?;
    std::thread::scope(|scope| {
        let creates = creates(scope, node, &front, &sandbox)?;
        stop.cancel();
        for create in creates {
            let created = create.join().map_err(|_| anyhow!("a client panicked"))?;
            let error = created.err().context("it was created")?;
            let status = error.downcast_ref::<Status>().context("no status")?;
            ensure!(status.code() == Code::Unavailable, "{status:?}");
            ensure!(status.message().contains("being stopped"), "{status:?}");
        }
        Ok(())
    })?;
    runtime.block_on(async { tokio::time::timeout(GRACE, serving).await })???;
    direct.remove_all()?;
    front.finish()
}

/// Returns a tap that tells how many calls have come.
fn front(socket: &std::path::Path) -> Result<Tap> {
    Tap::start(&socket.with_file_name(unique("f")), socket)
}

/// Clients that create a container each, once all have asked.
fn creates<'scope>(
    scope: &'scope Scope<'scope, '_>,
    node: &'scope Node,
    front: &'scope Tap,
    sandbox: &'scope Sandbox,
) -> Result<Vec<std::thread::ScopedJoinHandle<'scope, Result<Container>>>> {
    let reference = &hello()?.reference;
    let create = |number: usize| {
        let reference = reference.clone();
        scope.spawn(move || {
            let cri = Cri::connect(front.socket(), &node.containerd.scratch())?;
            cri.create_container(sandbox, &format!("c{number}"), &reference, &[])
        })
    };
    let all = (0..CLIENTS).map(create).collect();
    eventually("all clients have called", GRACE, || {
        Ok(front.count(CREATE_CONTAINER) == CLIENTS as u64)
    })?;
    // From the tap to the proxy.
    std::thread::sleep(Duration::from_millis(100));
    Ok(all)
}
