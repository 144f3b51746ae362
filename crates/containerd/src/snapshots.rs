// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Snapshots (containerd `api/services/snapshots/v1/snapshots.proto`).

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, Info, Kind as KindMessage, ListSnapshotsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest, UsageRequest,
    ViewSnapshotRequest,
};
use prost_types::FieldMask;
use resnap_core::{
    ChainId, Error, Kind, Labels, Mount, Result, Scope, SnapshotInfo, SnapshotKey, SnapshotKind,
    Snapshotter, Snapshotters, Usage,
};
use tonic::transport::Channel;

use crate::connection::{Connection, MAX_MESSAGE_BYTES, request};
use crate::mounts::from_message;
use crate::status::error;

impl Snapshotters for Connection {
    fn snapshotter(&self, name: &str) -> Arc<dyn Snapshotter> {
        Arc::new(Remote {
            client: self.clone(),
            name: name.to_owned(),
        })
    }
}

/// A snapshotter of containerd.
struct Remote {
    client: Connection,
    name: String,
}

impl Remote {
    fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.client.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn subject(&self, key: &impl std::fmt::Display) -> String {
        format!("{key} on {}", self.name)
    }

    /// Returns the snapshots that match the filters.
    async fn list_filtered(
        &self,
        scope: &Scope,
        filters: Vec<String>,
        (operation, subject): (&'static str, String),
    ) -> Result<Vec<SnapshotInfo>> {
        let message = ListSnapshotsRequest {
            snapshotter: self.name.clone(),
            filters,
        };
        let failed = |status| error(operation, subject.as_str(), status);
        let mut client = self.snapshots();
        let all = async {
            let answer = client.list(request(scope, message)?).await;
            let mut answer = answer.map_err(failed)?.into_inner();
            let mut found = Vec::new();
            while let Some(piece) = answer.message().await.map_err(failed)? {
                found.extend(piece.info.into_iter().filter_map(info));
            }
            Ok(found)
        };
        self.client.in_time(operation, subject.as_str(), all).await
    }
}

#[async_trait]
impl Snapshotter for Remote {
    async fn stat(&self, scope: &Scope, key: &SnapshotKey) -> Result<SnapshotInfo> {
        let message = StatSnapshotRequest {
            snapshotter: self.name.clone(),
            key: key.as_str().to_owned(),
        };
        let mut client = self.snapshots();
        let call = client.stat(request(scope, message)?);
        let answer = self
            .client
            .call("stat snapshot", self.subject(key), call)
            .await?;
        answer.info.and_then(info).ok_or_else(|| {
            Error::new(Kind::Internal, "stat snapshot", self.subject(key))
                .with_source("the answer names no snapshot, or one of an unknown kind")
        })
    }

    async fn prepare(
        &self,
        scope: &Scope,
        key: &SnapshotKey,
        parent: Option<&ChainId>,
        labels: &Labels,
    ) -> Result<Vec<Mount>> {
        let message = PrepareSnapshotRequest {
            snapshotter: self.name.clone(),
            key: key.as_str().to_owned(),
            parent: parent.map(ToString::to_string).unwrap_or_default(),
            labels: labels.clone().into_iter().collect(),
        };
        let mut client = self.snapshots();
        let call = client.prepare(request(scope, message)?);
        let answer = self
            .client
            .call("prepare snapshot", self.subject(key), call)
            .await?;
        Ok(answer.mounts.into_iter().map(from_message).collect())
    }

    async fn view(&self, scope: &Scope, key: &SnapshotKey, parent: &ChainId) -> Result<Vec<Mount>> {
        let message = ViewSnapshotRequest {
            snapshotter: self.name.clone(),
            key: key.as_str().to_owned(),
            parent: parent.to_string(),
            ..ViewSnapshotRequest::default()
        };
        let mut client = self.snapshots();
        let call = client.view(request(scope, message)?);
        let answer = self
            .client
            .call("view snapshot", self.subject(parent), call)
            .await?;
        Ok(answer.mounts.into_iter().map(from_message).collect())
    }

    async fn commit(
        &self,
        scope: &Scope,
        name: &ChainId,
        key: &SnapshotKey,
        labels: &Labels,
    ) -> Result<()> {
        let message = CommitSnapshotRequest {
            snapshotter: self.name.clone(),
            name: name.to_string(),
            key: key.as_str().to_owned(),
            labels: labels.clone().into_iter().collect(),
        };
        let mut client = self.snapshots();
        let call = client.commit(request(scope, message)?);
        self.client
            .call("commit snapshot", self.subject(name), call)
            .await?;
        Ok(())
    }

    async fn remove(&self, scope: &Scope, key: &SnapshotKey) -> Result<()> {
        let message = RemoveSnapshotRequest {
            snapshotter: self.name.clone(),
            key: key.as_str().to_owned(),
        };
        let mut client = self.snapshots();
        let call = client.remove(request(scope, message)?);
        self.client
            .call("remove snapshot", self.subject(key), call)
            .await?;
        Ok(())
    }

    async fn set_labels(&self, scope: &Scope, key: &SnapshotKey, labels: &Labels) -> Result<()> {
        let message = UpdateSnapshotRequest {
            snapshotter: self.name.clone(),
            info: Some(Info {
                name: key.as_str().to_owned(),
                labels: labels.clone().into_iter().collect(),
                ..Info::default()
            }),
            update_mask: Some(FieldMask {
                paths: labels.keys().map(|key| format!("labels.{key}")).collect(),
            }),
        };
        let mut client = self.snapshots();
        let call = client.update(request(scope, message)?);
        self.client
            .call("label snapshot", self.subject(key), call)
            .await?;
        Ok(())
    }

    async fn children(&self, scope: &Scope, parent: &SnapshotKey) -> Result<Vec<SnapshotInfo>> {
        let filter = format!("parent=={:?}", parent.as_str());
        let operation = ("list snapshots on", self.subject(parent));
        self.list_filtered(scope, vec![filter], operation).await
    }

    async fn list(&self, scope: &Scope) -> Result<Vec<SnapshotInfo>> {
        let operation = ("list snapshots of", self.name.clone());
        self.list_filtered(scope, Vec::new(), operation).await
    }

    async fn usage(&self, scope: &Scope, key: &SnapshotKey) -> Result<Usage> {
        let message = UsageRequest {
            snapshotter: self.name.clone(),
            key: key.as_str().to_owned(),
        };
        let mut client = self.snapshots();
        let call = client.usage(request(scope, message)?);
        let operation = "get usage of snapshot";
        let answer = self.client.call(operation, self.subject(key), call).await?;
        Ok(Usage {
            bytes: u64::try_from(answer.size).unwrap_or(0),
            inodes: u64::try_from(answer.inodes).unwrap_or(0),
        })
    }
}

fn info(info: Info) -> Option<SnapshotInfo> {
    let kind = match KindMessage::try_from(info.kind).ok()? {
        KindMessage::Unknown => return None,
        KindMessage::View => SnapshotKind::View,
        KindMessage::Active => SnapshotKind::Active,
        KindMessage::Committed => SnapshotKind::Committed,
    };
    Some(SnapshotInfo {
        key: info.name.into(),
        parent: (!info.parent.is_empty()).then(|| info.parent.into()),
        kind,
        labels: info.labels.into_iter().collect(),
        created: info
            .created_at
            .and_then(|time| SystemTime::try_from(time).ok())
            .unwrap_or(SystemTime::UNIX_EPOCH),
    })
}
