// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers in the layout of containerd's cache of EROFS layers (containerd 2.4 `docs/snapshotters/erofs.md`,
//! `layer_content_caches`): `ALGORITHM/XX/HEX.erofs` by diff ID.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use resnap_core::{DiffId, Error, Kind, Platform, Result, erofs_layer};
use resnap_erofs::ErofsReader;
use resnap_handler_wrapper::Choice;
use resnap_verity::BlockSize;
use serde::Serialize;

use crate::cache_dir::CacheDir;
use crate::fault::{IoContext as _, Stop, blocking};
use crate::image::SourceImage;
use crate::layers::{Progress, WrittenLayer, write_alone};
use crate::parents::needed_directory;
use crate::scratch::Scratch;
use crate::sidecar::{remove_if_there, sidecar_of, write_sidecar};
use crate::tree::append_tree;

/// A layer of an image in a cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CachedLayer {
    /// Its diff ID.
    pub diff_id: DiffId,
    /// Its path in the cache.
    pub path: PathBuf,
    /// The outcome.
    #[serde(flatten)]
    pub outcome: CacheOutcome,
}

/// The outcome of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum CacheOutcome {
    /// It was there already.
    Existed,
    /// It was written.
    Written {
        /// Its size in bytes, with its tree.
        size: u64,
    },
    /// It was left out: containerd has no cache for layers that are EROFS images.
    Native,
    /// It was left out: it has files in a directory that it does not state, so that its image is another one on
    /// other layers.
    NeedsParents {
        /// The directory.
        directory: String,
        /// Whether the cache has an image of it nevertheless, made for an image in which it needs no parents.
        /// containerd takes it for this image, too.
        cached: bool,
    },
}

/// Writes the layers of an image for a platform that are missing in a cache, with dm-verity trees or without. Any
/// number of processes may build one cache, and containerd may read it: a file that is there is complete.
///
/// # Errors
/// Those of [`SourceImage::choose`], of reading layers, and of writing.
pub async fn build_cache(
    image: &SourceImage,
    platform: &Platform,
    verity: bool,
    dir: &Path,
    progress: Arc<dyn Progress>,
) -> Result<Vec<CachedLayer>> {
    let choice = image.choose(platform).await?;
    let cache = CacheDir::new(dir)?;
    let builder = cache.clone();
    let (scratch, _building) = blocking(move |stop| {
        let building = builder.build(stop)?;
        let scratch = Scratch::new(builder.path());
        Ok((
            scratch.during("make a directory in", builder.path())?,
            building,
        ))
    })
    .await?;
    let missing = missing(&choice, &cache, verity);
    let written = write_alone(image, &choice, &missing, &scratch.join("store"), progress).await?;
    blocking(move |stop| {
        let mut builder = Builder {
            cache,
            verity,
            written: written
                .into_iter()
                .map(|layer| (layer.diff_id.clone(), layer))
                .collect(),
            below: Vec::new(),
            placed: HashSet::new(),
        };
        let layers = choice.layers.iter().zip(&choice.config.diff_ids);
        let mut is_on_native = false;
        let placed = layers.map(|(layer, diff_id)| {
            stop.check_before_end()?;
            let is_native = erofs_layer::is_image(layer);
            is_on_native |= is_native;
            let outcome = match (is_native, is_on_native) {
                (true, _) => CacheOutcome::Native,
                // Its directories may be those of the native layer.
                (false, true) => builder.left_out(diff_id, "/".to_owned()),
                (false, false) => builder.place(diff_id, stop)?,
            };
            Ok(CachedLayer {
                diff_id: diff_id.clone(),
                path: builder.cache.image(diff_id),
                outcome,
            })
        });
        let placed = placed.collect();
        drop(scratch);
        placed
    })
    .await
}

/// Returns the indexes of the layers to write, each diff ID once.
fn missing(choice: &Choice, cache: &CacheDir, verity: bool) -> Vec<usize> {
    let mut seen = HashSet::new();
    let layers = choice
        .layers
        .iter()
        .zip(&choice.config.diff_ids)
        .enumerate();
    let missing = layers.filter(|(_, (layer, diff_id))| {
        seen.insert(*diff_id) && !erofs_layer::is_image(layer) && !cache.has(diff_id, verity)
    });
    missing.map(|(index, _)| index).collect()
}

struct Builder {
    cache: CacheDir,
    verity: bool,
    /// The layers that were missing.
    written: HashMap<DiffId, WrittenLayer>,
    /// The images of the layers below, the topmost first.
    below: Vec<ErofsReader<Arc<File>>>,
    /// The layers that were moved to the cache.
    placed: HashSet<DiffId>,
}

impl Builder {
    /// Moves a layer to its place in the cache, if it may be there.
    fn place(&mut self, diff_id: &DiffId, stop: &Stop) -> Result<CacheOutcome> {
        let path = match self.written.get(diff_id) {
            Some(layer) => layer.path.clone(),
            None => self.cache.image(diff_id),
        };
        let file = File::open(&path).during("open", &path)?;
        let image = ErofsReader::open(Arc::new(file)).map_err(|error| unreadable(&path, error))?;
        let needed = needed_directory(&image, &self.below);
        let needed = needed.map_err(|error| unreadable(&path, error))?;
        self.below.insert(0, image);
        let outcome = match (needed, self.written.get(diff_id)) {
            (Some(directory), _) => self.left_out(diff_id, directory),
            (None, Some(layer)) if self.placed.insert(diff_id.clone()) => {
                self.write(layer, stop)?
            }
            (None, _) => CacheOutcome::Existed,
        };
        Ok(outcome)
    }

    fn left_out(&self, diff_id: &DiffId, directory: String) -> CacheOutcome {
        CacheOutcome::NeedsParents {
            directory,
            cached: self.cache.image(diff_id).exists(),
        }
    }

    fn write(&self, layer: &WrittenLayer, stop: &Stop) -> Result<CacheOutcome> {
        let (from, to) = (&layer.path, self.cache.image(&layer.diff_id));
        let directory = self.cache.make_directory(&layer.diff_id)?;
        // A copy: the layers above are still compared with the file.
        let staged = from.with_file_name("staged");
        fs::copy(from, &staged).during("copy to", &staged)?;
        let mut size = staged.metadata().during("look at", &staged)?.len();
        let sidecar = sidecar_of(&staged);
        if self.verity {
            let block = BlockSize::B4096;
            let tree = append_tree(
                &staged,
                (size, block.bytes()),
                block,
                &layer.diff_id.0,
                stop,
            )?;
            write_sidecar(&tree, &staged)?;
            publish_mode(&sidecar)?;
            size = tree.appended.size;
        }
        publish_mode(&staged)?;
        // containerd looks for the image, and takes the sidecar that is there then.
        let placed = sidecar_of(&to);
        match self.verity {
            true => fs::rename(&sidecar, &placed).during("move to", &placed)?,
            // That of an image that is gone.
            false => remove_if_there(&placed)?,
        }
        fs::rename(&staged, &to).during("move to", &to)?;
        let opened = File::open(&directory).during("open", &directory)?;
        opened.sync_all().during("flush", &directory)?;
        Ok(CacheOutcome::Written { size })
    }
}

/// Lets everybody read a file, whatever the umask is, and flushes it to the disk.
fn publish_mode(path: &Path) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).during("set the mode of", path)?;
    let file = File::open(path).during("open", path)?;
    file.sync_all().during("flush", path)
}

fn unreadable(path: &Path, error: resnap_erofs::ImageError) -> Error {
    Error::new(Kind::DataLoss, "read", path.display().to_string()).with_source(error)
}
