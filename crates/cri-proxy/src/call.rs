// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! One call on its way to containerd and back.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{Error, Reason, RecvStream};
use http::request::Parts;
use http::{Request, Response};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::backend::Backend;
use crate::body::{FirstBytes, PeekedRequest, PumpError, pump};
use crate::call_record::CallRecord;
use crate::deadline::Deadline;
use crate::grpc::{
    DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, Status, UNAVAILABLE, UNKNOWN, code_in, decode,
};
use crate::held::HeldRequest;
use crate::observe::{ForwardReason, ProxyEvent};
use crate::pass::{LAST_RESERVE, ProxyState, ShutdownPhase};
use crate::peek::{self, SkipEffect};
use crate::preflight::{Preflight, Resolution, ensure_later};
use crate::requirements::CriRequest;

const CREATE_CONTAINER: &str = "/runtime.v1.RuntimeService/CreateContainer";
const RUN_POD_SANDBOX: &str = "/runtime.v1.RuntimeService/RunPodSandbox";

/// How long a message that is looked into may take to come: clients send it at once.
const ARRIVAL: Duration = Duration::from_secs(5);

/// How long it may wait for room: others arrive at once, too.
const ROOM: Duration = Duration::from_secs(1);

/// Why a call has no answer of containerd's, or not all of it.
enum CallError {
    /// The client is told so.
    Failed(Status),
    /// containerd broke this call off, and nothing else.
    Reset(Reason),
    /// The client did.
    Left(Reason),
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self::Failed(status)
    }
}

/// A call's way, and who is concerned with it.
pub(crate) struct ProxiedCall<'a> {
    pub(crate) proxy: &'a Arc<ProxyState>,
    /// Where the unpack service is at home.
    pub(crate) service_runtime: &'a Handle,
    pub(crate) backend: &'a Backend,
    pub(crate) phase: &'a watch::Receiver<ShutdownPhase>,
}

/// What was found out about a call whose image may have had to be made ready.
struct InspectedRequest<'a> {
    /// The request.
    kept: HeldRequest<'a>,
    head: Parts,
    deadline: Option<Deadline>,
    /// `None` if it cannot be understood.
    call: Option<CriRequest>,
    resolution: Resolution,
}

impl<'a> ProxiedCall<'a> {
    /// Serves the call to its end. Dropping it takes it back from containerd.
    pub(crate) async fn serve(
        self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) {
        let counted = CallRecord::begin(self.proxy.observer.as_ref(), request.uri().path());
        let deadline = Deadline::of(request.headers());
        let is_over = || deadline.is_some_and(Deadline::is_over);
        let ended = self.pass(request, &mut respond).await;
        match ended {
            Ok(code) => counted.ends_with(code),
            Err(CallError::Left(_)) if is_over() => counted.ends_with(DEADLINE_EXCEEDED),
            Err(CallError::Left(_)) => {}
            Err(CallError::Reset(reason)) => {
                // containerd breaks off what took too long, too.
                let code = if is_over() {
                    DEADLINE_EXCEEDED
                } else {
                    UNAVAILABLE
                };
                counted.ends_with(code);
                respond.send_reset(reason);
            }
            Err(CallError::Failed(status)) => {
                counted.ends_with(status.code);
                // If the client has gone, it is told to nobody.
                let _ = respond.send_response(status.into_response(), true);
            }
        }
    }

    /// Passes the call on, and back what containerd answers; gives gRPC's code.
    async fn pass(
        &self,
        request: Request<RecvStream>,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<u16, CallError> {
        let (head, mut body) = request.into_parts();
        let (first, looked) = match head.uri.path() {
            CREATE_CONTAINER | RUN_POD_SANDBOX => {
                // Few calls are looked at, and all would be as large.
                let look = Box::pin(self.look(&head, &mut body));
                self.while_there(respond, look).await?
            }
            _ => Default::default(),
        };
        let end = first.bytes.is_empty() && body.is_end_stream();
        let (reply, mut to) = self
            .backend
            .begin(Request::from_parts(head, ()), end)
            .await?;
        let passed = {
            let looked = looked.as_ref();
            let up = async {
                if end {
                    return Ok(());
                }
                tokio::select! {
                    biased;
                    // What ends it early ends the answer too, which tells.
                    _ = pump(first, &mut body, &mut to) => Ok(()),
                    crowded = crowded(looked) => Err(crowded),
                }
            };
            let mut up = pin!(up);
            let mut down = pin!(self.answer(reply, looked, respond));
            tokio::select! {
                biased;
                passed = &mut down => passed,
                sent = &mut up => match sent {
                    Ok(()) => down.await,
                    Err(status) => Err(status.into()),
                },
            }
        };
        if let Err(CallError::Left(reason)) = passed {
            to.send_reset(reason);
        }
        passed
    }

    /// Does something for a client for as long as that waits.
    async fn while_there<T>(
        &self,
        respond: &mut SendResponse<Bytes>,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, CallError> {
        tokio::select! {
            biased;
            reason = left(respond) => Err(CallError::Left(reason)),
            () = reached(self.phase, ShutdownPhase::Ending) => Err(stopping().into()),
            ended = work => Ok(ended?),
        }
    }

    /// Before calls whose image may have to be made ready.
    async fn look(
        &self,
        head: &Parts,
        body: &mut RecvStream,
    ) -> Result<(FirstBytes, Option<InspectedRequest<'a>>), Status> {
        let deadline = Deadline::of(&head.headers);
        let late = |_| {
            let text = format!("the request's message did not come within {ARRIVAL:?}");
            Status::new(DEADLINE_EXCEEDED, text)
        };
        let mut peeked = PeekedRequest::begin(body);
        let arrive = self.arrive(head.uri.path(), &mut peeked);
        let request = tokio::time::timeout(ARRIVAL, arrive)
            .await
            .map_err(late)??;
        let Some(request) = request else {
            return Ok((peeked.part(), None));
        };
        let call = match head.uri.path() {
            CREATE_CONTAINER => decode(&request).map(CriRequest::CreateContainer),
            _ => decode(&request).map(CriRequest::RunPodSandbox),
        };
        let mut looked = InspectedRequest {
            kept: self.proxy.waiting.keep(request),
            head: head.clone(),
            deadline,
            call,
            resolution: Resolution::Known,
        };
        if let Some(call) = &looked.call {
            let look = self.preflight(call, deadline, &looked.kept);
            looked.resolution = tokio::select! {
                biased;
                resolution = look.before() => resolution?,
                crowded = crowded(Some(&looked)) => return Err(crowded),
            };
        }
        let Some(bytes) = looked.kept.bytes() else {
            return Err(crowded(Some(&looked)).await);
        };
        Ok((FirstBytes { bytes, held: 0 }, Some(looked)))
    }

    /// The whole request, if it is to be looked into.
    async fn arrive(
        &self,
        path: &str,
        peeked: &mut PeekedRequest<'_>,
    ) -> Result<Option<Bytes>, Status> {
        peeked.read_share().await?;
        if let Some(whole) = peeked.whole()? {
            return Ok(Some(whole));
        }
        let Some(length) = peeked.length() else {
            return Ok(None);
        };
        let unseen = match path {
            CREATE_CONTAINER => peek::container(self.proxy, self.backend, peeked.bytes()).await,
            _ => peek::any(self.proxy, self.backend).await,
        };
        // What containerd does not tell about, it does not take.
        let unseen = unseen.unwrap_or(SkipEffect::NoDifference);
        if unseen == SkipEffect::NoDifference {
            return Ok(None);
        }
        let count = u32::try_from(length).unwrap_or(u32::MAX);
        let room = self.proxy.peek_budget.acquire_many(count);
        match (tokio::time::timeout(ROOM, room).await, unseen) {
            (Ok(Ok(_room)), _) => {
                peeked.read_to(length).await?;
                peeked.whole()
            }
            (_, SkipEffect::WrongContent) => Err(Status::new(
                RESOURCE_EXHAUSTED,
                "other large requests arrive, and do not come to their ends: try again",
            )),
            (_, SkipEffect::Slower | SkipEffect::NoDifference) => {
                tracing::info!(
                    path,
                    length,
                    "a request was not looked into: it had no room"
                );
                self.proxy
                    .on_event(&ProxyEvent::Forwarded(ForwardReason::Unresolved));
                Ok(None)
            }
        }
    }

    fn preflight<'b>(
        &'b self,
        call: &'b CriRequest,
        deadline: Option<Deadline>,
        kept: &'b HeldRequest<'_>,
    ) -> Preflight<'b> {
        Preflight {
            proxy: self.proxy,
            backend: self.backend,
            service_runtime: self.service_runtime,
            call,
            deadline,
            kept: Some(kept),
        }
    }

    /// Passes on what containerd answers, of a second try if it could not unpack at the first.
    async fn answer(
        &self,
        reply: ResponseFuture,
        looked: Option<&InspectedRequest<'_>>,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<u16, CallError> {
        let mut reply = self.reply(reply, respond).await?;
        if let Some(looked) = looked
            && let Some(call) = &looked.call
        {
            // containerd tells errors in headers only.
            let failed = Status::in_headers(reply.headers());
            if let Some(status) = failed {
                let look = self.preflight(call, looked.deadline, &looked.kept);
                let again = Box::pin(look.again(&status));
                // Without the request, the caller gets the answer that there is.
                if self.while_there(respond, again).await?
                    && let Some(bytes) = looked.kept.bytes()
                {
                    let request = Request::from_parts(looked.head.clone(), ());
                    let (next, mut to) = self.backend.begin(request, false).await?;
                    let sent = to.send_data(bytes, true);
                    sent.map_err(|error| self.backend_broke(&error))?;
                    reply = self.reply(next, respond).await?;
                }
            } else if looked.resolution == Resolution::Unknown {
                ensure_later(self.proxy, self.service_runtime, call.clone());
            }
        }
        let (head, mut from) = reply.into_parts();
        let end = from.is_end_stream();
        let code = code_in(&head.headers);
        let sent = respond.send_response(Response::from_parts(head, ()), end);
        let mut to = sent.map_err(|error| client_broke(&error))?;
        if end {
            return Ok(code.unwrap_or(UNKNOWN));
        }
        let passed = tokio::select! {
            biased;
            passed = pump(FirstBytes::default(), &mut from, &mut to) => passed.map_err(|broken| match broken {
                PumpError::From(error) => self.backend_broke(&error),
                PumpError::To(error) => client_broke(&error),
            }),
            () = endless(self.phase) => Err(stopping().into()),
        };
        match passed {
            Ok(code) => Ok(code.unwrap_or(UNKNOWN)),
            Err(CallError::Failed(status)) => {
                let code = status.code;
                // Of an answer that has begun, it is the end.
                let _ = to.send_trailers(status.into_trailers());
                Ok(code)
            }
            Err(ended) => Err(ended),
        }
    }

    /// Waits for the beginning of containerd's answer.
    async fn reply(
        &self,
        reply: ResponseFuture,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<Response<RecvStream>, CallError> {
        tokio::select! {
            biased;
            reply = reply => reply.map_err(|error| self.backend_broke(&error)),
            reason = left(respond) => Err(CallError::Left(reason)),
            () = reached(self.phase, ShutdownPhase::Ending) => Err(stopping().into()),
        }
    }

    fn backend_broke(&self, error: &Error) -> CallError {
        match error.reason().filter(|_| error.is_reset()) {
            Some(reason) => CallError::Reset(reason),
            None => CallError::Failed(self.backend.broke_off(error)),
        }
    }
}

/// Waits until there is no more room for a request that waits; the answer to its caller.
async fn crowded(looked: Option<&InspectedRequest<'_>>) -> Status {
    match looked {
        Some(looked) => looked.kept.given_up().await,
        None => std::future::pending().await,
    }
    let text = "it is the largest of more requests than can wait at once: try again";
    Status::new(RESOURCE_EXHAUSTED, text)
}

fn client_broke(error: &Error) -> CallError {
    CallError::Left(error.reason().unwrap_or(Reason::CANCEL))
}

/// Waits until the client takes the call back.
async fn left(respond: &mut SendResponse<Bytes>) -> Reason {
    let reset = poll_fn(|cx| respond.poll_reset(cx)).await;
    reset.unwrap_or(Reason::CANCEL)
}

async fn reached(phase: &watch::Receiver<ShutdownPhase>, target: ShutdownPhase) {
    if phase
        .clone()
        .wait_for(|phase| *phase >= target)
        .await
        .is_err()
    {
        // Who stops the proxy has gone without doing so.
        std::future::pending().await
    }
}

/// Waits until an answer that has begun will not end by itself: one that begins late has its time.
async fn endless(phase: &watch::Receiver<ShutdownPhase>) {
    reached(phase, ShutdownPhase::NoStreams).await;
    tokio::time::sleep(LAST_RESERVE).await;
}

fn stopping() -> Status {
    Status::new(UNAVAILABLE, "resnap is being stopped")
}
