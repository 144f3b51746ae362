// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The annotations that a remote snapshotter needs (containerd `pkg/snapshotters/annotations.go`,
//! `AppendInfoHandlerWrapper`).

use std::sync::Arc;

use async_trait::async_trait;
use resnap_core::{Descriptor, Digest, Result, labels, media_type};

use crate::handler::{Handler, Wrapper};

/// Returns a wrapper that annotates each layer of a manifest with the four `cri.*` labels,
/// replacing any values set by the image. `reference` is a reference to pull the image by; without
/// one, only the other three labels are set.
pub fn append_info(reference: Option<&str>) -> Wrapper {
    let reference: Option<Arc<str>> = reference.map(Into::into);
    Arc::new(move |inner| {
        Arc::new(AppendInfo {
            inner,
            reference: reference.clone(),
        })
    })
}

struct AppendInfo {
    inner: Arc<dyn Handler>,
    reference: Option<Arc<str>>,
}

#[async_trait]
impl Handler for AppendInfo {
    async fn handle(&self, descriptor: &Descriptor) -> Result<Vec<Descriptor>> {
        let mut children = self.inner.handle(descriptor).await?;
        if media_type::is_manifest(&descriptor.media_type) {
            annotate(&mut children, self.reference.as_deref(), &descriptor.digest);
        }
        Ok(children)
    }
}

fn annotate(children: &mut [Descriptor], reference: Option<&str>, manifest: &Digest) {
    let layers: Vec<Digest> = children
        .iter()
        .filter(|child| media_type::is_layer(&child.media_type))
        .map(|layer| layer.digest.clone())
        .collect();
    let layer_descriptors = children
        .iter_mut()
        .filter(|child| media_type::is_layer(&child.media_type));
    for (index, layer) in layer_descriptors.enumerate() {
        let own = layer.digest.to_string();
        // An image must not choose its own reference.
        layer.annotations.remove(labels::IMAGE_REF);
        if let Some(reference) = reference {
            let reference = reference.to_owned();
            layer
                .annotations
                .insert(labels::IMAGE_REF.to_owned(), reference);
        }
        layer.annotations.extend([
            (labels::MANIFEST_DIGEST.to_owned(), manifest.to_string()),
            (labels::LAYER_DIGEST.to_owned(), own),
            (
                labels::IMAGE_LAYERS.to_owned(),
                join_what_fits(&layers[index..]),
            ),
        ]);
    }
}

/// Joins the digests with commas, up to the first that would exceed the label limit.
fn join_what_fits(layers: &[Digest]) -> String {
    let mut joined = String::new();
    for layer in layers {
        let comma = usize::from(!joined.is_empty());
        let length = joined.len() + comma + layer.as_str().len();
        if labels::IMAGE_LAYERS.len() + length > labels::MAX_BYTES {
            break;
        }
        if comma == 1 {
            joined.push(',');
        }
        joined.push_str(layer.as_str());
    }
    joined
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn layer(number: usize) -> Descriptor {
        Descriptor {
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            digest: Digest::sha256(&number.to_le_bytes()),
            size: 1,
            // An image must not name another one.
            annotations: BTreeMap::from([(labels::IMAGE_REF.to_owned(), "evil".to_owned())]),
            platform: None,
        }
    }

    fn config() -> Descriptor {
        Descriptor {
            media_type: media_type::OCI_CONFIG.to_owned(),
            ..layer(999)
        }
    }

    #[test]
    fn layers_get_four_labels_and_the_config_none() {
        let mut children = vec![config(), layer(0), layer(1)];
        let manifest = Digest::sha256(b"manifest");
        annotate(&mut children, Some("docker.io/library/a:1"), &manifest);

        assert_eq!(children[0], config());
        let top = &children[2].annotations;
        assert_eq!(top[labels::IMAGE_REF], "docker.io/library/a:1");
        assert_eq!(top[labels::MANIFEST_DIGEST], manifest.as_str());
        assert_eq!(top[labels::LAYER_DIGEST], layer(1).digest.as_str());
        assert_eq!(top[labels::IMAGE_LAYERS], layer(1).digest.as_str());
        let both = format!("{},{}", layer(0).digest, layer(1).digest);
        assert_eq!(children[1].annotations[labels::IMAGE_LAYERS], both);
    }

    #[test]
    fn image_layers_stop_before_the_limit() {
        let digests: Vec<Digest> = (0..127).map(|number| layer(number).digest).collect();
        let value = join_what_fits(&digests);
        assert!(labels::fits(labels::IMAGE_LAYERS, &value));
        let one_more = format!("{value},{}", digests[0]);
        assert!(
            !labels::fits(labels::IMAGE_LAYERS, &one_more),
            "one more would have fitted"
        );
        assert!(
            value
                .split(',')
                .zip(&digests)
                .all(|(got, want)| got == want.as_str())
        );
    }
}
