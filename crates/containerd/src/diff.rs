// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The differ (containerd `api/services/diff/v1/diff.proto`).

use std::collections::HashMap;

use async_trait::async_trait;
use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::types::Descriptor as DescriptorMessage;
use resnap_core::{Applied, Applier, Descriptor, Error, Kind, Mount, Result, Scope};

use crate::connection::{Connection, request};
use crate::mark::mark;
use crate::mounts::to_message;
use crate::status::error;

#[async_trait]
impl Applier for Connection {
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
                media_type: differ_media_type(&layer.media_type).to_owned(),
                digest: layer.digest.to_string(),
                size: i64::try_from(layer.size).unwrap_or(i64::MAX),
                annotations: marked(layer),
            }),
            mounts: mounts.iter().map(to_message).collect(),
            // containerd before 2.0 ignores this field.
            sync_fs,
            ..ApplyRequest::default()
        };
        let answer = DiffClient::new(self.channel())
            .apply(request(scope, message)?)
            .await;
        let answer = answer.map_err(|status| error("apply layer", subject(), status))?;
        let applied = answer.into_inner().applied.unwrap_or_default();
        Ok(Applied {
            diff_id: Some(applied.digest.parse().map_err(|error| {
                Error::new(Kind::Internal, "apply layer", subject()).with_source(error)
            })?),
            size: u64::try_from(applied.size).unwrap_or(0),
            is_own_image: false,
            proof: None,
        })
    }
}

/// Returns the annotations of a layer with the mark: if a diff plugin of resnap is the first differ of this
/// containerd, it must not write what was left to containerd.
fn marked(layer: &Descriptor) -> HashMap<String, String> {
    let own = (mark().to_owned(), String::new());
    layer.annotations.clone().into_iter().chain([own]).collect()
}

/// Returns the media type under which containerd's erofs differ accepts a layer.
///
/// containerd 2.1 and 2.2 recognise an EROFS image by the suffix of its media type
/// (`plugins/diff/erofs`, `isErofsMediaType`), and 2.3 and later by the prefix. None of them knows the
/// types of the EROFS image format.
fn differ_media_type(media_type: &str) -> &str {
    match media_type {
        "application/vnd.erofs.layer.v1" | "application/vnd.erofs" => {
            "application/vnd.erofs.layer.v1.erofs"
        }
        "application/vnd.erofs+zstd" => "application/vnd.erofs.layer.v1+zstd",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use resnap_core::media_type::{Compression, Format, is_erofs, layer};

    use super::*;

    #[test]
    fn every_differ_knows_uncompressed_erofs_images() {
        for media_type in [
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.docker.image.rootfs.diff.tar",
            "application/vnd.erofs.layer.v1",
            "application/vnd.erofs.layer.v1+zstd",
            "application/vnd.erofs",
            "application/vnd.erofs+zstd",
            "application/vnd.erofs.chunk-index.v1",
            "application/vnd.erofs.layer.v1+gzip",
            "application/vnd.erofs+gzip",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        ] {
            let sent = differ_media_type(media_type);
            let is_copied = layer(media_type) == Some((Format::Erofs, Compression::None));
            assert_eq!(sent.ends_with(".erofs"), is_copied);
            assert_eq!(sent.contains("erofs"), is_erofs(media_type));
            if layer(media_type).is_some() && is_erofs(media_type) {
                assert!(sent.starts_with("application/vnd.erofs.layer.v1"), "{sent}");
            }
        }
    }
}
