// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Containers (containerd `api/services/containers/v1/containers.proto`).

use async_trait::async_trait;
use containerd_client::services::v1::ListContainersRequest;
use containerd_client::services::v1::containers_client::ContainersClient;
use resnap_core::{Container, Containers, Result, Scope};

use crate::connection::{Connection, MAX_MESSAGE_BYTES, request};

#[async_trait]
impl Containers for Connection {
    async fn list(&self, scope: &Scope) -> Result<Vec<Container>> {
        let mut client =
            ContainersClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let call = client.list(request(scope, ListContainersRequest::default())?);
        let answer = self.call("list containers of", &*scope.namespace, call);
        let containers = answer.await?.containers.into_iter();
        Ok(containers
            .map(|container| Container {
                id: container.id,
                snapshotter: container.snapshotter,
                snapshot: container.snapshot_key.into(),
            })
            .collect())
    }
}
