// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The time after a pull: a look at where containerd has unpacked the image, and a job for what is still
//! missing on the snapshotter of the pod's handler.

use std::sync::{Arc, Mutex, PoisonError};

use resnap_core::{EnsureProgress, EnsureRequest, error_chain};

use crate::observe::ProxyEvent;
use crate::pods::Pod;
use crate::settings::When;
use crate::state::{ClientContext, ProxyState};
use crate::steering::{ClientPull, PullTarget};

/// Starts the work after a pull that has succeeded, in the background: kubelet pulls one image at a time.
/// A container that needs the image joins the job.
pub(crate) fn start(client: &ClientContext, pull: ClientPull) {
    let ClientPull { image, pod, target } = pull;
    let memory = &client.state.pull_memory;
    memory.record_pull(&image, pod.as_ref());
    let Some(target) = target else {
        return;
    };
    // Past the limit, CreateContainer starts the job.
    if let Ok(permit) = Arc::clone(&client.state.background).try_acquire_owned() {
        let state = Arc::clone(&client.state);
        client.service_runtime.spawn(async move {
            let permit = Mutex::new(Some(permit));
            // From then on this only waits for a job, of which the service limits the number.
            let on_progress = |_| {
                let mut permit = permit.lock().unwrap_or_else(PoisonError::into_inner);
                drop(permit.take());
            };
            finish(&state, &image, &target, &on_progress).await;
        });
    }
}

/// Records that a pull has failed. kubelet will try again: if it was steered, then without.
pub(crate) fn fail(client: &ClientContext, pull: &ClientPull) {
    let target = pull.target.as_ref();
    if let Some(handler) = target.and_then(|target| target.steered_to.as_deref()) {
        client
            .state
            .pull_memory
            .record_failure(&pull.image, handler);
        tracing::info!(image = pull.image, handler, "a pull for the handler failed");
    }
}

type OnProgress<'a> = &'a (dyn Fn(EnsureProgress) + Send + Sync);

async fn finish(state: &ProxyState, image: &str, target: &PullTarget, on_progress: OnProgress<'_>) {
    ensure(state, image, target, &target.snapshotter, on_progress).await;
    let is_safe = state.discovery.settings.steer_pulls == When::Safe;
    // The name may stand for another image since the pull, whose layers are on one snapshotter only.
    if target.steered_to.is_some()
        && is_safe
        && let Some(default) = target.handlers.default_snapshotter()
    {
        ensure(state, image, target, default, on_progress).await;
    }
}

async fn ensure(
    state: &ProxyState,
    image: &str,
    target: &PullTarget,
    snapshotter: &str,
    on_progress: OnProgress<'_>,
) {
    let PullTarget { pod, handlers, .. } = target;
    let pick = handlers.pick;
    let is_ready = state.service.is_ready(image, snapshotter, pick).await;
    let is_ready = is_ready.unwrap_or(false);
    if snapshotter == target.snapshotter
        && let Some(handler) = &target.steered_to
    {
        record(state, image, target, handler, is_ready);
    }
    let request = EnsureRequest {
        image,
        reference: None,
        snapshotter,
        repair: false,
        pod: pod.id.as_ref(),
        pick,
    };
    if !is_ready && let Err(error) = state.service.ensure(request, on_progress).await {
        let (pod, error) = (name(pod), error_chain(&error));
        tracing::info!(image, pod, snapshotter, error, "not ready after the pull");
    }
}

/// Records whether containerd has followed a steered pull.
fn record(state: &ProxyState, image: &str, target: &PullTarget, handler: &str, followed: bool) {
    let PullTarget {
        pod, snapshotter, ..
    } = target;
    let pod = name(pod);
    state.on_event(&ProxyEvent::Steered { followed });
    if followed {
        tracing::info!(image, pod, handler, snapshotter, "pulled for the handler");
        return;
    }
    state.pull_memory.record_ignored(handler);
    tracing::warn!(
        image,
        pod,
        handler,
        snapshotter,
        "a pull named the handler, but containerd did not unpack for it; containerd 2.0 to 2.2 needs \
         the handler in runtime_platforms of its configuration"
    );
}

/// Returns the pod's name for the log.
fn name(pod: &Pod) -> Option<&str> {
    pod.id.as_ref().map(|id| &*id.name)
}
