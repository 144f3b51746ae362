// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A call on its way to containerd and back.

use std::future::poll_fn;
use std::pin::pin;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{Error, Reason, RecvStream};
use http::{Request, Response};
use resnap_core::Kind;

use crate::after_pull;
use crate::body::{FirstBytes, PumpError, pump};
use crate::call_record::CallRecord;
use crate::deadline::Deadline;
use crate::grpc::{Outcome, Status, ok_trailers, outcome_in, response_head};
use crate::inspection::{Inspected, InspectedRequest, Inspection, inspect, is_inspected};
use crate::new_sandbox::NewSandbox;
use crate::preflight::{Resolution, ensure_later};
use crate::pull_credentials::{REMOVE_POD_SANDBOX, forget_removed};
use crate::shutdown::{Shutdown, ShutdownPhase, stopping};
use crate::state::ClientContext;

/// Why a call got no complete response of containerd.
enum CallError {
    /// The client gets this error instead.
    Status(Status),
    /// containerd reset the stream of the call.
    BackendReset(Reason),
    /// The client reset it.
    ClientReset(Reason),
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// A call of a client.
pub(crate) struct ProxiedCall<'a> {
    pub(crate) client: &'a ClientContext,
    pub(crate) shutdown: &'a Shutdown,
}

impl ProxiedCall<'_> {
    /// Serves the call until it ends. Dropping the future cancels the call in containerd.
    pub(crate) async fn serve(
        self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) {
        let observer = self.client.state.observer.as_ref();
        let record = CallRecord::start(observer, request.uri().path());
        let deadline = Deadline::of(request.headers());
        let is_over = || deadline.is_some_and(Deadline::is_over);
        let mut sandbox = None;
        match self.forward(request, &mut respond).await {
            Ok((outcome, created)) => {
                record.set_outcome(outcome);
                sandbox = created;
            }
            Err(CallError::ClientReset(_)) if is_over() => {
                record.set_outcome(Err(Kind::DeadlineExceeded));
            }
            Err(CallError::ClientReset(_)) => {}
            Err(CallError::BackendReset(reason)) => {
                // containerd resets calls past their deadline, too.
                let kind = if is_over() {
                    Kind::DeadlineExceeded
                } else {
                    Kind::Unavailable
                };
                record.set_outcome(Err(kind));
                respond.send_reset(reason);
            }
            Err(CallError::Status(status)) => {
                record.set_outcome(Err(status.kind));
                // Sending fails only if the client has gone.
                let _ = respond.send_response(status.into_response(), true);
            }
        }
        drop(record);
        if let Some(sandbox) = sandbox {
            tokio::select! {
                () = sandbox.look(self.client) => {}
                () = self.shutdown.reached(ShutdownPhase::Draining) => {}
            }
        }
    }

    /// Forwards the request and the response. Returns the outcome, and the sandbox that was created.
    async fn forward(
        &self,
        request: Request<RecvStream>,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<(Outcome, Option<NewSandbox>), CallError> {
        let (head, mut body) = request.into_parts();
        let (first, inspected) = if is_inspected(self.client, head.uri.path()) {
            // Boxed, since few calls are inspected, and the future of every call would be as large.
            let inspect = Box::pin(inspect(self.client, &head, &mut body));
            match self.while_client_waits(respond, inspect).await? {
                Inspection::Forward(first, inspected) => (first, inspected),
                Inspection::Answer(body) => return Ok((answer(respond, body)?, None)),
            }
        } else {
            (FirstBytes::default(), Inspected::None)
        };
        // A request without a body must end with its headers, as it came.
        let end = first.is_empty() && body.is_end_stream();
        let removes_pod = head.uri.path() == REMOVE_POD_SANDBOX;
        let request = Request::from_parts(head, ());
        let (response, mut to) = self.client.backend.send_request(request, end).await?;
        let mut sandbox = inspected.request().and_then(InspectedRequest::new_sandbox);
        let result = {
            let inspected = inspected.request();
            let upload = async {
                if end {
                    return Ok(());
                }
                tokio::select! {
                    biased;
                    // An error here also ends the response, which then reports it.
                    _ = pump(first, &mut body, &mut to, |_| ()) => Ok(()),
                    evicted = evicted(inspected) => Err(evicted),
                }
            };
            let mut upload = pin!(upload);
            let download = self.forward_response(response, inspected, respond, &mut sandbox);
            let mut download = pin!(download);
            tokio::select! {
                biased;
                result = &mut download => result,
                sent = &mut upload => match sent {
                    Ok(()) => download.await,
                    Err(status) => Err(status.into()),
                },
            }
        };
        match (&result, inspected) {
            (Err(CallError::ClientReset(reason)), _) => to.send_reset(*reason),
            // Before anything else of the client is read, as it may ask for the image next.
            (Ok(Ok(())), Inspected::Pull(pull)) => after_pull::start(self.client, pull),
            (Ok(Err(_)), Inspected::Pull(pull)) => after_pull::fail(self.client, &pull),
            (Ok(Ok(())), Inspected::None) if removes_pod => forget_removed(self.client),
            _ => {}
        }
        let outcome = result?;
        Ok((outcome, sandbox.filter(|_| outcome.is_ok())))
    }

    /// Runs `work` until the client resets the call or the proxy stops.
    async fn while_client_waits<T>(
        &self,
        respond: &mut SendResponse<Bytes>,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, CallError> {
        tokio::select! {
            biased;
            reason = client_reset(respond) => Err(CallError::ClientReset(reason)),
            () = self.shutdown.reached(ShutdownPhase::Ending) => Err(stopping().into()),
            result = work => Ok(result?),
        }
    }

    /// Forwards the response of containerd, or that to a second request if containerd failed to
    /// unpack an image at the first.
    async fn forward_response(
        &self,
        response: ResponseFuture,
        inspected: Option<&InspectedRequest<'_>>,
        respond: &mut SendResponse<Bytes>,
        sandbox: &mut Option<NewSandbox>,
    ) -> Result<Outcome, CallError> {
        let mut response = self.receive_head(response, respond).await?;
        if let Some(inspected) = inspected
            && let Some(request) = &inspected.request
        {
            // containerd sends errors in headers only, without a body.
            if let Some(status) = Status::in_headers(response.headers()) {
                let preflight = inspected.preflight(request);
                let retry = Box::pin(preflight.retry(&status));
                // If the request was evicted, the client gets the first response.
                if self.while_client_waits(respond, retry).await?
                    && let Some(bytes) = inspected.held.bytes()
                {
                    let request = Request::from_parts(inspected.head.clone(), ());
                    let (next, mut to) = self.client.backend.send_request(request, false).await?;
                    let sent = to.send_data(bytes, true);
                    sent.map_err(|error| self.backend_error(&error))?;
                    response = self.receive_head(next, respond).await?;
                }
            } else if inspected.resolution == Resolution::Unknown {
                ensure_later(self.client, request.clone());
            }
        }
        self.forward_body(response, respond, sandbox).await
    }

    async fn forward_body(
        &self,
        response: Response<RecvStream>,
        respond: &mut SendResponse<Bytes>,
        sandbox: &mut Option<NewSandbox>,
    ) -> Result<Outcome, CallError> {
        let (head, mut from) = response.into_parts();
        let end = from.is_end_stream();
        let outcome = outcome_in(&head.headers);
        let sent = respond.send_response(Response::from_parts(head, ()), end);
        let mut to = sent.map_err(|error| client_error(&error))?;
        if end {
            return Ok(outcome.unwrap_or(Err(Kind::Unknown)));
        }
        let on_data = |bytes: &Bytes| {
            if let Some(sandbox) = sandbox {
                sandbox.add(bytes);
            }
        };
        let result = tokio::select! {
            biased;
            pumped = pump(FirstBytes::default(), &mut from, &mut to, on_data) => {
                pumped.map_err(|error| match error {
                    PumpError::Read(error) => self.backend_error(&error),
                    PumpError::Write(error) => client_error(&error),
                })
            }
            () = self.shutdown.ends_streams() => Err(stopping().into()),
        };
        match result {
            Ok(outcome) => Ok(outcome.unwrap_or(Err(Kind::Unknown))),
            Err(CallError::Status(status)) => {
                let kind = status.kind;
                // The headers have been sent: the error can only be in the trailers.
                let _ = to.send_trailers(status.into_trailers());
                Ok(Err(kind))
            }
            Err(error) => Err(error),
        }
    }

    /// Waits for the headers of the response.
    async fn receive_head(
        &self,
        response: ResponseFuture,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<Response<RecvStream>, CallError> {
        tokio::select! {
            biased;
            response = response => response.map_err(|error| self.backend_error(&error)),
            reason = client_reset(respond) => Err(CallError::ClientReset(reason)),
            () = self.shutdown.reached(ShutdownPhase::Ending) => Err(stopping().into()),
        }
    }

    fn backend_error(&self, error: &Error) -> CallError {
        match error.reason().filter(|_| error.is_reset()) {
            Some(reason) => CallError::BackendReset(reason),
            None => CallError::Status(self.client.backend.connection_error(error)),
        }
    }
}

/// Sends a response of the proxy's own.
fn answer(respond: &mut SendResponse<Bytes>, body: Bytes) -> Result<Outcome, CallError> {
    let sent = respond.send_response(response_head(), false);
    let mut to = sent.map_err(|error| client_error(&error))?;
    let sent = to.send_data(body, false);
    let sent = sent.and_then(|()| to.send_trailers(ok_trailers()));
    sent.map_err(|error| client_error(&error))?;
    Ok(Ok(()))
}

/// Waits until the request is evicted, if it was inspected. Returns the response to its caller.
async fn evicted(inspected: Option<&InspectedRequest<'_>>) -> Status {
    match inspected {
        Some(inspected) => inspected.evicted().await,
        None => std::future::pending().await,
    }
}

fn client_error(error: &Error) -> CallError {
    CallError::ClientReset(error.reason().unwrap_or(Reason::CANCEL))
}

/// Waits until the client resets the call.
async fn client_reset(respond: &mut SendResponse<Bytes>) -> Reason {
    let reset = poll_fn(|cx| respond.poll_reset(cx)).await;
    reset.unwrap_or(Reason::CANCEL)
}
