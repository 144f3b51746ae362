// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Reading the requests that may need an image, before they are forwarded.

use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use http::request::Parts;
use resnap_core::Kind;

use crate::body::{FirstBytes, PeekedRequest};
use crate::deadline::Deadline;
use crate::failures::Failures;
use crate::grpc::{Status, append, decode, encode};
use crate::held::HeldRequest;
use crate::image_status;
use crate::limits::MAX_PEEKED;
use crate::messages::ImageStatusResponse;
use crate::new_sandbox::NewSandbox;
use crate::observe::{ForwardReason, ProxyEvent};
use crate::peek::{self, SkipEffect};
use crate::pods;
use crate::preflight::{Preflight, Resolution};
use crate::pull_credentials;
use crate::requirements::CriRequest;
use crate::settings::When;
use crate::state::ClientContext;
use crate::steering::{self, ClientPull, PullTarget};

const CREATE_CONTAINER: &str = "/runtime.v1.RuntimeService/CreateContainer";
const RUN_POD_SANDBOX: &str = "/runtime.v1.RuntimeService/RunPodSandbox";
const PULL_IMAGE: &str = "/runtime.v1.ImageService/PullImage";
const IMAGE_STATUS: &str = "/runtime.v1.ImageService/ImageStatus";

/// The time in which an inspected message must arrive. Clients send it at once.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(5);

/// The time that a request waits for bytes of the peek budget, which other requests give back when
/// they have arrived.
const BUDGET_TIMEOUT: Duration = Duration::from_secs(1);

/// An inspected request.
pub(crate) struct InspectedRequest<'a> {
    client: &'a ClientContext,
    pub(crate) held: HeldRequest<'a>,
    pub(crate) head: Parts,
    deadline: Option<Deadline>,
    /// `None` if the message cannot be decoded.
    pub(crate) request: Option<CriRequest>,
    pub(crate) resolution: Resolution,
    failures: Failures,
}

impl InspectedRequest<'_> {
    pub(crate) fn preflight<'b>(&'b self, request: &'b CriRequest) -> Preflight<'b> {
        Preflight {
            client: self.client,
            request,
            deadline: self.deadline,
            held: Some(&self.held),
            failures: &self.failures,
        }
    }

    /// Returns the sandbox that the request asks for, if it asks for one.
    pub(crate) fn new_sandbox(&self) -> Option<NewSandbox> {
        match &self.request {
            Some(CriRequest::RunPodSandbox(request)) => Some(NewSandbox::new(request.clone())),
            Some(CriRequest::CreateContainer(_)) | None => None,
        }
    }

    /// Waits until the request is evicted. Returns the response to its caller.
    pub(crate) async fn evicted(&self) -> Status {
        self.held.evicted().await;
        let text = "too many requests wait, and this is the largest of them: try again";
        Status::new(Kind::ResourceExhausted, text)
    }
}

/// The decision about a call after the inspection of its request.
pub(crate) enum Inspection<'a> {
    /// The request is forwarded, these bytes first.
    Forward(FirstBytes, Inspected<'a>),
    /// The caller gets this message.
    Answer(Bytes),
}

/// The inspected part of a request that is forwarded.
pub(crate) enum Inspected<'a> {
    /// Nothing that matters later.
    None,
    /// A request that needs images.
    Request(Box<InspectedRequest<'a>>),
    Pull(ClientPull),
}

impl<'a> Inspected<'a> {
    pub(crate) fn request(&self) -> Option<&InspectedRequest<'a>> {
        match self {
            Self::Request(request) => Some(request),
            Self::None | Self::Pull(_) => None,
        }
    }
}

/// Returns whether requests to `path` may need an image, bring credentials for one, or ask for one.
pub(crate) fn is_inspected(client: &ClientContext, path: &str) -> bool {
    match path {
        CREATE_CONTAINER | RUN_POD_SANDBOX | PULL_IMAGE => true,
        IMAGE_STATUS => client.state.discovery.settings.image_status != When::Never,
        _ => false,
    }
}

/// Reads a request and makes its images ready.
///
/// # Errors
/// The response to the caller, if the request must not be forwarded.
pub(crate) async fn inspect<'a>(
    client: &'a ClientContext,
    head: &Parts,
    body: &mut RecvStream,
) -> Result<Inspection<'a>, Status> {
    let deadline = Deadline::of(&head.headers);
    let path = head.uri.path();
    let mut peeked = PeekedRequest::new(body);
    let received = tokio::time::timeout(ARRIVAL_TIMEOUT, receive(client, path, &mut peeked));
    let received = received.await.map_err(|_| {
        let text = format!("the message of the request did not arrive within {ARRIVAL_TIMEOUT:?}");
        Status::new(Kind::DeadlineExceeded, text)
    })?;
    let Some(bytes) = received? else {
        return Ok(Inspection::Forward(
            peeked.into_first_bytes(),
            Inspected::None,
        ));
    };
    let request = match path {
        PULL_IMAGE => return Ok(inspect_pull(client, head, bytes).await),
        IMAGE_STATUS => return inspect_image_status(client, deadline, bytes).await,
        CREATE_CONTAINER => decode(&bytes).map(CriRequest::CreateContainer),
        _ => decode(&bytes).map(|mut request| {
            pods::keep_only_config_seen(&mut request);
            CriRequest::RunPodSandbox(request)
        }),
    };
    let mut inspected = InspectedRequest {
        client,
        held: client.state.held.hold(bytes),
        head: head.clone(),
        deadline,
        request,
        resolution: Resolution::Known,
        failures: Failures::default(),
    };
    if inspected.request.is_none() && client.state.discovery.needs_proofs() {
        return Err(unreadable());
    }
    if let Some(request) = &inspected.request {
        let preflight = inspected.preflight(request);
        inspected.resolution = tokio::select! {
            biased;
            resolution = preflight.before() => resolution?,
            evicted = inspected.evicted() => return Err(evicted),
        };
    }
    let Some(bytes) = inspected.held.bytes() else {
        return Err(inspected.evicted().await);
    };
    Ok(Inspection::Forward(
        FirstBytes::whole(vec![bytes]),
        Inspected::Request(Box::new(inspected)),
    ))
}

/// Returns the response to a request whose images cannot be found out, where they may need a proof.
fn unreadable() -> Status {
    let text = format!(
        "the request is not one uncompressed message of at most {MAX_PEEKED} bytes, so that the images are not known that it needs, and their layers may need a proof (integrity)"
    );
    Status::new(Kind::ResourceExhausted, text)
}

/// Keeps the credentials of a pull, and steers it.
async fn inspect_pull<'a>(client: &ClientContext, head: &Parts, bytes: Bytes) -> Inspection<'a> {
    let Some(mut request) = decode(&bytes) else {
        return Inspection::Forward(FirstBytes::whole(vec![bytes]), Inspected::None);
    };
    if let Some(store) = &client.state.credentials {
        pull_credentials::keep(store, &mut request);
    }
    let mut pull = steering::plan(client, &request).await;
    // With a length in the headers, the request cannot grow.
    let may_grow = !head.headers.contains_key("content-length");
    let field = pull.target.as_ref().and_then(PullTarget::field);
    let pieces = field
        .filter(|_| may_grow)
        .and_then(|field| append(&bytes, field));
    if pieces.is_none()
        && let Some(target) = &mut pull.target
    {
        target.steered_to = None;
    }
    let first = FirstBytes::whole(pieces.unwrap_or_else(|| vec![bytes]));
    Inspection::Forward(first, Inspected::Pull(pull))
}

/// Answers an ImageStatus if the image is to be reported as absent.
async fn inspect_image_status<'a>(
    client: &ClientContext,
    deadline: Option<Deadline>,
    bytes: Bytes,
) -> Result<Inspection<'a>, Status> {
    if let Some(request) = decode(&bytes)
        && image_status::is_absent(client, request, deadline).await
    {
        client.state.on_event(&ProxyEvent::ReportedAbsent);
        return Ok(Inspection::Answer(encode(&ImageStatusResponse::default())?));
    }
    let first = FirstBytes::whole(vec![bytes]);
    Ok(Inspection::Forward(first, Inspected::None))
}

/// Reads a whole request. Returns `None` for one that is not to be inspected.
async fn receive(
    client: &ClientContext,
    path: &str,
    peeked: &mut PeekedRequest<'_>,
) -> Result<Option<Bytes>, Status> {
    peeked.read_beginning().await?;
    if let Some(whole) = peeked.take_whole()? {
        return Ok(Some(whole));
    }
    let effect = match path {
        PULL_IMAGE | IMAGE_STATUS => Ok(SkipEffect::Slower),
        CREATE_CONTAINER => peek::effect_on_container(client, peeked.bytes()).await,
        _ => peek::effect_on_any(client).await,
    };
    let effect = match effect {
        Err(error) if client.state.discovery.needs_proofs() => return Err(error),
        // If containerd does not answer this, it will not accept the request either.
        effect => effect.unwrap_or(SkipEffect::None),
    };
    let length = match (peeked.length(), effect) {
        (None, SkipEffect::Unproven) => return Err(unreadable()),
        (None, _) | (_, SkipEffect::None) => return Ok(None),
        (Some(length), _) => length,
    };
    let count = u32::try_from(length).unwrap_or(u32::MAX);
    let permit = client.state.peek_budget.acquire_many(count);
    match (tokio::time::timeout(BUDGET_TIMEOUT, permit).await, effect) {
        (Ok(Ok(_permit)), _) => {
            peeked.read_to(length).await?;
            peeked.take_whole()
        }
        (_, SkipEffect::WrongContent | SkipEffect::Unproven) => Err(Status::new(
            Kind::ResourceExhausted,
            "other large requests are arriving and have not ended: try again",
        )),
        (_, SkipEffect::Slower | SkipEffect::None) => {
            tracing::info!(
                path,
                length,
                "a request was not inspected: others use the budget"
            );
            let event = ProxyEvent::Forwarded(ForwardReason::Unresolved);
            client.state.on_event(&event);
            Ok(None)
        }
    }
}
