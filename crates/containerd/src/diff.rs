// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The differ (containerd `api/services/diff/v1/diff.proto`).

use async_trait::async_trait;
use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::types::Descriptor as DescriptorMessage;
use resnap_core::{Applied, Applier, Descriptor, Error, Kind, Mount, Result, Scope, media_type};

use crate::client::{Client, request};
use crate::mounts::to_message;
use crate::status::error;

#[async_trait]
impl Applier for Client {
    async fn apply(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        sync_fs: bool,
    ) -> Result<Applied> {
        let subject = || layer.digest.to_string();
        let message = ApplyRequest {
            diff: Some(DescriptorMessage {
                media_type: media_type::for_differ(&layer.media_type).to_owned(),
                digest: layer.digest.to_string(),
                size: i64::try_from(layer.size).unwrap_or(i64::MAX),
                annotations: layer.annotations.clone().into_iter().collect(),
            }),
            mounts: mounts.iter().map(to_message).collect(),
            // Before 2.0 there is no such field.
            sync_fs,
            ..ApplyRequest::default()
        };
        let answer = DiffClient::new(self.channel.clone())
            .apply(request(scope, message)?)
            .await;
        let answer = answer.map_err(|status| error("apply layer", subject(), status))?;
        let applied = answer.into_inner().applied.unwrap_or_default();
        Ok(Applied {
            diff_id: applied.digest.parse().map_err(|error| {
                Error::new(Kind::Internal, "apply layer", subject()).with_source(error)
            })?,
            size: u64::try_from(applied.size).unwrap_or(0),
        })
    }
}
