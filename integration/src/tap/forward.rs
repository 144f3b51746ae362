// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! One call on its way to containerd and back.

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Error, RecvStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tonic::codegen::http::request::Parts;
use tonic::codegen::http::{Request, Response};

use super::call::Call;
use super::exchange::{End, Way};
use super::link::Link;
use super::pump::{first_message, head, pump, send};
use super::rule::{Action, Answer, Point, Step};

/// The time between the data of an answer and the reset that ends it.
const BEFORE_RESET: Duration = Duration::from_millis(50);

/// Why a call has no reply of containerd's to pass on.
enum Ended {
    /// It gets this answer of the tap's.
    Answered(Box<Answer>),
    Broken(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Broken(error)
    }
}

/// Serves one call. Dropping it takes it back from containerd; so does a client that takes it back.
pub(super) async fn serve(
    link: Arc<Link>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (parts, mut body) = request.into_parts();
    let Ok(head) = head(&mut body).await else {
        return;
    };
    let (call, steps) = link.shared.arrived(parts.uri.path(), first_message(&head));
    call.note(Way::Request, |half| {
        half.start = format!("{} {}", parts.method, parts.uri);
        half.headers = parts.headers.clone();
        half.body.extend_from_slice(&head);
        half.end = body.is_end_stream().then_some(End::Stream);
    });
    let mut asked = Asked {
        link: &link,
        call: &call,
        steps,
        upload: JoinSet::new(),
    };
    let reply = tokio::select! {
        reply = asked.ask(parts, head, body) => reply,
        reason = poll_fn(|cx| respond.poll_reset(cx)) => {
            let end = reason.ok().map(End::Reset);
            return call.note(Way::Request, |half| half.end = end);
        }
    };
    let passed = match reply {
        Ok(reply) => pass_on(&call, reply, &mut respond).await,
        Err(Ended::Answered(answer)) => give(&call, *answer, &mut respond).await,
        Err(Ended::Broken(error)) => Err(error),
    };
    match passed {
        Err(error) if error.is_reset() => {
            if let Some(reason) = error.reason() {
                respond.send_reset(reason);
            }
        }
        // The client is to see its connection end, not this stream.
        Err(_) => pending().await,
        Ok(()) => {}
    }
}

async fn pass_on(
    call: &Call,
    reply: Response<RecvStream>,
    respond: &mut SendResponse<Bytes>,
) -> Result<(), Error> {
    let (parts, body) = reply.into_parts();
    let end = body.is_end_stream();
    let mut to = begin(call, Response::from_parts(parts, ()), end, respond)?;
    if !end {
        call.answered(&pump(Bytes::new(), body, &mut to, call, Way::Reply).await?);
    }
    Ok(())
}

/// Answers the call in place of containerd.
async fn give(call: &Call, answer: Answer, respond: &mut SendResponse<Bytes>) -> Result<(), Error> {
    if let Some(reason) = answer.reset.filter(|_| answer.headers.is_empty()) {
        call.note(Way::Reply, |half| half.end = Some(End::Reset(reason)));
        respond.send_reset(reason);
        return Ok(());
    }
    let mut head = Response::new(());
    *head.headers_mut() = answer.headers;
    let end = answer.body.is_empty() && answer.trailers.is_empty() && answer.reset.is_none();
    let mut to = begin(call, head, end, respond)?;
    if end {
        return Ok(());
    }
    call.note(Way::Reply, |half| {
        half.body.extend_from_slice(&answer.body);
        half.end = Some(answer.reset.map_or(End::Stream, End::Reset));
        if answer.reset.is_none() {
            half.trailers = answer.trailers.clone();
        }
    });
    send(answer.body, &mut to, false).await?;
    call.answered(&answer.trailers);
    match answer.reset {
        Some(reason) => {
            // h2 forgets what it has not written when a reset comes.
            tokio::time::sleep(BEFORE_RESET).await;
            to.send_reset(reason);
            Ok(())
        }
        None => to.send_trailers(answer.trailers),
    }
}

fn begin(
    call: &Call,
    head: Response<()>,
    end: bool,
    respond: &mut SendResponse<Bytes>,
) -> Result<h2::SendStream<Bytes>, Error> {
    call.answered(head.headers());
    call.note(Way::Reply, |half| {
        half.start = head.status().to_string();
        half.headers = head.headers().clone();
        half.end = end.then_some(End::Headers);
    });
    respond.send_response(head, end)
}

struct Asked<'a> {
    link: &'a Link,
    call: &'a Call,
    steps: Vec<(Point, Step)>,
    /// A client may go on sending after the reply has begun; ends with the call.
    upload: JoinSet<()>,
}

impl Asked<'_> {
    /// Asks containerd, and does to the call what is to be done to it until the reply is passed on.
    async fn ask(
        &mut self,
        parts: Parts,
        head: Bytes,
        body: RecvStream,
    ) -> Result<Response<RecvStream>, Ended> {
        self.at(Point::Before).await?;
        let mut backend = self.link.backend.clone().ready().await?;
        let (reply, mut to) = backend.send_request(Request::from_parts(parts, ()), false)?;
        let (send, sent) = oneshot::channel();
        let call = self.call.clone();
        self.upload.spawn(async move {
            // An early end of the request also ends the reply, which reports it.
            let pumped = pump(head, body, &mut to, &call, Way::Request).await;
            if pumped.is_ok() {
                let _ = send.send(());
            }
        });
        // The rest asks nothing of containerd that nobody asked of the tap.
        if self.steps.iter().any(|(point, _)| *point == Point::During) {
            if sent.await.is_ok() {
                self.link.sync().await?;
            }
            self.at(Point::During).await?;
        }
        let reply = reply.await.inspect_err(|error| {
            let reason = error.reason().filter(|_| error.is_reset());
            let end = reason.map(End::Reset);
            self.call.note(Way::Reply, |half| half.end = end);
        })?;
        self.at(Point::After).await?;
        Ok(reply)
    }

    async fn at(&mut self, now: Point) -> Result<(), Ended> {
        let due: Vec<_> = self
            .steps
            .extract_if(.., |(point, _)| *point == now)
            .collect();
        for (_, step) in due {
            match step {
                Step::Hold(gate) => gate.pass(self.call).await,
                Step::Do(Action::Delay(time)) => tokio::time::sleep(time).await,
                Step::Do(Action::Fail(status)) => {
                    return Err(Ended::Answered(Box::new(status.into())));
                }
                Step::Do(Action::Answer(answer)) => return Err(Ended::Answered(answer)),
                Step::Do(Action::Hang) => pending().await,
                Step::Do(Action::Cut) => {
                    self.link.cut();
                    pending().await
                }
                Step::Do(Action::Kill(side)) => {
                    self.link.kill(side);
                    pending().await
                }
            }
        }
        Ok(())
    }
}
