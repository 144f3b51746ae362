// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! One call on its way to containerd and back.

use std::future::{pending, poll_fn};
use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Error, RecvStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tonic::Status;
use tonic::codegen::http::request::Parts;
use tonic::codegen::http::{Request, Response};

use super::connection::Link;
use super::pump::{first_message, head, pump};
use super::record::Call;
use super::rule::{Action, Point, Step};

/// Why a call has no reply of containerd's to pass on.
enum Ended {
    /// It gets this answer of the tap's.
    Failed(Status),
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
    let mut asked = Asked {
        link: &link,
        call: &call,
        steps,
        upload: JoinSet::new(),
    };
    let reply = tokio::select! {
        reply = asked.ask(parts, head, body) => reply,
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
    };
    let passed = match reply {
        Ok(reply) => pass_on(&call, reply, &mut respond).await,
        Err(Ended::Failed(status)) => {
            let answer = status.into_http();
            call.answered(answer.headers());
            respond.send_response(answer, true).map(drop)
        }
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
    call.answered(&parts.headers);
    let end = body.is_end_stream();
    let mut to = respond.send_response(Response::from_parts(parts, ()), end)?;
    if !end {
        call.answered(&pump(Bytes::new(), body, &mut to).await?);
    }
    Ok(())
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
        self.upload.spawn(async move {
            // What ends it early ends the reply too, which tells.
            if pump(head, body, &mut to).await.is_ok() {
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
        let reply = reply.await?;
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
                Step::Do(Action::Fail(status)) => return Err(Ended::Failed(status)),
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
