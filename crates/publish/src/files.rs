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

use crate::fault::{IoContext as _, blocking};
use crate::image::SourceImage;
use crate::layers::{Progress, WrittenLayer, write_layers};
use crate::scratch::Scratch;
use crate::sidecar::{sidecar_of, write_sidecar};
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
    let (parent, name) = place(to)?;
    if !form.merge {
        require_empty(to)?;
    }
    let scratch = Scratch::new(&parent).during("make a directory in", &parent)?;
    let store = scratch.join("store");
    let layers = write_layers(image, &choice, ErofsMode::Full, &store, progress).await?;
    let (manifest, platform) = (choice.manifest.digest.clone(), choice.platform());
    let to = parent.join(name);
    let files = blocking(move || match form.merge {
        true => merged(&scratch, &layers, &choice, form, &to),
        false => separate(&scratch, &layers, form, &to),
    });
    Ok(ConvertedFiles {
        platform,
        manifest,
        files: files.await?,
    })
}

/// Returns the directory and the name of a file that may not exist yet.
fn place(to: &Path) -> Result<(PathBuf, std::ffi::OsString)> {
    let absolute = std::path::absolute(to).during("find", to)?;
    let parts = absolute.parent().zip(absolute.file_name());
    let parts = parts.map(|(parent, name)| (parent.to_owned(), name.to_owned()));
    parts.ok_or_else(|| {
        let write = Error::new(Kind::InvalidArgument, "write to", to.display().to_string());
        write.with_source("name a file or a directory in another one")
    })
}

fn require_empty(to: &Path) -> Result<()> {
    let reason = match to.read_dir() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            "it is a file: name a directory, or merge the layers into one image"
        }
        entries => match entries.during("read", to)?.next() {
            None => return Ok(()),
            Some(_) => "the directory is not empty: name another, or remove what is in it",
        },
    };
    let write = Error::new(Kind::AlreadyExists, "write to", to.display().to_string());
    Err(write.with_source(reason))
}

fn separate(
    scratch: &Scratch,
    layers: &[WrittenLayer],
    form: FileForm,
    to: &Path,
) -> Result<Vec<ConvertedFile>> {
    let all = scratch.join("files");
    fs::create_dir(&all).during("make", &all)?;
    let width = layers.len().saturating_sub(1).to_string().len();
    let mut files = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let name = format!("{number:0width$}.erofs");
        let path = all.join(&name);
        fs::rename(&layer.path, &path).during("move an image to", &path)?;
        let digest = &layer.descriptor.digest;
        let mut file = complete(&path, digest, vec![digest.clone()], form)?;
        file.path = to.join(name);
        files.push(file);
    }
    // An empty directory is replaced.
    fs::rename(&all, to).during("move the images to", to)?;
    Ok(files)
}

fn merged(
    scratch: &Scratch,
    layers: &[WrittenLayer],
    choice: &Choice,
    form: FileForm,
    to: &Path,
) -> Result<Vec<ConvertedFile>> {
    let path = scratch.join("merged");
    let manifest = &choice.manifest.digest;
    let open = |layer: &WrittenLayer| {
        let file = File::open(&layer.path).during("open", &layer.path)?;
        ErofsReader::open(Arc::new(file)).map_err(|error| failed(&layer.path, error))
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
    merge(images, output.during("make", &path)?, memory, uuid)
        .map_err(|error| failed(&path, error))?;
    let digests = layers.iter().map(|layer| layer.descriptor.digest.clone());
    let mut file = complete(&path, manifest, digests.collect(), form)?;
    let sidecar = sidecar_of(to);
    match form.verity {
        true => {
            let from = sidecar_of(&path);
            fs::rename(&from, &sidecar).during("move the root hash to", &sidecar)?;
        }
        // That of another image.
        false => remove_if_there(&sidecar)?,
    }
    fs::rename(&path, to).during("move the image to", to)?;
    to.clone_into(&mut file.path);
    Ok(vec![file])
}

fn failed(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(
        Kind::Unknown,
        "merge the layers to",
        path.display().to_string(),
    )
    .with_source(error)
}

/// Adds the tree to an image if it is to have one.
fn complete(
    path: &Path,
    of: &Digest,
    layers: Vec<Digest>,
    form: FileForm,
) -> Result<ConvertedFile> {
    let length = path.metadata().during("look at", path)?.len();
    let tree = form.verity.then(|| {
        let block = BlockSize::B4096;
        append_tree(path, (length, block.bytes()), block, of)
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

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.during("remove", path),
    }
}
