// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! From layers to an image: the config, the manifest, the index, and what is wrong with them
//! on request.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::archive;
use super::blobs::Blobs;
use super::built::{Built, BuiltLayer, BuiltManifest};
use super::layer::{Layer, digest};

/// The time in every config: that of [`super::tar_entry::EPOCH`].
const CREATED: &str = "2024-01-01T00:00:00Z";

/// Something wrong in an image, for the tests of errors. Layers count from 0, the lowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The config states a diff ID for this layer that its tar does not have.
    WrongDiffId(usize),
    /// The blob of this layer is not in the archive.
    MissingBlob(usize),
    /// The config states one diff ID less than the manifest has layers.
    MissingDiffId,
    /// The config states one diff ID more than the manifest has layers.
    ExtraDiffId,
}

/// An image of one platform, to be written alone or in an [`Index`].
#[derive(Debug, Clone)]
pub struct ImageBuilder {
    reference: String,
    layers: Vec<(Layer, BTreeMap<String, String>)>,
    cmd: Vec<String>,
    env: Vec<String>,
    platform: BTreeMap<&'static str, Value>,
    /// The OS features in the index, if they differ from the config's.
    listed_os_features: Option<Value>,
    docker: bool,
    faults: Vec<Fault>,
    edits: Vec<(Part, Edit)>,
}

/// A change of a document.
type Edit = fn(&mut Value);

/// A document of an image, or what points at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The config.
    Config,
    /// The manifest.
    Manifest,
    /// The manifest's entry in the index.
    Entry,
}

impl ImageBuilder {
    /// Returns an image without layers, for the platform of this machine.
    pub fn new(reference: &str) -> Self {
        let (os, architecture) = host_platform();
        Self {
            reference: reference.to_owned(),
            layers: Vec::new(),
            cmd: Vec::new(),
            env: vec![
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            ],
            platform: BTreeMap::new(),
            listed_os_features: None,
            docker: false,
            faults: Vec::new(),
            edits: Vec::new(),
        }
        .platform(os, architecture)
    }

    /// Adds a layer on top.
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push((layer, BTreeMap::new()));
        self
    }

    /// Adds layers on top.
    pub fn layers(self, layers: impl IntoIterator<Item = Layer>) -> Self {
        layers.into_iter().fold(self, Self::layer)
    }

    /// Annotates the descriptor of layer `index`, which must have been added.
    pub fn annotate_layer(mut self, index: usize, key: &str, value: &str) -> Self {
        if let Some((_, annotations)) = self.layers.get_mut(index) {
            annotations.insert(key.to_owned(), value.to_owned());
        }
        self
    }

    /// Sets the command.
    pub fn cmd<const N: usize>(mut self, cmd: [&str; N]) -> Self {
        self.cmd = cmd.map(str::to_owned).to_vec();
        self
    }

    /// Adds an environment variable.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push(format!("{key}={value}"));
        self
    }

    /// Sets the platform, in Go's words.
    pub fn platform(mut self, os: &str, architecture: &str) -> Self {
        self.platform = BTreeMap::from([("os", os.into()), ("architecture", architecture.into())]);
        self
    }

    /// Adds the variant of the architecture, such as `v8`, to the platform.
    pub fn variant(mut self, variant: &str) -> Self {
        self.platform.insert("variant", variant.into());
        self
    }

    /// Adds OS features to the platform.
    pub fn os_features<const N: usize>(mut self, features: [&str; N]) -> Self {
        self.platform
            .insert("os.features", json!(features.to_vec()));
        self
    }

    /// Has the index list other OS features than the config has.
    pub fn listed_os_features<const N: usize>(mut self, features: [&str; N]) -> Self {
        self.listed_os_features = Some(json!(features.to_vec()));
        self
    }

    /// Uses Docker's media types instead of OCI's.
    pub fn docker(mut self) -> Self {
        self.docker = true;
        self
    }

    /// Makes something wrong.
    pub fn fault(mut self, fault: Fault) -> Self {
        self.faults.push(fault);
        self
    }

    /// Changes a part before it is written. [`Built`] tells of the layers as they were added.
    pub fn edit(mut self, part: Part, edit: fn(&mut Value)) -> Self {
        self.edits.push((part, edit));
        self
    }

    fn edited(&self, part: Part, mut value: Value) -> Value {
        let edits = self.edits.iter().filter(|(edited, _)| *edited == part);
        edits.for_each(|(_, edit)| edit(&mut value));
        value
    }

    /// Writes the image as an OCI layout archive whose name points to the manifest.
    pub fn write(self, path: &Path) -> Result<Built> {
        let mut blobs = Blobs::default();
        let (descriptor, manifest) = self.store(&mut blobs);
        archive::write(path, &[(&self.reference, &descriptor)], &blobs)?;
        Ok(built(self.reference, None, manifest, Vec::new(), path))
    }

    /// Puts all blobs of the image in `blobs`; gives the manifest's descriptor.
    fn store(&self, blobs: &mut Blobs) -> (Value, BuiltManifest) {
        let layers = self.built_layers();
        let config = self.edited(Part::Config, self.config(&layers));
        let config = blobs.json(&self.config_type(), &config);
        let mut descriptors = Vec::new();
        for (index, (layer, annotations)) in self.layers.iter().enumerate() {
            if !self.faults.contains(&Fault::MissingBlob(index)) {
                blobs
                    .0
                    .insert(layer.digest.clone(), Arc::clone(&layer.blob));
            }
            let mut descriptor = json!({
                "mediaType": layer.media_type(self.docker),
                "digest": layer.digest,
                "size": layer.size,
            });
            if !annotations.is_empty() {
                descriptor["annotations"] = json!(annotations);
            }
            descriptors.push(descriptor);
        }
        let media_type = match self.docker {
            true => "application/vnd.docker.distribution.manifest.v2+json",
            false => "application/vnd.oci.image.manifest.v1+json",
        };
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": config,
            "layers": descriptors,
        });
        let manifest = self.edited(Part::Manifest, manifest);
        let mut descriptor = blobs.json(media_type, &manifest);
        descriptor["platform"] = json!(self.platform);
        if let Some(features) = &self.listed_os_features {
            descriptor["platform"]["os.features"] = features.clone();
        }
        let descriptor = self.edited(Part::Entry, descriptor);
        let digest = text(&descriptor["digest"]);
        (
            descriptor,
            BuiltManifest {
                digest,
                config: text(&config["digest"]),
                layers,
            },
        )
    }

    fn built_layers(&self) -> Vec<BuiltLayer> {
        let mut layers: Vec<BuiltLayer> = Vec::new();
        for (index, (layer, _)) in self.layers.iter().enumerate() {
            let diff_id = match self.faults.contains(&Fault::WrongDiffId(index)) {
                true => digest(format!("not {}", layer.diff_id).as_bytes()),
                false => layer.diff_id.clone(),
            };
            let chain_id = match layers.last() {
                Some(below) => digest(format!("{} {diff_id}", below.chain_id).as_bytes()),
                None => diff_id.clone(),
            };
            layers.push(BuiltLayer {
                digest: layer.digest.clone(),
                diff_id,
                chain_id,
                size: layer.size,
            });
        }
        layers
    }

    fn config_type(&self) -> String {
        match self.docker {
            true => "application/vnd.docker.container.image.v1+json".to_owned(),
            false => "application/vnd.oci.image.config.v1+json".to_owned(),
        }
    }

    fn config(&self, layers: &[BuiltLayer]) -> Value {
        let mut diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        if self.faults.contains(&Fault::MissingDiffId) {
            diff_ids.pop();
        }
        if self.faults.contains(&Fault::ExtraDiffId) {
            diff_ids.push(digest(b"a layer that does not exist"));
        }
        let mut config = json!({
            "created": CREATED,
            "config": { "Env": self.env, "Cmd": self.cmd, "WorkingDir": "/" },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": layers.iter().map(|_| json!({ "created": CREATED })).collect::<Vec<_>>(),
        });
        for (key, value) in &self.platform {
            config[*key] = value.clone();
        }
        config
    }
}

/// An image of several platforms.
#[derive(Debug, Clone)]
pub struct Index {
    reference: String,
    images: Vec<ImageBuilder>,
}

impl Index {
    /// Returns an index without manifests.
    pub fn new(reference: &str) -> Self {
        Self {
            reference: reference.to_owned(),
            images: Vec::new(),
        }
    }

    /// Adds the image of a further platform; the name it was begun with is not used.
    pub fn image(mut self, image: ImageBuilder) -> Self {
        self.images.push(image);
        self
    }

    /// Writes an OCI layout archive whose name points to the index, in Docker's media types if
    /// the first image uses them.
    pub fn write(self, path: &Path) -> Result<Built> {
        let mut blobs = Blobs::default();
        let (descriptor, built) = self.store(&mut blobs, path)?;
        archive::write(path, &[(&built.reference, &descriptor)], &blobs)?;
        Ok(built)
    }

    /// Puts all blobs of the index in `blobs`; gives its descriptor, and what will be at `path`.
    pub(super) fn store(self, blobs: &mut Blobs, path: &Path) -> Result<(Value, Built)> {
        ensure!(
            !self.images.is_empty(),
            "the index {} has no image: add one",
            self.reference
        );
        let stored: Vec<_> = self.images.iter().map(|image| image.store(blobs)).collect();
        let media_type = match self.images[0].docker {
            true => "application/vnd.docker.distribution.manifest.list.v2+json",
            false => "application/vnd.oci.image.index.v1+json",
        };
        let (descriptors, mut manifests): (Vec<_>, Vec<_>) = stored.into_iter().unzip();
        let index =
            json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": descriptors });
        let descriptor = blobs.json(media_type, &index);
        let first = manifests.remove(0);
        let digest = Some(text(&descriptor["digest"]));
        let built = built(self.reference, digest, first, manifests, path);
        Ok((descriptor, built))
    }
}

/// Returns the operating system and architecture of this machine, in Go's words.
pub fn host_platform() -> (&'static str, &'static str) {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    ("linux", architecture)
}

fn built(
    reference: String,
    index: Option<String>,
    first: BuiltManifest,
    others: Vec<BuiltManifest>,
    path: &Path,
) -> Built {
    Built {
        reference,
        index,
        manifest: first.digest,
        config: first.config,
        layers: first.layers,
        others,
        archive: path.to_owned(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
