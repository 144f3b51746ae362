// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! ```text
//! client ──► front tap ──► resnap serve ──► back tap ──► containerd
//! ```

use std::os::unix::net::UnixStream;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, SendStream};
use resnap_integration::tap::{Action, Answer, Call, End, Exchange, Method, Point, Tap};
use resnap_integration::wire::{Reply, Wire};
use tokio::runtime::Runtime;
use tonic::codegen::http::Request;

use crate::node::{Node, unique};
use crate::poll::{DEADLINE, eventually};
use crate::served::Served;

/// The calls that the proxy makes itself before the calls that it inspects.
const OWN: [&str; 6] = [
    "/runtime.v1.RuntimeService/Version",
    "/runtime.v1.RuntimeService/Status",
    "/runtime.v1.RuntimeService/ListPodSandbox",
    "/runtime.v1.RuntimeService/PodSandboxStatus",
    "/runtime.v1.ImageService/ImageFsInfo",
    "/runtime.v1.ImageService/ListImages",
];

/// A header of every request of the test.
const MARK: &str = "x-mark";

pub(super) struct TappedProxy {
    pub(super) front: Tap,
    pub(super) back: Tap,
    pub(super) runtime: Runtime,
    served: Served,
    wire: Wire,
}

impl TappedProxy {
    pub(super) fn start(node: &Node) -> Result<Self> {
        let back = node.containerd.tap()?;
        let served = Served::before(node, back.socket())?;
        let front = Tap::start(&served.socket.with_file_name(unique("f")), &served.socket)?;
        front.keep();
        back.keep();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        eventually("resnap serves", DEADLINE, || {
            Ok(UnixStream::connect(&served.socket).is_ok())
        })?;
        // Later, its own call would be taken for that of the test.
        let [last, ..] = OWN.map(Method::new);
        eventually("resnap knows containerd", DEADLINE, || {
            Ok(back.count(last) > 0)
        })?;
        let wire = runtime.block_on(Wire::connect(front.socket()))?;
        Ok(Self {
            front,
            back,
            runtime,
            served,
            wire,
        })
    }

    /// A call of which both taps see the same.
    pub(super) fn call(&self, path: &str, body: Bytes) -> Result<Reply> {
        let reply = self.asked(path, body)??;
        let (front, back) = self.last_pair(|_| true)?;
        ensure!(front == back, "{path} differs: {}", differ(&front, &back));
        Ok(reply)
    }

    /// Sends a call that is answered before its request is complete.
    pub(super) fn call_cut_short(&self, path: &str, body: Bytes) -> Result<Reply> {
        let reply = self.asked(path, body)??;
        let (mut front, mut back) = self.last_pair(|_| true)?;
        ensure!(front.request.body.starts_with(&back.request.body));
        for exchange in [&mut front, &mut back] {
            exchange.request.body.clear();
            exchange.request.end = None;
        }
        ensure!(front == back, "{path} differs: {}", differ(&front, &back));
        Ok(reply)
    }

    /// A call that is answered so in containerd's place; the client's end of it may be an error.
    pub(super) fn answered(
        &self,
        path: &'static str,
        answer: Answer,
    ) -> Result<Result<Reply, h2::Error>> {
        let action = Action::Answer(Box::new(answer));
        self.back.on(Method::new(path), 1, Point::Before, action);
        let reply = self.asked(path, Bytes::from_static(&[0; 5]))?;
        let (front, back) = self.last_pair(|pair| pair.0.reply.end.is_some())?;
        let same = front.reply == back.reply;
        ensure!(same, "{path} differs: {}", differ(&front, &back));
        Ok(reply)
    }

    /// A call that can go on.
    pub(super) fn open(
        &self,
        path: &str,
        body: Bytes,
    ) -> Result<(ResponseFuture, SendStream<Bytes>)> {
        self.runtime.block_on(async {
            let (reply, mut to) = self.wire.open(request(path)?).await?;
            to.send_data(body, true)?;
            Ok((reply, to))
        })
    }

    fn asked(&self, path: &str, body: Bytes) -> Result<Result<Reply, h2::Error>> {
        let request = request(path)?;
        let call = async { Ok(self.wire.call(request, body).await) };
        let reply = self.runtime.block_on(in_time(call));
        reply.with_context(|| format!("no answer to {path}"))
    }

    /// Waits until the last call is `complete`, and returns what both taps saw of it.
    pub(super) fn last_pair(
        &self,
        complete: impl Fn(&(Exchange, Exchange)) -> bool,
    ) -> Result<(Exchange, Exchange)> {
        let last = |tap: &Tap| {
            let last = tap.calls().into_iter().rfind(marked);
            last.map(|call| call.exchange())
        };
        let mut pair = None;
        eventually("the call has come through", DEADLINE, || {
            pair = last(&self.front).zip(last(&self.back)).filter(&complete);
            Ok(pair.is_some())
        })?;
        pair.context("no pair")
    }

    /// Checks that the cancellation of the last call reaches containerd, and all was equal until then.
    pub(super) fn taken_back(&self) -> Result<()> {
        let left = Some(End::Reset(Reason::CANCEL));
        let pair = self.last_pair(|pair| pair.1.request.end == left);
        let (front, mut back) = pair.context("nobody told containerd that the client left")?;
        // Data in transit when the client disconnected was lost.
        back.reply.body.truncate(front.reply.body.len());
        ensure!(front == back, "differs: {}", differ(&front, &back));
        Ok(())
    }

    /// Checks that no call was lost or made twice, and that the proxy ends without an error.
    pub(super) fn finish(self) -> Result<()> {
        let paths = |tap: &Tap, own: bool| -> Vec<String> {
            let calls = tap.calls().into_iter();
            let calls = calls.filter(|call| marked(call) != own);
            calls.map(|call| call.path).collect()
        };
        ensure!(paths(&self.front, false) == paths(&self.back, false));
        let own = paths(&self.back, true);
        let strange = own
            .iter()
            .find(|path| path.starts_with("/runtime.") && !OWN.contains(&path.as_str()));
        ensure!(strange.is_none(), "the proxy called {strange:?} itself");
        drop(self.wire);
        self.served.stop()?;
        self.front.finish()?;
        self.back.finish()
    }
}

fn marked(call: &Call) -> bool {
    call.exchange().request.headers.contains_key(MARK)
}

/// Returns a request with metadata that must not be sorted, joined or decoded.
fn request(path: &str) -> Result<Request<()>> {
    let request = Wire::to(path)
        .header(MARK, "1")
        .header("user-agent", "grpc-nobody/9")
        .header("grpc-timeout", "19S")
        .header("grpc-accept-encoding", "identity")
        .header(
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
        .header("x-some", "two, one")
        .header("x-other", "")
        .header("x-some", "one")
        .header("x-some-bin", "//79")
        .header("x-some-bin", "AAE");
    Ok(request.body(())?)
}

/// Returns the result of `work`, which may not take longer than [`DEADLINE`].
pub(super) async fn in_time<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let done = tokio::time::timeout(DEADLINE, work).await;
    done.context("it takes too long")?
}

/// Describes the differences of two exchanges without their bodies.
fn differ(front: &Exchange, back: &Exchange) -> String {
    let mut text = String::new();
    for (name, front, back) in [
        ("request", &front.request, &back.request),
        ("reply", &front.reply, &back.reply),
    ] {
        if front != back {
            let show = |half: &resnap_integration::tap::Half| {
                format!(
                    "{:?} {:?}, {} bytes, {:?} {:?}",
                    half.start,
                    half.headers,
                    half.body.len(),
                    half.trailers,
                    half.end
                )
            };
            text += &format!(
                "\n{name} front: {}\n{name} back: {}",
                show(front),
                show(back)
            );
        }
    }
    text
}
