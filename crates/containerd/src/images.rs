// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images (containerd `api/services/images/v1/images.proto`).

use async_trait::async_trait;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{GetImageRequest, Image as ImageMessage, ListImagesRequest};
use resnap_core::{Descriptor, Digest, Error, Image, Images, Kind, Result, Scope};
use tonic::transport::Channel;

use crate::connection::{Connection, MAX_MESSAGE_BYTES, request};

fn client(connection: &Connection) -> ImagesClient<Channel> {
    ImagesClient::new(connection.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

#[async_trait]
impl Images for Connection {
    async fn get(&self, scope: &Scope, name: &str) -> Result<Image> {
        let message = GetImageRequest {
            name: name.to_owned(),
        };
        let mut client = client(self);
        let call = client.get(request(scope, message)?);
        let answer = self.call("get image", name, call).await?;
        let image = answer.image.ok_or_else(|| {
            Error::new(Kind::Internal, "get image", name).with_source("the answer holds none")
        })?;
        from_message(image)
    }

    async fn list(&self, scope: &Scope) -> Result<Vec<Image>> {
        list(self, scope, ListImagesRequest::default()).await
    }

    async fn of_target(&self, scope: &Scope, target: &Digest) -> Result<Vec<Image>> {
        let message = ListImagesRequest {
            filters: vec![format!("target.digest=={target}")],
        };
        list(self, scope, message).await
    }
}

async fn list(
    connection: &Connection,
    scope: &Scope,
    message: ListImagesRequest,
) -> Result<Vec<Image>> {
    let mut client = client(connection);
    let call = client.list(request(scope, message)?);
    let answer = connection.call("list images of", &*scope.namespace, call);
    let images = answer.await?.images.into_iter();
    images.map(from_message).collect()
}

fn from_message(image: ImageMessage) -> Result<Image> {
    let target = image.target.unwrap_or_default();
    let digest = target.digest.parse().map_err(|error| {
        Error::new(Kind::DataLoss, "read image", image.name.as_str()).with_source(error)
    })?;
    Ok(Image {
        name: image.name,
        target: Descriptor {
            media_type: target.media_type,
            digest,
            size: u64::try_from(target.size).unwrap_or(0),
            annotations: target.annotations.into_iter().collect(),
            platform: None,
        },
        labels: image.labels.into_iter().collect(),
    })
}
