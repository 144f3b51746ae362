// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The plan of an image: its snapshots and their labels.

use std::collections::BTreeSet;
use std::sync::Arc;

use resnap_core::{ChainId, Descriptor, DiffId, Error, Labels, erofs_layer, labels, media_type};
use resnap_handler_wrapper::{Choice, ChoiceError, Handler, NotAnImage, append_info};
use resnap_platforms::Platform;

use crate::backend::Backend;
use crate::choose::{Selection, os_features, select};
use crate::{Request, ResolvedImage, UnpackError};

/// The approximate cost in bytes of a map entry beside its texts.
const ENTRY_BYTES: usize = 64;

/// The approximate cost in bytes of a layer beside its maps.
const LAYER_BYTES: usize = 1024;

/// The snapshots that make an image ready on a snapshotter.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// The image.
    pub image: ResolvedImage,
    /// The platform in the config.
    pub platform: Platform,
    /// The OS features that a snapshotter must support: those of the config, and `erofs` if layers
    /// are EROFS images.
    pub os_features: BTreeSet<String>,
    /// The manifest.
    pub manifest: Descriptor,
    /// The config.
    pub config: Descriptor,
    /// The layers, the base first.
    pub layers: Vec<PlannedLayer>,
}

/// One layer of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlannedLayer {
    /// The blob.
    pub descriptor: Descriptor,
    /// The digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// The name of the committed snapshot.
    pub chain_id: ChainId,
    /// The committed snapshot below.
    pub parent: Option<ChainId>,
    /// The labels for Prepare and Commit.
    pub labels: Labels,
}

impl Plan {
    /// Returns the committed snapshot of the top layer; `None` for an image without layers.
    pub fn top(&self) -> Option<&ChainId> {
        self.layers.last().map(|layer| &layer.chain_id)
    }

    /// Returns the approximate memory use in bytes. Annotations and labels may take megabytes.
    pub(crate) fn bytes(&self) -> usize {
        let map_bytes = |labels: &Labels| -> usize {
            let pairs = labels.iter();
            pairs
                .map(|(key, value)| ENTRY_BYTES + key.len() + value.len())
                .sum()
        };
        let descriptors = [&self.image.target, &self.manifest, &self.config];
        let descriptors = descriptors.map(|descriptor| map_bytes(&descriptor.annotations));
        let layers = self.layers.iter();
        let layers = layers.map(|layer| {
            let annotations = map_bytes(&layer.descriptor.annotations);
            LAYER_BYTES + annotations + map_bytes(&layer.labels)
        });
        descriptors.into_iter().sum::<usize>() + layers.sum::<usize>()
    }
}

/// Makes the plan for `request`, and returns whether it is valid for as long as the image's target
/// stays.
pub(crate) async fn make_plan(
    backend: &Backend,
    image: ResolvedImage,
    request: &Request,
) -> Result<(Plan, bool), UnpackError> {
    let selection = select(backend, &image, request).await;
    let Selection { choice, cacheable } =
        selection.map_err(|error| choice_error(&image, request, error))?;
    let descriptors = labelled_layers(backend, &image, request, &choice).await?;
    let diff_ids = diff_ids(&image, &descriptors, choice.config.diff_ids.clone())?;
    require_same_count(&image, &choice, &descriptors, &diff_ids)?;
    let layers = chain(&image, descriptors, diff_ids)?;
    let plan = Plan {
        os_features: os_features(&choice.config.platform, &choice.layers),
        image,
        platform: choice.config.platform,
        manifest: choice.manifest,
        config: choice.config_descriptor,
        layers,
    };
    Ok((plan, cacheable))
}

fn choice_error(image: &ResolvedImage, request: &Request, error: ChoiceError) -> UnpackError {
    match error {
        ChoiceError::NoMatch(mut available) => {
            available.sort();
            available.dedup();
            UnpackError::NoManifest {
                image: image.name.clone(),
                wanted: request.platform_or_host().to_string(),
                available,
            }
        }
        ChoiceError::Content(error) => document_error(image, request, error),
    }
}

fn document_error(image: &ResolvedImage, request: &Request, source: Error) -> UnpackError {
    match NotAnImage::behind(&source) {
        Some(NotAnImage { media_type, .. }) => UnpackError::NotAnImage {
            image: image.name.clone(),
            part: "config",
            media_type: media_type.clone(),
        },
        None => UnpackError::Documents {
            image: image.name.clone(),
            source,
            fetch: image.fetch(request.platform.as_ref()),
            tried: Vec::new(),
        },
    }
}

/// Returns the layers of the chosen manifest with the annotations that become labels.
async fn labelled_layers(
    backend: &Backend,
    image: &ResolvedImage,
    request: &Request,
    choice: &Choice,
) -> Result<Vec<Descriptor>, UnpackError> {
    let content = Arc::clone(&backend.ports.content);
    let children: Arc<dyn Handler> = Arc::new(choice.children(content, backend.scope.clone()));
    let own = append_info(image.reference.as_deref());
    let wrappers = request.wrappers.iter();
    let handler = wrappers.fold(own(children), |inner, wrapper| wrapper(inner));
    let children = handler.handle(&choice.manifest).await;
    let mut children = children.map_err(|error| document_error(image, request, error))?;
    children.retain(|child| media_type::is_layer(&child.media_type));
    Ok(children)
}

fn require_same_count(
    image: &ResolvedImage,
    choice: &Choice,
    layers: &[Descriptor],
    diff_ids: &[DiffId],
) -> Result<(), UnpackError> {
    if let (true, false, Some(other)) = (
        layers.is_empty(),
        diff_ids.is_empty(),
        choice.layers.first(),
    ) {
        return Err(UnpackError::NotAnImage {
            image: image.name.clone(),
            part: "layers",
            media_type: other.media_type.clone(),
        });
    }
    if layers.len() != diff_ids.len() {
        return Err(UnpackError::LayerCount {
            image: image.name.clone(),
            manifest: choice.manifest.digest.clone(),
            layers: layers.len(),
            diff_ids: diff_ids.len(),
        });
    }
    Ok(())
}

/// Computes the chain IDs and labels of the layers.
fn chain(
    image: &ResolvedImage,
    descriptors: Vec<Descriptor>,
    diff_ids: Vec<DiffId>,
) -> Result<Vec<PlannedLayer>, UnpackError> {
    let mut layers: Vec<PlannedLayer> = Vec::with_capacity(descriptors.len());
    for (descriptor, diff_id) in descriptors.into_iter().zip(diff_ids) {
        let parent = layers.last().map(|layer| layer.chain_id.clone());
        let chain_id = ChainId::of(parent.as_ref(), &diff_id);
        let labels = layer_labels(&descriptor, &diff_id, &chain_id, parent.as_ref());
        if let Some((key, value)) = labels.iter().find(|(key, value)| !labels::fits(key, value)) {
            return Err(UnpackError::LabelTooLong {
                image: image.name.clone(),
                digest: descriptor.digest,
                key: key.clone(),
                bytes: key.len() + value.len(),
            });
        }
        layers.push(PlannedLayer {
            descriptor,
            diff_id,
            chain_id,
            parent,
            labels,
        });
    }
    Ok(layers)
}

/// Returns the diff IDs of `layers`: those of the config or, if it has none, those that layers of the
/// EROFS image format carry themselves. All layers of such an image must be supported.
fn diff_ids(
    image: &ResolvedImage,
    layers: &[Descriptor],
    listed: Vec<DiffId>,
) -> Result<Vec<DiffId>, UnpackError> {
    let mut types = layers.iter().map(|layer| &layer.media_type);
    if !types.any(|media_type| erofs_layer::is_of_format(media_type)) {
        return Ok(listed);
    }
    let mut own = Vec::with_capacity(layers.len());
    for (index, layer) in layers.iter().enumerate() {
        if let Some(why) = erofs_layer::not_taken(layer) {
            return Err(UnpackError::LayerNotTaken {
                image: image.name.clone(),
                digest: layer.digest.clone(),
                why,
            });
        }
        let disagrees = |why| UnpackError::DiffIdDisagrees {
            image: image.name.clone(),
            digest: layer.digest.clone(),
            why,
        };
        let says = erofs_layer::diff_id(layer).map_err(disagrees)?;
        match (says, listed.get(index)) {
            (Some(says), Some(listed)) if says != *listed => {
                return Err(disagrees(format!(
                    "it says that its diff ID is {says}, and the image's config that it is {listed}"
                )));
            }
            (None, None) if listed.is_empty() => {
                return Err(disagrees(
                    "neither it nor the image's config says its diff ID".to_owned(),
                ));
            }
            (says, _) => own.extend(says),
        }
    }
    Ok(if listed.is_empty() { own } else { listed })
}

/// Returns the annotations of the layer that pass on, and the labels that containerd's own unpacker
/// sets.
fn layer_labels(
    descriptor: &Descriptor,
    diff_id: &DiffId,
    chain_id: &ChainId,
    parent: Option<&ChainId>,
) -> Labels {
    let annotations = descriptor.annotations.iter();
    let mut labels: Labels = annotations
        .filter(|(key, _)| key.starts_with(labels::INHERITED_PREFIX))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    labels.insert(labels::SNAPSHOT_REF.to_owned(), chain_id.to_string());
    labels.insert(labels::DIFF_ID.to_owned(), diff_id.to_string());
    labels.remove(labels::PARENT_CHAIN_ID);
    if let Some(parent) = parent {
        labels.insert(labels::PARENT_CHAIN_ID.to_owned(), parent.to_string());
    }
    labels
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use resnap_core::testing::{Simulated, SimulatedImage, SimulatedLayer};
    use resnap_core::{ByteStream, ContentInfo, ContentReader, Digest, Kind, Result, Scope};
    use resnap_handler_wrapper::MAX_LAYERS;

    use super::Arc;
    use crate::{Engine, EngineSettings, Request};

    /// A content store that records which blobs are opened.
    struct Counting {
        inner: Arc<dyn ContentReader>,
        opened: Mutex<Vec<Digest>>,
    }

    #[async_trait]
    impl ContentReader for Counting {
        async fn info(&self, scope: &Scope, digest: &Digest) -> Result<ContentInfo> {
            self.inner.info(scope, digest).await
        }

        async fn open(&self, scope: &Scope, digest: &Digest) -> Result<ByteStream> {
            self.opened.lock().unwrap().push(digest.clone());
            self.inner.open(scope, digest).await
        }
    }

    #[tokio::test]
    async fn a_plan_reads_the_manifest_and_the_config_once() {
        let backend = Simulated::new();
        let image = SimulatedImage::new(["a", "b"].map(SimulatedLayer::new));
        backend.add_image("k8s.io", "web", &image);
        let mut ports = backend.ports();
        let counting = Arc::new(Counting {
            inner: ports.content,
            opened: Mutex::default(),
        });
        ports.content = counting.clone();
        let engine = Engine::new(ports, "k8s.io", EngineSettings::default()).unwrap();
        let plan = engine.plan(&Request::new("web")).await.unwrap();
        let opened = counting.opened.lock().unwrap().clone();
        for document in [&plan.manifest.digest, &plan.config.digest] {
            let times = opened.iter().filter(|digest| *digest == document).count();
            assert_eq!(times, 1, "{document} in {opened:?}");
        }
    }

    #[tokio::test]
    async fn layers_are_taken_up_to_a_limit() {
        let backend = Simulated::new();
        let layer = SimulatedLayer::new("the same again");
        for (name, layers) in [("tall", MAX_LAYERS), ("too-tall", MAX_LAYERS + 1)] {
            let image = SimulatedImage::new(vec![layer.clone(); layers]);
            backend.add_image("k8s.io", name, &image);
        }
        let engine = Engine::new(backend.ports(), "k8s.io", EngineSettings::default()).unwrap();
        let plan = engine.plan(&Request::new("tall")).await.unwrap();
        assert_eq!(plan.layers.len(), MAX_LAYERS);
        let error = engine.plan(&Request::new("too-tall")).await;
        assert_eq!(error.unwrap_err().kind(), Kind::InvalidArgument);
    }
}
