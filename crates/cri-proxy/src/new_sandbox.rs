// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The time after a sandbox was created. What the pod's containers will need to be known is asked for then,
//! while kubelet has other things to do.

use std::time::Duration;

use bytes::Bytes;

use crate::grpc::{PREFIX_LEN, decode};
use crate::messages::{RunPodSandboxRequest, RunPodSandboxResponse};
use crate::state::ClientContext;

/// The longest response of RunPodSandbox that is read: it has an ID of 64 characters.
const MAX_RESPONSE: usize = PREFIX_LEN + 1024;

/// The time in which containerd has to describe the sandbox.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// A sandbox that is being created.
pub(crate) struct NewSandbox {
    request: RunPodSandboxRequest,
    response: Vec<u8>,
}

impl NewSandbox {
    pub(crate) fn new(request: RunPodSandboxRequest) -> Self {
        Self {
            request,
            response: Vec::new(),
        }
    }

    /// Adds bytes of the response.
    pub(crate) fn add(&mut self, bytes: &Bytes) {
        if self.response.len() + bytes.len() <= MAX_RESPONSE {
            self.response.extend_from_slice(bytes);
        }
    }

    /// Looks at the sandbox, of which the client has the response.
    pub(crate) async fn look(self, client: &ClientContext) {
        let Some(RunPodSandboxResponse { id }) = decode(&self.response) else {
            return;
        };
        client.state.new_pods.record(&self.request);
        let discovery = &client.state.discovery;
        // It remembers the answer.
        let look = discovery.snapshotter_of(&client.backend, &id);
        // The calls for the containers ask for what is not known by then.
        match tokio::time::timeout(LOOK_TIMEOUT, look).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a new sandbox was not looked at"),
            Err(_) => tracing::debug!("containerd did not describe a new sandbox in time"),
        }
    }
}
