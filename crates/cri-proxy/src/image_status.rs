// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! ImageStatus: an image that cannot be made ready for want of credentials is reported as absent, so that
//! kubelet pulls it with its own.

use std::sync::Arc;
use std::time::Duration;

use resnap_core::{EnsureRequest, NotReady, error_chain};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::deadline::Deadline;
use crate::grpc::Status;
use crate::messages::{ClientImageSpec, ImageStatusRequest, ImageStatusResponse};
use crate::pods::{self, Pod};
use crate::pull_memory::{AbsenceQuestion, MAX_NAME};
use crate::settings::When;
use crate::state::{ClientContext, ProxyState};
use crate::steering::snapshotter;

/// The time in which it must turn out that an image is to be reported as absent.
const DECISION_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns whether an image is to be reported as absent. Whatever cannot be found out in time leaves the
/// answer to containerd.
pub(crate) async fn is_absent(
    client: &ClientContext,
    request: ImageStatusRequest,
    deadline: Option<Deadline>,
) -> bool {
    // Only kubelet sends the annotations of the pod. Others ask for what is there.
    let is_of_pod = |spec: &ClientImageSpec| {
        !spec.annotations.is_empty() && (1..=MAX_NAME).contains(&spec.image.len())
    };
    let Some(spec) = request.image.filter(is_of_pod) else {
        return false;
    };
    let limit = Instant::now() + DECISION_TIMEOUT;
    let limit = deadline.map_or(limit, |deadline| deadline.answer_at().min(limit));
    let question = match timeout_at(limit, question(client, &spec)).await {
        Ok(Ok(Some(question))) => question,
        Ok(Ok(None)) => return false,
        Ok(Err(error)) => {
            tracing::debug!(%error, image = spec.image, "the pod of an ImageStatus was not found");
            return false;
        }
        Err(_) => return false,
    };
    let memory = &client.state.pull_memory;
    // kubelet also asks for the size of what it has just pulled.
    if memory.is_pulled(&question.image, question.pod.as_ref()) {
        return false;
    }
    if let Some(known) = memory.decision(&question) {
        return known;
    }
    let decided = timeout_at(limit, decide(client, &question)).await;
    if decided.is_ok() || memory.decision(&question).is_none() {
        memory.record_decision(question, decided == Ok(true));
    }
    decided == Ok(true)
}

/// Finds out for whom an image is wanted; `None` if it need not be made ready, or the pod is ambiguous.
async fn question(
    client: &ClientContext,
    spec: &ClientImageSpec,
) -> Result<Option<AbsenceQuestion>, Status> {
    let discovery = &client.state.discovery;
    let handlers = discovery.handlers(&client.backend).await?;
    if !discovery.watches_any(&handlers) {
        return Ok(None);
    }
    let pod =
        pods::with_annotations(&client.backend, &client.state.new_pods, &spec.annotations).await?;
    let Some(pod) = agreed(spec, pod) else {
        return Ok(None);
    };
    let snapshotter = snapshotter(client, &handlers, &pod.handler);
    Ok(snapshotter.map(|snapshotter| AbsenceQuestion {
        image: spec.image.clone(),
        snapshotter,
        pod: pod.id,
        pick: handlers.pick,
    }))
}

/// Returns the pod by what the request says and by its sandbox, unless they contradict each other.
fn agreed(spec: &ClientImageSpec, pod: Option<Pod>) -> Option<Pod> {
    let handler = &spec.runtime_handler;
    match pod {
        pod if handler.is_empty() => pod,
        Some(pod) => Some(pod).filter(|pod| pod.handler == *handler),
        None => Some(Pod {
            id: None,
            handler: handler.clone(),
        }),
    }
}

async fn decide(client: &ClientContext, question: &AbsenceQuestion) -> bool {
    let (image, snapshotter) = (&question.image, &question.snapshotter);
    if client
        .is_still_ready(image, snapshotter, question.pick)
        .await
    {
        return false;
    }
    match may_be_pulled(client, &question.image).await {
        Ok(true) => {}
        Ok(false) => return false,
        Err(error) => {
            let image = &question.image;
            tracing::info!(
                image,
                error,
                "it is unknown whether kubelet may pull an image"
            );
            return false;
        }
    }
    let mut answer = match client.state.pull_memory.ask(question) {
        Ok(answer) => answer,
        Err(sender) => {
            let answer = sender.subscribe();
            let asked = Asked {
                state: Arc::clone(&client.state),
                question: question.clone(),
                sender,
            };
            let Ok(permit) = Arc::clone(&client.state.background).try_acquire_owned() else {
                return false;
            };
            // An answer that comes too late is there for the next request.
            client.service_runtime.spawn(async move {
                asked.answer().await;
                drop(permit);
            });
            answer
        }
    };
    // There is none if the task ended early.
    let answer = answer.wait_for(Option::is_some).await;
    answer.is_ok_and(|answer| *answer == Some(true))
}

/// A question that is being answered, for all requests that ask it.
struct Asked {
    state: Arc<ProxyState>,
    question: AbsenceQuestion,
    sender: watch::Sender<Option<bool>>,
}

impl Asked {
    async fn answer(self) {
        let is_denied = is_denied(&self.state, &self.question).await;
        let memory = &self.state.pull_memory;
        memory.record_decision(self.question.clone(), is_denied);
        self.sender.send_replace(Some(is_denied));
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.state.pull_memory.end(&self.question);
    }
}

/// Tries to make an image ready. Returns whether credentials are what is missing.
async fn is_denied(state: &ProxyState, question: &AbsenceQuestion) -> bool {
    let AbsenceQuestion {
        image,
        snapshotter,
        pod,
        pick,
    } = question;
    let request = EnsureRequest {
        image,
        reference: None,
        snapshotter,
        repair: false,
        pod: pod.as_ref(),
        pick: *pick,
    };
    let Err(NotReady::Denied(error)) = state.service.ensure(request, &|_| {}).await else {
        return false;
    };
    let (pod, error) = (pod.as_ref().map(|pod| &*pod.name), error_chain(&error));
    tracing::info!(
        image,
        pod,
        snapshotter,
        error,
        "reporting an image as absent, for kubelet to pull it"
    );
    true
}

/// Returns whether containerd has the image, and a pull of it takes it from no pod.
///
/// # Errors
/// The reason why that cannot be told.
async fn may_be_pulled(client: &ClientContext, image: &str) -> Result<bool, String> {
    let path = "/runtime.v1.ImageService/ImageStatus";
    let request = ImageStatusRequest {
        image: Some(ClientImageSpec {
            image: image.to_owned(),
            ..ClientImageSpec::default()
        }),
    };
    let response = client.backend.unary(path, &request).await;
    let ImageStatusResponse { image } = response.map_err(|error| error.to_string())?;
    let Some(image) = image else {
        return Ok(false);
    };
    let settings = &client.state.discovery.settings;
    if settings.image_status == When::Always {
        return Ok(true);
    }
    let records = client.state.kubelet_records.clone();
    let allowed = client.service_runtime.run(async move {
        let allowed = tokio::task::spawn_blocking(move || records.allow_pull(&image.id));
        allowed.await.map_err(|error| error.to_string())
    });
    let allowed = allowed.await.map_err(|error| error.to_string())??;
    allowed.map_err(|error| format!("the records of kubelet: {error}"))
}
