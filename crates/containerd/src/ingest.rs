// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Writing content (containerd `api/services/content/v1/content.proto`,
//! `plugins/services/content/contentserver/contentserver.go`).

use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::{
    AbortRequest, ListStatusesRequest, StatusRequest, WriteAction, WriteContentRequest,
    WriteContentResponse,
};
use futures::SinkExt as _;
use futures::channel::mpsc;
use resnap_core::{ContentWriter, Descriptor, Error, Ingest, Kind, Labels, Result, Scope};
use tonic::Streaming;

use crate::connection::{Connection, MAX_MESSAGE_BYTES, request};
use crate::status::error;

/// The bytes of a message. containerd accepts 16 MiB, and its own client sends 1 MiB.
const PIECE_BYTES: usize = 1 << 20;

const WRITE: &str = "write content";

#[async_trait]
impl ContentWriter for Connection {
    async fn ingest(
        &self,
        scope: &Scope,
        name: &str,
        descriptor: &Descriptor,
    ) -> Result<Box<dyn Ingest>> {
        let digest = descriptor.digest.to_string();
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: name.to_owned(),
            total: i64::try_from(descriptor.size).map_err(|error| {
                Error::new(Kind::InvalidArgument, WRITE, &*digest).with_source(error)
            })?,
            expected: digest.clone(),
            ..WriteContentRequest::default()
        };
        let (mut requests, receiver) = mpsc::channel(1);
        // Room for one message is there.
        let _ = requests.try_send(first.clone());
        let mut client = ContentClient::new(self.channel());
        let call = client.write(request(scope, receiver)?);
        let answers = self.call(WRITE, &*digest, call).await?;
        let mut ingest = OpenIngest {
            connection: self.clone(),
            base: first,
            requests,
            answers,
            offset: 0,
        };
        ingest.offset = offset(&ingest.answer().await?);
        Ok(Box::new(ingest))
    }

    async fn written(&self, scope: &Scope, name: &str) -> Result<u64> {
        let message = StatusRequest {
            r#ref: name.to_owned(),
        };
        let mut client = ContentClient::new(self.channel());
        let call = client.status(request(scope, message)?);
        let answer = self.call("look up ingest", name, call).await?;
        let status = answer.status.unwrap_or_default();
        Ok(u64::try_from(status.offset).unwrap_or(0))
    }

    async fn abort(&self, scope: &Scope, name: &str) -> Result<()> {
        let message = AbortRequest {
            r#ref: name.to_owned(),
        };
        let mut client = ContentClient::new(self.channel());
        let call = client.abort(request(scope, message)?);
        self.call("abort ingest", name, call).await?;
        Ok(())
    }
}

/// An ingest of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngestInfo {
    /// Its name.
    pub name: String,
    /// The bytes written so far.
    pub bytes: u64,
    /// When the last byte was written.
    pub updated: SystemTime,
}

/// See [`Client::ingests`](crate::Client::ingests).
pub(crate) async fn list(connection: &Connection, scope: &Scope) -> Result<Vec<IngestInfo>> {
    let mut client =
        ContentClient::new(connection.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let call = client.list_statuses(request(scope, ListStatusesRequest::default())?);
    let answer = connection.call("list ingests of", &*scope.namespace, call);
    let statuses = answer.await?.statuses.into_iter();
    let ingests = statuses.map(|status| IngestInfo {
        name: status.r#ref,
        bytes: u64::try_from(status.offset).unwrap_or(0),
        updated: status
            .updated_at
            .and_then(|time| SystemTime::try_from(time).ok())
            .unwrap_or(UNIX_EPOCH),
    });
    Ok(ingests.collect())
}

/// An ingest whose stream is open. containerd unlocks the ingest when the stream ends.
struct OpenIngest {
    connection: Connection,
    /// The fields that all messages have in common.
    base: WriteContentRequest,
    requests: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
    offset: u64,
}

fn offset(answer: &WriteContentResponse) -> u64 {
    u64::try_from(answer.offset).unwrap_or(0)
}

impl OpenIngest {
    fn subject(&self) -> String {
        self.base.expected.clone()
    }

    async fn answer(&mut self) -> Result<WriteContentResponse> {
        let subject = self.subject();
        let answer = async {
            let answer = self.answers.message().await;
            let answer = answer.map_err(|status| error(WRITE, &*subject, status))?;
            answer.ok_or_else(|| {
                Error::new(Kind::Unavailable, WRITE, &*subject).with_source("the stream has ended")
            })
        };
        let connection = self.connection.clone();
        connection.in_time(WRITE, &*subject, answer).await
    }

    async fn send(&mut self, message: WriteContentRequest) -> Result<WriteContentResponse> {
        // If the stream has ended, its answer says why.
        let _ = self.requests.send(message).await;
        self.answer().await
    }
}

#[async_trait]
impl Ingest for OpenIngest {
    fn offset(&self) -> u64 {
        self.offset
    }

    async fn write(&mut self, mut bytes: Bytes) -> Result<()> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
            let expected = self.offset + piece.len() as u64;
            let message = WriteContentRequest {
                action: WriteAction::Write.into(),
                offset: i64::try_from(self.offset).unwrap_or(i64::MAX),
                data: piece.to_vec(),
                ..self.base.clone()
            };
            self.offset = offset(&self.send(message).await?);
            if self.offset != expected {
                let error = Error::new(Kind::Internal, WRITE, self.subject());
                return Err(error.with_source(format!(
                    "containerd has {} bytes instead of {expected}",
                    self.offset
                )));
            }
        }
        Ok(())
    }

    async fn commit(mut self: Box<Self>, labels: &Labels) -> Result<()> {
        let message = WriteContentRequest {
            action: WriteAction::Commit.into(),
            offset: i64::try_from(self.offset).unwrap_or(i64::MAX),
            labels: labels.clone().into_iter().collect(),
            ..self.base.clone()
        };
        self.send(message).await.map(drop)
    }
}
