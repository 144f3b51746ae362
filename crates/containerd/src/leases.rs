// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Leases (containerd `api/services/leases/v1/leases.proto`).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{
    AddResourceRequest, CreateRequest, DeleteRequest, ListRequest, ListResourcesRequest,
    Resource as ResourceMessage,
};
use prost_types::Timestamp;
use resnap_core::{Labels, LeaseId, LeaseInfo, Leases, Resource, Result, Scope, labels};
use tonic::transport::Channel;

use crate::connection::{Connection, request};

/// The time limit of a garbage collection, which removes the files of snapshots.
const COLLECTION_TIME: Duration = Duration::from_secs(600);

/// The time after which the lease of a garbage collection expires, if it was not deleted.
const COLLECTION_LEASE: Duration = Duration::from_secs(60);

fn client(connection: &Connection) -> LeasesClient<Channel> {
    LeasesClient::new(connection.channel())
}

#[async_trait]
impl Leases for Connection {
    async fn create(&self, scope: &Scope, lease: &LeaseId, labels: &Labels) -> Result<()> {
        let message = CreateRequest {
            id: lease.0.to_string(),
            labels: labels.clone().into_iter().collect(),
        };
        let mut client = client(self);
        let call = client.create(request(scope, message)?);
        self.call("create lease", &*lease.0, call).await?;
        Ok(())
    }

    async fn delete(&self, scope: &Scope, lease: &LeaseId) -> Result<()> {
        let message = DeleteRequest {
            id: lease.0.to_string(),
            sync: false,
        };
        let mut client = client(self);
        let call = client.delete(request(scope, message)?);
        self.call("delete lease", &*lease.0, call).await?;
        Ok(())
    }

    async fn add_resource(
        &self,
        scope: &Scope,
        lease: &LeaseId,
        resource: &Resource,
    ) -> Result<()> {
        let message = AddResourceRequest {
            id: lease.0.to_string(),
            resource: Some(to_message(resource)),
        };
        let mut client = client(self);
        let call = client.add_resource(request(scope, message)?);
        self.call("add to lease", &*lease.0, call).await?;
        Ok(())
    }

    async fn list(&self, scope: &Scope, label: Option<&str>) -> Result<Vec<LeaseInfo>> {
        let filter = label.map(|label| format!("labels.{label:?}"));
        let message = ListRequest {
            filters: filter.into_iter().collect(),
        };
        let mut client = client(self);
        let call = client.list(request(scope, message)?);
        let answer = self.call("list leases of", &*scope.namespace, call).await?;
        let leases = answer.leases.into_iter();
        Ok(leases
            .map(|lease| LeaseInfo {
                id: LeaseId(lease.id.into()),
                created: lease.created_at.map_or(UNIX_EPOCH, system_time),
                labels: lease.labels.into_iter().collect(),
            })
            .collect())
    }

    async fn resources(&self, scope: &Scope, lease: &LeaseId) -> Result<Vec<Resource>> {
        let message = ListResourcesRequest {
            id: lease.0.to_string(),
        };
        let mut client = client(self);
        let call = client.list_resources(request(scope, message)?);
        let answer = self.call("look into lease", &*lease.0, call).await?;
        let resources = answer.resources.into_iter();
        Ok(resources.filter_map(from_message).collect())
    }

    async fn collect_garbage(&self, scope: &Scope) -> Result<()> {
        // containerd collects garbage on request only when a lease is deleted, and names the lease.
        let expiry = humantime::format_rfc3339_seconds(SystemTime::now() + COLLECTION_LEASE);
        let message = CreateRequest {
            id: String::new(),
            labels: [(labels::GC_EXPIRE.to_owned(), expiry.to_string())].into(),
        };
        let mut client = client(self);
        let call = client.create(request(scope, message)?);
        let answer = self.call("create a lease in", &*scope.namespace, call);
        let message = DeleteRequest {
            id: answer.await?.lease.unwrap_or_default().id,
            sync: true,
        };
        let deleted = client.delete(request(scope, message)?);
        let connection = self.clone().with_call_timeout(COLLECTION_TIME);
        let collected = connection.call("collect garbage of", &*scope.namespace, deleted);
        collected.await.map(drop)
    }
}

const CONTENT: &str = "content";
const INGESTS: &str = "ingests";
/// The prefix of the type of a snapshot; the snapshotter's name follows.
const SNAPSHOTS: &str = "snapshots/";

fn to_message(resource: &Resource) -> ResourceMessage {
    match resource {
        Resource::Content(digest) => ResourceMessage {
            id: digest.to_string(),
            r#type: CONTENT.to_owned(),
        },
        Resource::Ingest(name) => ResourceMessage {
            id: name.clone(),
            r#type: INGESTS.to_owned(),
        },
        Resource::Snapshot { snapshotter, key } => ResourceMessage {
            id: key.to_string(),
            r#type: format!("{SNAPSHOTS}{snapshotter}"),
        },
    }
}

fn from_message(message: ResourceMessage) -> Option<Resource> {
    if message.r#type == CONTENT {
        return message.id.parse().ok().map(Resource::Content);
    }
    if message.r#type == INGESTS {
        return Some(Resource::Ingest(message.id));
    }
    let snapshotter = message.r#type.strip_prefix(SNAPSHOTS)?.to_owned();
    let key = message.id.into();
    Some(Resource::Snapshot { snapshotter, key })
}

/// Converts a time. One that is out of range becomes the epoch.
fn system_time(time: Timestamp) -> SystemTime {
    SystemTime::try_from(time).unwrap_or(UNIX_EPOCH)
}
