// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images as EROFS images in files: one for each layer, or one for all.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use resnap_core::{Digest, ErofsMode, Error, Kind, Platform, Result};
use resnap_erofs::{ErofsReader, Memory, merge};
use resnap_handler_wrapper::Choice;
use resnap_verity::BlockSize;
use serde::Serialize;

use crate::fault::{IoContext as _, Stop, blocking};
use crate::image::SourceImage;
use crate::layers::{Progress, WrittenLayer, write_layers};
use crate::scratch::Scratch;
use crate::sidecar::{remove_if_there, sidecar_of, write_sidecar};
use crate::tree::{Tree, append_tree};

/// The limit on the memory for the tree of a merged image.
const MERGE_MEMORY: u64 = 1 << 30;

/// The form in which an image is converted to files.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct FileForm {
    /// Whether all layers become one image, without what upper layers hide.
    pub merge: bool,
    /// Whether each image gets a dm-verity tree behind it, of blocks of 4096 bytes.
    pub verity: bool,
}

/// The files that an image was converted to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConvertedFiles {
    /// The platform of the manifest.
    pub platform: Platform,
    /// The digest of the manifest.
    pub manifest: Digest,
    /// The files, that of the lowest layer first.
    pub files: Vec<ConvertedFile>,
}

/// An EROFS image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConvertedFile {
    /// Its path.
    pub path: PathBuf,
    /// Its size in bytes, with the tree.
    pub size: u64,
    /// The digests of the layers in it, the lowest first.
    pub layers: Vec<Digest>,
    /// Its dm-verity tree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verity: Option<FileTree>,
}

/// The dm-verity tree in the file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileTree {
    /// The root hash, in lower-case hexadecimal digits.
    pub root_hash: String,
    /// The offset of the superblock in bytes.
    pub hash_offset: u64,
    /// The table of a device-mapper target, with `DEVICE` in the place of the block device that has the file.
    pub table: String,
}

impl FileTree {
    fn new(tree: &Tree) -> Self {
        let (root_hash, hash_offset) = (tree.appended.root_hash, tree.appended.hash_offset);
        let block = tree.block.bytes();
        // The superblock takes the first block of the hash area (kernel, `admin-guide/device-mapper/verity.rst`).
        let table = format!(
            "0 {} verity 1 DEVICE DEVICE {block} {block} {} {} sha256 {root_hash} {}",
            tree.data / 512,
            tree.data / block,
            hash_offset / block + 1,
            "0".repeat(64),
        );
        Self {
            root_hash: root_hash.to_string(),
            hash_offset,
            table,
        }
    }
}

/// Converts the manifest of a platform to EROFS images in files: to the directory `to`, as `0.erofs` and so on, or to
/// the file `to` if they are merged. With dm-verity a file `NAME.dmverity` beside each has the root hash, in
/// the form of containerd's sidecars. The bytes depend on nothing but the manifest and the form.
///
/// Nothing is at `to` before all is complete. As by `cp`, nothing is flushed to the disk. Dropping the future stops the
/// work.
///
/// # Errors
/// [`Kind::AlreadyExists`] if the directory `to` exists and is not empty; those of
/// [`SourceImage::choose`] and of reading layers.
pub async fn convert_to_files(
    image: &SourceImage,
    platform: &Platform,
    form: FileForm,
    to: &Path,
    progress: Arc<dyn Progress>,
) -> Result<ConvertedFiles> {
    let choice = image.choose(platform).await?;
    let (parent, to) = place(to)?;
    let exists = match form.merge {
        true => refuse_directory(&to).map(|()| false)?,
        false => is_empty_directory(&to)?,
    };
    // An existing directory keeps its owner and mode, and may be a mount point.
    let beside = if exists { to.clone() } else { parent };
    let scratch = blocking(move |_| Scratch::new(&beside).during("make a directory in", &beside));
    let scratch = scratch.await?;
    let store = scratch.join("store");
    let layers = write_layers(image, &choice, ErofsMode::Full, &store, progress).await?;
    let (manifest, platform) = (choice.manifest.digest.clone(), choice.platform());
    let files = blocking(move |stop| match form.merge {
        true => merged(&scratch, &layers, &choice, (form, stop), &to),
        false => separate(&scratch, &layers, (form, stop), &to, exists),
    });
    Ok(ConvertedFiles {
        platform,
        manifest,
        files: files.await?,
    })
}

/// Returns the directory of a file that may not exist yet, and its absolute path.
fn place(to: &Path) -> Result<(PathBuf, PathBuf)> {
    let absolute = std::path::absolute(to).during("find", to)?;
    let parent = absolute.file_name().and_then(|_| absolute.parent());
    let parent = parent.map(Path::to_owned).ok_or_else(|| {
        let write = Error::new(Kind::InvalidArgument, "write to", to.display().to_string());
        write.with_source("name a file or a directory in another one")
    })?;
    Ok((parent, absolute))
}

fn refuse_directory(to: &Path) -> Result<()> {
    if !to.is_dir() {
        return Ok(());
    }
    let write = Error::new(Kind::AlreadyExists, "write to", to.display().to_string());
    Err(write.with_source("it is a directory: name a file for the merged image"))
}

/// Returns whether a directory exists, which must be empty.
fn is_empty_directory(to: &Path) -> Result<bool> {
    let reason = match to.read_dir() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            "it is a file: name a directory, or merge the layers into one image"
        }
        entries => {
            let mut entries = entries.during("read", to)?.flatten();
            match entries.all(|entry| Scratch::is_one(&entry.file_name())) {
                true => return Ok(true),
                false => "the directory is not empty: name another, or remove what is in it",
            }
        }
    };
    let write = Error::new(Kind::AlreadyExists, "write to", to.display().to_string());
    Err(write.with_source(reason))
}

fn separate(
    scratch: &Scratch,
    layers: &[WrittenLayer],
    form: (FileForm, &Stop),
    to: &Path,
    exists: bool,
) -> Result<Vec<ConvertedFile>> {
    let all = scratch.join("files");
    fs::create_dir(&all).during("make", &all)?;
    let width = layers.len().saturating_sub(1).to_string().len();
    let mut files = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let name = format!("{number:0width$}.erofs");
        let path = all.join(&name);
        let image = (&*path, layer.data_size()?);
        fs::rename(&layer.path, &path).during("move an image to", &path)?;
        let digest = &layer.descriptor.digest;
        let mut file = complete(image, digest, vec![digest.clone()], form)?;
        file.path = to.join(name);
        files.push(file);
    }
    form.1.check_before_end()?;
    if !exists {
        fs::rename(&all, to).during("move the images to", to)?;
        return Ok(files);
    }
    for entry in all.read_dir().during("read", &all)? {
        let entry = entry.during("read", &all)?;
        let place = to.join(entry.file_name());
        fs::rename(entry.path(), &place).during("move an image to", &place)?;
    }
    Ok(files)
}

fn merged(
    scratch: &Scratch,
    layers: &[WrittenLayer],
    choice: &Choice,
    form: (FileForm, &Stop),
    to: &Path,
) -> Result<Vec<ConvertedFile>> {
    let path = scratch.join("merged");
    let manifest = &choice.manifest.digest;
    let open = |layer: &WrittenLayer| {
        let file = File::open(&layer.path).during("open", &layer.path)?;
        let image = ErofsReader::open(Arc::new(file));
        image.map_err(|error| failed("read layer", layer.descriptor.digest.as_str(), error))
    };
    let images: Vec<_> = layers.iter().map(open).collect::<Result<_>>()?;
    let output = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path);
    let name = format!("erofs:merged/{manifest}");
    let uuid = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, name.as_bytes()).into_bytes();
    let memory = Box::new(Memory::new(MERGE_MEMORY));
    let merged = merge(images, output.during("make", &path)?, memory, uuid);
    merged.map_err(|error| failed("merge the layers of", manifest.as_str(), error))?;
    let digests = layers.iter().map(|layer| layer.descriptor.digest.clone());
    let size = path.metadata().during("look at", &path)?.len();
    let mut file = complete((&path, size), manifest, digests.collect(), form)?;
    form.1.check_before_end()?;
    let sidecar = sidecar_of(to);
    if form.0.verity || sidecar.exists() {
        // An image is never beside the root hash of another one.
        remove_if_there(to)?;
    }
    match form.0.verity {
        true => {
            let from = sidecar_of(&path);
            fs::rename(&from, &sidecar).during("move the root hash to", &sidecar)?;
        }
        false => remove_if_there(&sidecar)?,
    }
    fs::rename(&path, to).during("move the image to", to)?;
    to.clone_into(&mut file.path);
    Ok(vec![file])
}

fn failed(
    operation: &'static str,
    subject: &str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    Error::new(Kind::InvalidArgument, operation, subject).with_source(error)
}

/// Adds the tree to an image with this size if it is to have one.
fn complete(
    (path, size): (&Path, u64),
    of: &Digest,
    layers: Vec<Digest>,
    (form, stop): (FileForm, &Stop),
) -> Result<ConvertedFile> {
    let tree = form.verity.then(|| {
        let block = BlockSize::B4096;
        append_tree(path, (size, block.bytes()), block, of, stop)
    });
    let tree = tree.transpose()?;
    if let Some(tree) = &tree {
        write_sidecar(tree, path)?;
    }
    Ok(ConvertedFile {
        path: path.to_owned(),
        size: path.metadata().during("look at", path)?.len(),
        layers,
        verity: tree.as_ref().map(FileTree::new),
    })
}
