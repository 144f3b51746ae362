// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Leases (containerd `api/services/leases/v1/leases.proto`).

use async_trait::async_trait;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{
    AddResourceRequest, CreateRequest, DeleteRequest, Resource as ResourceMessage,
};
use resnap_core::{Labels, LeaseId, Leases, Resource, Result, Scope};
use tonic::transport::Channel;

use crate::client::{Client, request};
use crate::status::error;

impl Client {
    fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel.clone())
    }
}

#[async_trait]
impl Leases for Client {
    async fn create(&self, scope: &Scope, lease: &LeaseId, labels: &Labels) -> Result<()> {
        let message = CreateRequest {
            id: lease.0.to_string(),
            labels: labels.clone().into_iter().collect(),
        };
        let answer = self.leases().create(request(scope, message)?).await;
        answer.map_err(|status| error("create lease", &*lease.0, status))?;
        Ok(())
    }

    async fn delete(&self, scope: &Scope, lease: &LeaseId) -> Result<()> {
        let message = DeleteRequest {
            id: lease.0.to_string(),
            sync: false,
        };
        let answer = self.leases().delete(request(scope, message)?).await;
        answer.map_err(|status| error("delete lease", &*lease.0, status))?;
        Ok(())
    }

    async fn add_resource(
        &self,
        scope: &Scope,
        lease: &LeaseId,
        resource: Resource<'_>,
    ) -> Result<()> {
        let resource = match resource {
            Resource::Content(digest) => ResourceMessage {
                id: digest.to_string(),
                r#type: "content".to_owned(),
            },
            Resource::Snapshot {
                snapshotter,
                chain_id,
            } => ResourceMessage {
                id: chain_id.to_string(),
                r#type: format!("snapshots/{snapshotter}"),
            },
        };
        let message = AddResourceRequest {
            id: lease.0.to_string(),
            resource: Some(resource),
        };
        let answer = self.leases().add_resource(request(scope, message)?).await;
        answer.map_err(|status| error("add to lease", &*lease.0, status))?;
        Ok(())
    }
}
