// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Snapshots (containerd `api/services/snapshots/v1/snapshots.proto`).

use std::sync::Arc;

use async_trait::async_trait;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, Info, Kind as KindMessage, PrepareSnapshotRequest,
    RemoveSnapshotRequest, StatSnapshotRequest,
};
use resnap_core::{
    ChainId, Error, Kind, Labels, Mount, Result, Scope, SnapshotInfo, SnapshotKey, SnapshotKind,
    Snapshotter, Snapshotters,
};
use tonic::transport::Channel;

use crate::client::{Client, MAX_MESSAGE_BYTES, request};
use crate::mounts::from_message;
use crate::status::error;

impl Snapshotters for Client {
    fn snapshotter(&self, name: &str) -> Arc<dyn Snapshotter> {
        let client =
            SnapshotsClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Arc::new(Remote {
            client,
            name: name.to_owned(),
        })
    }
}

/// One snapshotter of containerd's.
struct Remote {
    client: SnapshotsClient<Channel>,
    name: String,
}

impl Remote {
    fn subject(&self, key: &impl std::fmt::Display) -> String {
        format!("{key} on {}", self.name)
    }
}

#[async_trait]
impl Snapshotter for Remote {
    async fn stat(&self, scope: &Scope, key: &SnapshotKey) -> Result<SnapshotInfo> {
        let message = StatSnapshotRequest {
            snapshotter: self.name.clone(),
            key: key.as_str().to_owned(),
        };
        let answer = self.client.clone().stat(request(scope, message)?).await;
        let answer = answer.map_err(|status| error("stat snapshot", self.subject(key), status))?;
        answer.into_inner().info.and_then(info).ok_or_else(|| {
            Error::new(Kind::Internal, "stat snapshot", self.subject(key))
                .because("the answer names no snapshot, or one of an unknown kind")
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
        let answer = self.client.clone().prepare(request(scope, message)?).await;
        let answer =
            answer.map_err(|status| error("prepare snapshot", self.subject(key), status))?;
        Ok(answer
            .into_inner()
            .mounts
            .into_iter()
            .map(from_message)
            .collect())
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
        let answer = self.client.clone().commit(request(scope, message)?).await;
        answer.map_err(|status| error("commit snapshot", self.subject(name), status))?;
        Ok(())
    }

    async fn remove(&self, scope: &Scope, key: &SnapshotKey) -> Result<()> {
        let message = RemoveSnapshotRequest {
            snapshotter: self.name.clone(),
            key: key.as_str().to_owned(),
        };
        let answer = self.client.clone().remove(request(scope, message)?).await;
        answer.map_err(|status| error("remove snapshot", self.subject(key), status))?;
        Ok(())
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
    })
}
