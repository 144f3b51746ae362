// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The layers of an image as EROFS images, written side by side by the applier.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use resnap_applier::{ApplierSettings, Differ, InProcessApplier};
use resnap_core::erofs_layer::{self, OwnTree};
use resnap_core::{
    ApplyMonitor, ApplyPermit, Batch, BatchApplier, ByteStream, ChainId, ContentInfo,
    ContentReader, Descriptor, DiffId, Digest, ErofsMode, Error, Integrity, Introspection, Kind,
    Labels, Mount, Preparer, Result, Scope, SnapshotKey, Snapshotter, SnapshotterInfo, Stage,
    StageTiming, in_batch,
};
use resnap_erofs::{Memory, NoLower, Writer};
use resnap_handler_wrapper::Choice;
use resnap_local::Local;

use crate::fault::IoContext as _;
use crate::image::SourceImage;

/// The snapshotter of the store whose layers are EROFS images, and the name of their files.
const SNAPSHOTTER: &str = "erofs";
const IMAGE: &str = "layer.erofs";

/// Receives the progress of reading the layers of an image.
pub trait Progress: Send + Sync {
    /// Called before layers are read.
    fn begin(&self, layers: &[Descriptor]);
    /// Called when `bytes` bytes of the blob of the layer at `index` have been read.
    fn read(&self, index: usize, bytes: u64);
}

/// A layer as an EROFS image.
#[derive(Debug)]
pub(crate) struct WrittenLayer {
    pub(crate) descriptor: Descriptor,
    pub(crate) diff_id: DiffId,
    /// The image, or an index and the layer's tar.
    pub(crate) path: PathBuf,
    /// The size of the layer's tar.
    pub(crate) tar_size: u64,
    /// The tree that the layer brings behind its image.
    pub(crate) own_tree: Option<OwnTree>,
}

impl WrittenLayer {
    /// Returns the number of bytes that a tree would be of: those of the file without the tree that the layer brings.
    pub(crate) fn data_size(&self) -> Result<u64> {
        match &self.own_tree {
            Some(own) => Ok(own.hash_offset),
            None => Ok(self.path.metadata().during("look at", &self.path)?.len()),
        }
    }
}

/// Writes the layers of a manifest as EROFS images to a new directory, the lowest first. Each is checked against
/// its diff ID.
///
/// # Errors
/// [`Kind::DataLoss`] if a blob is not that of its diff ID; [`Kind::InvalidArgument`] or
/// [`Kind::Unimplemented`] if a layer is malformed or of an unknown type; errors of the source and of writing.
pub(crate) async fn write_layers(
    image: &SourceImage,
    choice: &Choice,
    mode: ErofsMode,
    dir: &Path,
    progress: Arc<dyn Progress>,
) -> Result<Vec<WrittenLayer>> {
    let diff_ids = diff_ids(image, choice)?;
    let layers = choice
        .layers
        .iter()
        .cloned()
        .zip(diff_ids.iter().cloned())
        .collect();
    write(image, layers, mode, None, dir, progress).await
}

/// Returns the diff IDs of the layers of a manifest.
fn diff_ids<'a>(image: &SourceImage, choice: &'a Choice) -> Result<&'a [DiffId]> {
    let (layers, diff_ids) = (choice.layers.len(), &choice.config.diff_ids);
    if diff_ids.len() != layers {
        let count = diff_ids.len();
        let read = Error::new(Kind::InvalidArgument, "read image", &*image.name);
        return Err(read.with_source(format!("it has {layers} layers and {count} diff IDs")));
    }
    Ok(diff_ids)
}

/// Writes these layers of a manifest as [`write_layers`] does, but each on an empty layer, and by its diff ID alone: the
/// image of a layer is the same whichever layers are below, and however its blob is compressed.
pub(crate) async fn write_alone(
    image: &SourceImage,
    choice: &Choice,
    indexes: &[usize],
    dir: &Path,
    progress: Arc<dyn Progress>,
) -> Result<Vec<WrittenLayer>> {
    let (mut layers, mut blobs) = (Vec::new(), HashMap::new());
    for index in indexes {
        let diff_id = diff_ids(image, choice)?.get(*index);
        if let (Some(layer), Some(diff_id)) = (choice.layers.get(*index), diff_id) {
            blobs.insert(diff_id.0.clone(), layer.clone());
            // The UUID of an image is made of the digest.
            let by_diff_id = Descriptor {
                digest: diff_id.0.clone(),
                ..layer.clone()
            };
            layers.push((by_diff_id, diff_id.clone()));
        }
    }
    let content = ByDiffId {
        content: Arc::clone(&image.content),
        blobs,
    };
    let by_diff_id = SourceImage::in_store(
        &*image.name,
        image.target.clone(),
        Arc::new(content),
        image.scope.clone(),
        None,
    );
    let base = Some(DiffId(Digest::sha256(b"")));
    write(&by_diff_id, layers, ErofsMode::Full, base, dir, progress).await
}

/// Writes layers, each on the one before, or each on an empty layer with the diff ID `base`.
async fn write(
    image: &SourceImage,
    layers: Vec<(Descriptor, DiffId)>,
    mode: ErofsMode,
    base: Option<DiffId>,
    dir: &Path,
    progress: Arc<dyn Progress>,
) -> Result<Vec<WrittenLayer>> {
    let descriptors: Vec<_> = layers.iter().map(|(layer, _)| layer.clone()).collect();
    progress.begin(&descriptors);
    let store = Local::open(dir).await?;
    let mut settings = ApplierSettings::default();
    settings
        .differs
        .insert(SNAPSHOTTER.to_owned(), Differ::Resnap);
    settings.erofs_modes.insert(SNAPSHOTTER.to_owned(), mode);
    let mut ports = store.ports(ApplierSettings::default());
    ports.content = Arc::clone(&image.content);
    ports.introspection = Arc::new(Roots {
        store: ports.introspection,
        content: image
            .content_root
            .as_ref()
            .map(|root| root.display().to_string()),
    });
    ports.applier = Arc::new(InProcessApplier::new(&ports, settings));
    let batch = in_batch(
        &ports.applier,
        Batch {
            scope: image.scope.clone(),
            snapshotter: SNAPSHOTTER.to_owned(),
            layers: descriptors.into_iter().map(Into::into).collect(),
            sync_fs: false,
            integrity: Integrity::Off,
            preparer: Preparer::Caller,
            monitor: Arc::new(Monitor(progress)),
        },
    );
    let work = Work {
        image,
        layers,
        snapshotter: ports.snapshotters.snapshotter(SNAPSHOTTER),
        batch: &*batch,
    };
    let written = work.write_all(base.as_ref()).await;
    batch.end().await;
    written
}

struct Work<'a> {
    image: &'a SourceImage,
    layers: Vec<(Descriptor, DiffId)>,
    snapshotter: Arc<dyn Snapshotter>,
    batch: &'a dyn BatchApplier,
}

impl Work<'_> {
    async fn write_all(&self, base: Option<&DiffId>) -> Result<Vec<WrittenLayer>> {
        let base = match base {
            Some(base) => Some(self.write_empty(base).await?),
            None => None,
        };
        let (mut parent, mut written) = (base.clone(), Vec::new());
        for (index, (layer, diff_id)) in self.layers.iter().enumerate() {
            let chain = ChainId::of(parent.as_ref(), diff_id);
            let layer = self.write(index, (layer, diff_id), parent.as_ref(), &chain);
            written.push(layer.await?);
            parent = base.clone().or(Some(chain));
        }
        Ok(written)
    }

    /// Commits an image without files, and returns its chain ID.
    async fn write_empty(&self, diff_id: &DiffId) -> Result<ChainId> {
        let (scope, chain) = (Scope::new(Local::NAMESPACE), ChainId::of(None, diff_id));
        let key = SnapshotKey::extraction("base", &chain);
        let labels = Labels::new();
        let mounts = self
            .snapshotter
            .prepare(&scope, &key, None, &labels)
            .await?;
        let files = mounts.first().map(|mount| Path::new(&mount.source));
        let path = files
            .and_then(Path::parent)
            .map(|snapshot| snapshot.join(IMAGE));
        let path = path.ok_or_else(|| Error::new(Kind::Internal, "find", "a snapshot"))?;
        let failed = |error: resnap_erofs::Error| {
            Error::new(Kind::Unknown, "write", path.display().to_string()).with_source(error)
        };
        let file = File::create_new(&path).during("make", &path)?;
        let writer = Writer::new(file, Box::new(Memory::new(1 << 20))).map_err(failed)?;
        writer.finish(&mut NoLower, [0; 16]).map_err(failed)?;
        self.snapshotter
            .commit(&scope, &chain, &key, &labels)
            .await?;
        Ok(chain)
    }

    async fn write(
        &self,
        index: usize,
        (layer, diff_id): (&Descriptor, &DiffId),
        parent: Option<&ChainId>,
        chain: &ChainId,
    ) -> Result<WrittenLayer> {
        let (scope, snapshotter) = (Scope::new(Local::NAMESPACE), &self.snapshotter);
        let key = SnapshotKey::extraction(&index.to_string(), chain);
        let labels = Labels::new();
        let mounts = snapshotter.prepare(&scope, &key, parent, &labels).await?;
        let applied = self.batch.apply(&self.image.scope, index, &mounts).await?;
        if let Some(found) = applied.diff_id.filter(|found| *found != diff_id.0) {
            let digest = layer.digest.as_str();
            let reason = format!(
                "its tar has the digest {found}, and the config says {}",
                diff_id.0
            );
            return Err(Error::new(Kind::DataLoss, "read layer", digest).with_source(reason));
        }
        snapshotter.commit(&scope, chain, &key, &labels).await?;
        let view = SnapshotKey::from(format!("view-{index}"));
        let mounts = snapshotter.view(&scope, &view, chain).await?;
        snapshotter.remove(&scope, &view).await?;
        let path = image_of(&mounts)?;
        let own = erofs_layer::own_tree(layer).map_err(|reason| {
            let read = Error::new(Kind::InvalidArgument, "read layer", layer.digest.as_str());
            read.with_source(reason)
        })?;
        Ok(WrittenLayer {
            descriptor: layer.clone(),
            diff_id: diff_id.clone(),
            path,
            tar_size: applied.size,
            own_tree: own.filter(|_| erofs_layer::is_image(layer)),
        })
    }
}

/// Returns the image of the topmost layer, by the mounts of a view.
fn image_of(mounts: &[Mount]) -> Result<PathBuf> {
    let first = mounts.first().map(|mount| PathBuf::from(&mount.source));
    let image = first.filter(|path| path.file_name().is_some_and(|name| name == IMAGE));
    image.ok_or_else(|| Error::new(Kind::Internal, "find", "the image of a layer"))
}

/// The roots of a store, with the content of another place.
struct Roots {
    store: Arc<dyn Introspection>,
    content: Option<String>,
}

#[async_trait]
impl Introspection for Roots {
    async fn snapshotters(&self) -> Result<Vec<SnapshotterInfo>> {
        self.store.snapshotters().await
    }

    async fn identity(&self) -> Result<String> {
        self.store.identity().await
    }

    async fn content_root(&self) -> Result<Option<String>> {
        Ok(self.content.clone())
    }
}

/// Content in which layers have the digests of their tars.
struct ByDiffId {
    content: Arc<dyn ContentReader>,
    blobs: HashMap<Digest, Descriptor>,
}

#[async_trait]
impl ContentReader for ByDiffId {
    async fn info(&self, scope: &Scope, digest: &Digest) -> Result<ContentInfo> {
        let blob = self.blobs.get(digest).map_or(digest, |blob| &blob.digest);
        self.content.info(scope, blob).await
    }

    async fn open(&self, scope: &Scope, digest: &Digest) -> Result<ByteStream> {
        let blob = self.blobs.get(digest).map_or(digest, |blob| &blob.digest);
        self.content.open(scope, blob).await
    }
}

/// The monitor of a batch that waits for nothing.
struct Monitor(Arc<dyn Progress>);

#[async_trait]
impl ApplyMonitor for Monitor {
    async fn admit(&self, _: usize) -> ApplyPermit {
        ApplyPermit::new(())
    }

    fn read(&self, index: usize, bytes: u64) {
        self.0.read(index, bytes);
    }

    fn record_stage(&self, _: usize, _: Stage, _: StageTiming) {}
}
