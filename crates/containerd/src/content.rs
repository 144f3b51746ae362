// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Content (containerd `api/services/content/v1/content.proto`).

use std::collections::{BTreeMap, HashMap, HashSet};

use async_trait::async_trait;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::{
    Info, InfoRequest, ListContentRequest, ReadContentRequest, UpdateRequest,
};
use futures::StreamExt as _;
use prost_types::FieldMask;
use resnap_core::{ByteStream, ContentInfo, ContentLabeler, ContentReader, Digest, Result, Scope};
use tonic::transport::Channel;

use crate::connection::{Connection, MAX_MESSAGE_BYTES, request};
use crate::status::error;

fn client(connection: &Connection) -> ContentClient<Channel> {
    ContentClient::new(connection.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

#[async_trait]
impl ContentReader for Connection {
    async fn info(&self, scope: &Scope, digest: &Digest) -> Result<ContentInfo> {
        let message = InfoRequest {
            digest: digest.to_string(),
        };
        let mut client = client(self);
        let call = client.info(request(scope, message)?);
        let answer = self.call("look up content", digest.as_str(), call).await?;
        Ok(from_message(answer.info.unwrap_or_default()))
    }

    async fn existing(&self, scope: &Scope, digests: &[Digest]) -> Result<HashSet<Digest>> {
        let message = ListContentRequest {
            filters: digests
                .iter()
                .map(|digest| format!("digest=={digest}"))
                .collect(),
        };
        if message.filters.is_empty() {
            return Ok(HashSet::new());
        }
        let infos = list(self, scope, message).await?.into_iter();
        Ok(infos.map(|(digest, _)| digest).collect())
    }

    async fn open(&self, scope: &Scope, digest: &Digest) -> Result<ByteStream> {
        let message = ReadContentRequest {
            digest: digest.to_string(),
            offset: 0,
            size: 0,
        };
        let mut client = client(self);
        let call = client.read(request(scope, message)?);
        let answer = self.call("read content", digest.as_str(), call).await?;
        let digest = digest.clone();
        Ok(answer
            .map(move |piece| match piece {
                Ok(piece) => Ok(piece.data.into()),
                Err(status) => Err(error("read content", digest.as_str(), status)),
            })
            .boxed())
    }
}

#[async_trait]
impl ContentLabeler for Connection {
    async fn set_label(
        &self,
        scope: &Scope,
        digest: &Digest,
        key: &str,
        value: &str,
    ) -> Result<()> {
        let labels = [(key.to_owned(), value.to_owned())].into();
        update(self, scope, digest, labels, key).await
    }

    async fn remove_label(&self, scope: &Scope, digest: &Digest, key: &str) -> Result<()> {
        // containerd removes a label of the mask that the message does not have.
        update(self, scope, digest, HashMap::new(), key).await
    }

    async fn list(&self, scope: &Scope) -> Result<BTreeMap<Digest, ContentInfo>> {
        let infos = list(self, scope, ListContentRequest::default()).await?;
        Ok(infos.into_iter().collect())
    }
}

/// Sets one label of a blob to that in `labels`, or removes it.
async fn update(
    connection: &Connection,
    scope: &Scope,
    digest: &Digest,
    labels: HashMap<String, String>,
    key: &str,
) -> Result<()> {
    let message = UpdateRequest {
        info: Some(Info {
            digest: digest.to_string(),
            labels,
            ..Info::default()
        }),
        update_mask: Some(FieldMask {
            paths: vec![format!("labels.{key}")],
        }),
    };
    let mut client = client(connection);
    let call = client.update(request(scope, message)?);
    let answer = connection.call("label content", digest.as_str(), call);
    answer.await.map(drop)
}

/// Returns the records of blobs.
async fn list(
    connection: &Connection,
    scope: &Scope,
    message: ListContentRequest,
) -> Result<Vec<(Digest, ContentInfo)>> {
    const OPERATION: &str = "list content in";
    let failed = |status| error(OPERATION, &*scope.namespace, status);
    let mut client = client(connection);
    let list = async {
        let answer = client.list(request(scope, message)?).await;
        let mut answer = answer.map_err(failed)?.into_inner();
        let mut found = Vec::new();
        while let Some(piece) = answer.message().await.map_err(failed)? {
            found.extend(piece.info.into_iter().filter_map(|info| {
                let digest = info.digest.parse().ok()?;
                Some((digest, from_message(info)))
            }));
        }
        Ok(found)
    };
    connection.in_time(OPERATION, &*scope.namespace, list).await
}

fn from_message(info: Info) -> ContentInfo {
    ContentInfo {
        size: u64::try_from(info.size).unwrap_or(0),
        labels: info.labels.into_iter().collect(),
    }
}
