// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The readiness of an image.

use std::collections::BTreeMap;

use resnap_core::{
    ChainId, DiffId, Digest, Error, Integrity, Kind, Proof, SnapshotInfo, SnapshotKey,
    SnapshotKind, labels,
};
use serde::Serialize;

use crate::backend::Backend;
use crate::{Plan, UnpackError, warnings};

/// The readiness of an image on some snapshotters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Check {
    /// The image's name in the store.
    pub image: String,
    /// The reference to pull by.
    pub reference: Option<String>,
    /// The platform of the manifest.
    pub platform: String,
    /// The manifest.
    pub manifest: Digest,
    /// The config; its digest is the image's ID.
    pub config: Digest,
    /// The layers, the base first.
    pub layers: Vec<LayerCheck>,
    /// The readiness on each snapshotter.
    pub snapshotters: BTreeMap<String, Readiness>,
    /// Problems of the image, and of mounting it.
    pub warnings: Vec<String>,
}

impl Check {
    /// Returns the check of an image without reference, layers, snapshotters and warnings.
    pub fn new(image: String, platform: String, manifest: Digest, config: Digest) -> Self {
        Self {
            image,
            reference: None,
            platform,
            manifest,
            config,
            layers: Vec::new(),
            snapshotters: BTreeMap::new(),
            warnings: Vec::new(),
        }
    }
}

/// The readiness on a snapshotter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Readiness {
    /// Whether a container can start.
    pub ready: bool,
    /// The reason why the snapshotter needs labels, if it does.
    pub needs_labels: Option<String>,
}

impl Readiness {
    /// Returns the readiness on a snapshotter that needs labels for the given reason, if any.
    pub fn new(ready: bool, needs_labels: Option<String>) -> Self {
        Self {
            ready,
            needs_labels,
        }
    }
}

/// The state of one layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LayerCheck {
    /// The blob.
    pub digest: Digest,
    /// The digest of its uncompressed tar.
    pub diff_id: DiffId,
    /// The name of its snapshot.
    pub chain_id: ChainId,
    /// The blob's size.
    pub bytes: u64,
    /// Whether the blob is in the content store.
    pub blob: bool,
    /// The state of its snapshot on each snapshotter.
    pub snapshots: BTreeMap<String, LayerState>,
}

impl LayerCheck {
    /// Returns the check of a layer of unknown size, whose blob and snapshots are missing.
    pub fn new(digest: Digest, diff_id: DiffId, chain_id: ChainId) -> Self {
        Self {
            digest,
            diff_id,
            chain_id,
            bytes: 0,
            blob: false,
            snapshots: BTreeMap::new(),
        }
    }
}

/// The state of a layer on a snapshotter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum LayerState {
    /// The layer has a committed snapshot.
    Committed {
        /// The state of its labels.
        labels: LabelState,
        /// The snapshotter that the layer was copied from, if it was not made from its blob
        /// ([`labels::COPIED_FROM`]).
        #[serde(skip_serializing_if = "Option::is_none")]
        copied_from: Option<String>,
        /// The proof of the layer.
        #[serde(skip_serializing_if = "Option::is_none")]
        proof: Option<Proof>,
        /// The reason why the layer does not have the proof that the snapshotter's layers need.
        #[serde(skip_serializing_if = "Option::is_none")]
        unproven: Option<String>,
    },
    /// The layer has no committed snapshot.
    Missing,
    /// The snapshotter does not answer.
    Unknown {
        /// The error.
        reason: String,
    },
}

/// The labels of a layer's snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelState {
    /// The labels are complete, and name this reference. Shared layers name the image that was
    /// unpacked first.
    Complete(String),
    /// These labels are missing.
    Missing(Vec<String>),
}

impl LayerState {
    fn of(info: &SnapshotInfo, integrity: Integrity) -> Self {
        if info.kind != SnapshotKind::Committed {
            return Self::Missing;
        }
        let missing = labels::missing(&info.labels);
        let labels = match info.labels.get(labels::IMAGE_REF) {
            Some(reference) if missing.is_empty() => LabelState::Complete(reference.clone()),
            _ => LabelState::Missing(missing.into_iter().map(str::to_owned).collect()),
        };
        Self::Committed {
            labels,
            copied_from: info.labels.get(labels::COPIED_FROM).cloned(),
            proof: Proof::of(&info.labels),
            unproven: integrity.missing(&info.labels).map(str::to_owned),
        }
    }

    /// Returns whether a container can stand on the layer.
    fn suffices(&self, needs_labels: bool) -> bool {
        match self {
            Self::Missing
            | Self::Unknown { .. }
            | Self::Committed {
                unproven: Some(_), ..
            } => false,
            Self::Committed {
                labels: LabelState::Complete(_),
                ..
            } => true,
            Self::Committed {
                labels: LabelState::Missing(_),
                ..
            } => !needs_labels,
        }
    }
}

pub(crate) async fn check(
    backend: &Backend,
    plan: &Plan,
    snapshotters: &[String],
) -> Result<Check, UnpackError> {
    let failed = |source| UnpackError::Image {
        image: plan.image.name.clone(),
        source,
    };
    let mut layers = Vec::with_capacity(plan.layers.len());
    for layer in &plan.layers {
        let blob = match backend
            .ports
            .content
            .info(&backend.scope, &layer.descriptor.digest)
            .await
        {
            Ok(_) => true,
            Err(error) if error.is_not_found() => false,
            Err(error) => return Err(failed(error)),
        };
        let mut snapshots = BTreeMap::new();
        for name in snapshotters {
            let state = state(backend, plan, name, &layer.chain_id).await?;
            snapshots.insert(name.clone(), state);
        }
        layers.push(LayerCheck {
            digest: layer.descriptor.digest.clone(),
            diff_id: layer.diff_id.clone(),
            chain_id: layer.chain_id.clone(),
            bytes: layer.descriptor.size,
            blob,
            snapshots,
        });
    }
    let verdict = |name: &String| {
        let ready = layers.iter().enumerate().all(|(index, layer)| {
            let needed = backend.needs_labels(name, index, layers.len());
            let state = layer.snapshots.get(name);
            state.is_some_and(|state| state.suffices(needed))
        });
        let needs_labels = backend.profiles.need(name).map(|need| need.why.to_string());
        let readiness = Readiness {
            ready,
            needs_labels,
        };
        (name.clone(), readiness)
    };
    Ok(Check {
        image: plan.image.name.clone(),
        reference: plan.image.reference.clone(),
        platform: plan.platform.to_string(),
        manifest: plan.manifest.digest.clone(),
        config: plan.config.digest.clone(),
        snapshotters: snapshotters.iter().map(verdict).collect(),
        layers,
        warnings: warnings::warnings(backend, plan, snapshotters).await,
    })
}

/// Returns whether an existing layer has the label of content that exists in guests only. One such
/// layer suffices: the layers on it show nothing of it on the host.
pub(crate) async fn is_remote(
    backend: &Backend,
    plan: &Plan,
    snapshotter: &str,
) -> Result<bool, UnpackError> {
    let need = backend.profiles.need(snapshotter);
    let Some((key, _)) = need.and_then(|need| need.repair_label) else {
        return Ok(false);
    };
    let snapshotter = backend.snapshotter(snapshotter);
    for layer in &plan.layers {
        let name = SnapshotKey::from(&layer.chain_id);
        match snapshotter.stat(&backend.scope, &name).await {
            // The snapshotter looks at the key only, too.
            Ok(info) if info.labels.contains_key(key) => return Ok(true),
            Ok(_) => {}
            // The layers above do not exist either.
            Err(error) if error.is_not_found() => break,
            Err(source) => {
                return Err(UnpackError::Image {
                    image: plan.image.name.clone(),
                    source,
                });
            }
        }
    }
    Ok(false)
}

pub(crate) async fn is_ready(
    backend: &Backend,
    plan: &Plan,
    snapshotter: &str,
) -> Result<bool, UnpackError> {
    let count = plan.layers.len();
    let needs_proof = backend.profiles.get(snapshotter).integrity.is_on();
    // The parents of a committed snapshot exist; only their labels and proofs may be missing.
    for (index, layer) in plan.layers.iter().enumerate().rev() {
        let needed = backend.needs_labels(snapshotter, index, count);
        if !needed && !needs_proof && index + 1 < count {
            continue;
        }
        match state(backend, plan, snapshotter, &layer.chain_id).await? {
            LayerState::Unknown { reason } => {
                return Err(UnpackError::Backend(
                    Error::new(Kind::Unavailable, "ask snapshotter", snapshotter)
                        .with_source(reason),
                ));
            }
            state if !state.suffices(needed) => return Ok(false),
            _ => {}
        }
    }
    Ok(true)
}

async fn state(
    backend: &Backend,
    plan: &Plan,
    snapshotter: &str,
    chain_id: &ChainId,
) -> Result<LayerState, UnpackError> {
    let integrity = backend.profiles.get(snapshotter).integrity;
    let snapshotter = backend.snapshotter(snapshotter);
    match snapshotter
        .stat(&backend.scope, &SnapshotKey::from(chain_id))
        .await
    {
        Ok(info) => Ok(LayerState::of(&info, integrity)),
        Err(error) if error.is_not_found() => Ok(LayerState::Missing),
        // A proxy snapshotter may be down while the others work.
        Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::DeadlineExceeded) => {
            let reason = std::error::Error::source(&error).map(ToString::to_string);
            Ok(LayerState::Unknown {
                reason: reason.unwrap_or_else(|| error.to_string()),
            })
        }
        Err(source) => Err(UnpackError::Image {
            image: plan.image.name.clone(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use resnap_core::Labels;
    use resnap_core::testing::{Behaviour, Simulated, SimulatedImage, SimulatedLayer};

    use crate::{Engine, EngineSettings, Request};

    #[tokio::test]
    async fn a_chain_is_remote_if_any_layer_of_it_is() {
        let backend = Simulated::new();
        for snapshotter in ["nydus", "overlayfs"] {
            backend.add_snapshotter(snapshotter, Behaviour::Ordinary);
        }
        let layers = ["base", "middle", "top"].map(SimulatedLayer::new);
        backend.add_image("k8s.io", "web", &SimulatedImage::new(layers));
        let engine = Engine::new(backend.ports(), "k8s.io", EngineSettings::default()).unwrap();
        let plan = engine.plan(&Request::new("web").on("nydus")).await.unwrap();
        let is_remote = || async { engine.is_remote(&plan, "nydus").await.unwrap() };
        assert!(!is_remote().await);
        let remote = "containerd.io/snapshot/nydus-proxy-mode".to_owned();
        let remote = Labels::from([(remote, "true".to_owned())]);
        // The base belongs to another image and is pulled in the guest; the other layers are
        // unpacked on the host.
        for (layer, labels) in plan
            .layers
            .iter()
            .zip([&remote, &Labels::new(), &Labels::new()])
        {
            let parent = layer.parent.as_ref();
            assert!(backend.unpack("k8s.io", "nydus", parent, &layer.diff_id, labels));
            assert!(is_remote().await, "{}", layer.chain_id);
        }
        assert!(!engine.is_remote(&plan, "overlayfs").await.unwrap());
    }
}
