// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The plan: which snapshots an image has, with which labels.

use std::collections::BTreeSet;
use std::sync::Arc;

use resnap_core::{
    ChainId, Descriptor, DiffId, Error, Kind, Labels, erofs_layer, labels, media_type,
};
use resnap_handler_wrapper::{Children, Choice, ChoiceError, Handler, NotAnImage, append_info};
use resnap_platforms::{Matcher, Platform};

use crate::choose::{Chosen, choose, os_features, wanted};
use crate::engine::Inner;
use crate::{Request, ResolvedImage, UnpackError};

/// About what an entry of a map takes beside its texts, and a layer beside its maps.
const ENTRY: usize = 64;
const LAYER: usize = 1024;

/// What is to be on a snapshotter for an image to be ready there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The image.
    pub image: ResolvedImage,
    /// The platform of the manifest, as the config has it.
    pub platform: Platform,
    /// What a snapshotter has to take: the OS features of the config, and `erofs` if layers are
    /// EROFS images.
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
pub struct PlannedLayer {
    /// The blob.
    pub descriptor: Descriptor,
    /// The digest of its uncompressed tar.
    pub diff_id: DiffId,
    /// Its committed snapshot.
    pub chain_id: ChainId,
    /// The committed snapshot below.
    pub parent: Option<ChainId>,
    /// The labels for Prepare and Commit.
    pub labels: Labels,
}

impl Plan {
    /// The committed snapshot of the top layer; `None` for an image without layers.
    pub fn top(&self) -> Option<&ChainId> {
        self.layers.last().map(|layer| &layer.chain_id)
    }

    /// Returns about how many bytes of memory it takes: its texts, of which annotations and labels
    /// may be megabytes.
    pub(crate) fn bytes(&self) -> usize {
        let of = |labels: &Labels| -> usize {
            let pairs = labels.iter();
            pairs
                .map(|(key, value)| ENTRY + key.len() + value.len())
                .sum()
        };
        let descriptors = [&self.image.target, &self.manifest, &self.config];
        let descriptors = descriptors.map(|descriptor| of(&descriptor.annotations));
        let layers = self.layers.iter();
        let layers =
            layers.map(|layer| LAYER + of(&layer.descriptor.annotations) + of(&layer.labels));
        descriptors.into_iter().sum::<usize>() + layers.sum::<usize>()
    }
}

/// A plan of more bytes is large. Those of honest images take a tenth of it.
const LARGE: usize = 1 << 20;

/// Most bytes of the large plans of running jobs.
const MAX_RUNNING: usize = 64 << 20;

/// Checks that there is room for a plan in memory beside those of the jobs that run, which may be
/// many, and run for long when nobody waits for them.
///
/// # Errors
/// [`Kind::ResourceExhausted`] for a large plan where there are enough of these.
pub(crate) fn require_room<'a>(
    running: impl Iterator<Item = &'a Plan>,
    plan: &Plan,
) -> Result<(), UnpackError> {
    let own = plan.bytes();
    if own <= LARGE {
        return Ok(());
    }
    let others: usize = running
        .map(Plan::bytes)
        .filter(|bytes| *bytes > LARGE)
        .sum();
    if others + own <= MAX_RUNNING {
        return Ok(());
    }
    let reason = format!(
        "its manifest has {own} bytes of annotations and labels, and those of images that are being unpacked {others}, of at most {MAX_RUNNING} together: wait until these are done"
    );
    Err(UnpackError::Image {
        image: plan.image.name.clone(),
        source: Error::new(Kind::ResourceExhausted, "begin", "unpack").with_source(reason),
    })
}

/// Plans what `request` is about, and whether the plan lasts as long as the image's target stays.
pub(crate) async fn plan(
    engine: &Inner,
    image: ResolvedImage,
    request: &Request,
) -> Result<(Plan, bool), UnpackError> {
    let (ports, scope) = (&engine.ports, &engine.scope);
    let failed = |source| match NotAnImage::behind(&source) {
        Some(NotAnImage { media_type }) => UnpackError::NotAnImage {
            image: image.name.clone(),
            part: "config",
            media_type: media_type.clone(),
        },
        None => UnpackError::Documents {
            image: image.name.clone(),
            source,
            fetch: image.fetch(request.platform.as_ref()),
        },
    };
    let chosen = choose(engine, &image, request).await;
    let Chosen { choice, lasting } = chosen.map_err(|error| match error {
        ChoiceError::NoMatch(mut available) => {
            available.sort();
            available.dedup();
            UnpackError::NoManifest {
                image: image.name.clone(),
                wanted: wanted(request).to_string(),
                available,
            }
        }
        ChoiceError::Content(error) => failed(error),
    })?;
    let Choice {
        manifest,
        config_descriptor,
        config,
        layers,
    } = choice;

    let handler: Arc<dyn Handler> =
        Arc::new(Children::new(Arc::clone(&ports.content), scope.clone()));
    let own = append_info(image.reference.as_deref());
    let handler = request
        .wrappers
        .iter()
        .fold(own(handler), |inner, wrapper| wrapper(inner));
    let children = handler.handle(&manifest).await.map_err(failed)?;
    let descriptors: Vec<Descriptor> = children
        .into_iter()
        .filter(|child| media_type::is_layer(&child.media_type))
        .collect();
    let diff_ids = diff_ids(&image, &descriptors, config.diff_ids)?;
    if let (true, false, Some(other)) =
        (descriptors.is_empty(), diff_ids.is_empty(), layers.first())
    {
        return Err(UnpackError::NotAnImage {
            image: image.name,
            part: "layers",
            media_type: other.media_type.clone(),
        });
    }
    if descriptors.len() != diff_ids.len() {
        return Err(UnpackError::LayerCount {
            image: image.name,
            manifest: manifest.digest,
            layers: descriptors.len(),
            diff_ids: diff_ids.len(),
        });
    }

    let os_features = os_features(&config.platform, &layers);
    let mut layers: Vec<PlannedLayer> = Vec::with_capacity(descriptors.len());
    for (descriptor, diff_id) in descriptors.into_iter().zip(diff_ids) {
        let parent = layers.last().map(|layer| layer.chain_id.clone());
        let chain_id = ChainId::of(parent.as_ref(), &diff_id);
        let labels = layer_labels(&descriptor, &diff_id, &chain_id, parent.as_ref());
        if let Some((key, value)) = labels.iter().find(|(key, value)| !labels::fits(key, value)) {
            return Err(UnpackError::LabelTooLong {
                image: image.name,
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
    let plan = Plan {
        image,
        platform: config.platform,
        os_features,
        manifest,
        config: config_descriptor,
        layers,
    };
    Ok((plan, lasting))
}

/// The diff IDs of `layers`: the config's, or where it has none those that layers of the EROFS image
/// format say themselves. Of such an image every layer has to be one that is taken.
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

/// What this machine takes of an image. One that is for one platform only was chosen by whoever
/// pulled it (containerd `core/images/image.go`, `Manifest`, looks at no config then).
pub(crate) fn host_matcher(target: &Descriptor) -> Matcher {
    if media_type::is_manifest(&target.media_type) {
        Matcher::all()
    } else {
        Matcher::default()
    }
}

/// What of the layer's annotations passes on, and the labels that containerd's own unpacker sets.
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
    use resnap_core::Kind;
    use resnap_core::testing::{Simulated, SimulatedImage, SimulatedLayer};
    use resnap_handler_wrapper::MAX_LAYERS;

    use super::{LARGE, MAX_RUNNING, require_room};
    use crate::{Engine, EngineSettings, Request};

    #[tokio::test]
    async fn layers_are_taken_up_to_a_limit() {
        let backend = Simulated::new();
        let layer = SimulatedLayer::new("the same again");
        for (name, layers) in [("tall", MAX_LAYERS), ("too-tall", MAX_LAYERS + 1)] {
            let image = SimulatedImage::new(vec![layer.clone(); layers]);
            backend.add_image("k8s.io", name, &image);
        }
        let engine = Engine::new(backend.ports(), "k8s.io", EngineSettings::default()).unwrap();
        let plan = engine.plan(&Request::new("tall", "")).await.unwrap();
        assert_eq!(plan.layers.len(), MAX_LAYERS);
        let error = engine.plan(&Request::new("too-tall", "")).await;
        assert_eq!(error.unwrap_err().kind(), Kind::InvalidArgument);
    }

    #[tokio::test]
    async fn large_plans_of_running_jobs_are_bounded_together() {
        let backend = Simulated::new();
        let image = SimulatedImage::new([SimulatedLayer::new("a")]);
        backend.add_image("k8s.io", "web", &image);
        let engine = Engine::new(backend.ports(), "k8s.io", EngineSettings::default()).unwrap();
        let plan = engine.plan(&Request::new("web", "")).await.unwrap();
        let mut large = (*plan).clone();
        let annotation = ("annotation".to_owned(), "x".repeat(4 * LARGE));
        large.layers[0].descriptor.annotations.extend([annotation]);

        let room = |running: usize, wanted| require_room(vec![&large; running].into_iter(), wanted);
        let most = MAX_RUNNING / large.bytes();
        assert!(room(most - 1, &large).is_ok());
        let error = room(most, &large).unwrap_err();
        assert_eq!(error.kind(), Kind::ResourceExhausted);
        assert!(error.to_string().contains("web"), "{error}");
        // Small ones are taken in spite of them, and take no room from them.
        assert!(room(2 * most, &plan).is_ok());
        assert!(require_room(vec![&*plan; 100_000].into_iter(), &large).is_ok());
    }
}
