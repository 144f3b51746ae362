// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers as EROFS images in files `layer.erofs`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use resnap_core::Digest;
use resnap_erofs::{ErofsReader, Lower, Stack, Writer};
use resnap_layer::{EntrySource, Metadata};
use resnap_verity::BlockSize;

use crate::copy::copy_stream;
use crate::create::create;
use crate::error::{Error, IoContext as _};
use crate::guard::Guard;
use crate::memory::StopReason;
use crate::proof::{HashedFile, tree_block};

type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// The name of the snapshotter whose layers are EROFS images.
pub(crate) const SNAPSHOTTER: &str = "erofs";

/// The name of the file, next to `.erofslayer`.
pub(crate) const NAME: &str = "layer.erofs";

/// Returns the UUID of an image. It is the same as in containerd, so that a layer always gets the same
/// (`plugins/diff/erofs/differ.go`).
fn uuid(blob: &Digest) -> [u8; 16] {
    let name = format!("erofs:blobs/{blob}");
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, name.as_bytes()).into_bytes()
}

/// The form of an image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageForm {
    /// Whether there is no layer below.
    pub(crate) is_lowest: bool,
    /// Whether it is to get a dm-verity tree.
    pub(crate) has_tree: bool,
    /// Whether it is an index of the layer's tar.
    pub(crate) is_index: bool,
}

/// Writes a layer, except for what depends on the layers below.
pub(crate) fn write(
    path: &Path,
    layer: &mut impl EntrySource,
    form: ImageForm,
    guard: &Guard,
) -> Result<Writer<HashedFile>, Error> {
    let file = create(path).context("create the EROFS image")?;
    // The blocks of an index are smaller than those that are hashed.
    let file = HashedFile::new(file, form.has_tree && !form.is_index);
    let mut writer = Writer::new(file, Box::new(guard.clone()))?;
    if form.is_lowest {
        writer = writer.lowest();
    }
    if form.is_index {
        writer = writer.index();
    }
    writer.add(layer)?;
    Ok(writer)
}

/// Writes the rest of a layer, and returns the image and its size. `parents` are the layers below, the
/// topmost first.
pub(crate) fn finish(
    writer: Writer<HashedFile>,
    parents: Vec<Parent>,
    blob: &Digest,
    guard: &Guard,
) -> Result<(HashedFile, u64), Error> {
    let mut lower = GuardedStack {
        count: parents.len(),
        stack: Stack::new(parents),
        guard,
    };
    let finished = writer.finish(&mut lower, uuid(blob));
    let finished = finished.map(|(file, summary)| (file, summary.size));
    finished.map_err(|error| match error {
        resnap_erofs::Error::Lower { ref source, .. } if !source.is::<StopReason>() => {
            Error::Unsupported(format!("{error}: {source}"))
        }
        error => error.into(),
    })
}

/// The layers below. Lookups fail once the work is over.
struct GuardedStack<'a> {
    stack: Stack<Arc<File>>,
    count: usize,
    guard: &'a Guard,
}

impl Lower for GuardedStack<'_> {
    fn directory(&mut self, path: &[u8]) -> Result<Option<Metadata>, BoxedError> {
        self.guard.count_lookup(self.count)?;
        Ok(self.stack.directory(path)?)
    }
}

/// The image of a layer below.
pub(crate) type Parent = ErofsReader<Arc<File>>;

/// The parents of the layers of a batch. Each is opened once.
#[derive(Debug, Default)]
pub(crate) struct Parents(Mutex<HashMap<PathBuf, Parent>>);

impl Parents {
    /// Opens the images in these files. An image that cannot be read was written by another program, and
    /// its children are left to containerd.
    pub(crate) fn open(&self, paths: &[PathBuf]) -> Result<Vec<Parent>, Error> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let open = |path: &PathBuf| {
            let unsupported =
                |error: &dyn std::fmt::Display| Error::Unsupported(format!("{path:?}: {error}"));
            if let Some(image) = known.get(path) {
                return Ok(image.clone());
            }
            let file = File::open(path).map_err(|error| unsupported(&error))?;
            let image = ErofsReader::open(Arc::new(file)).map_err(|error| unsupported(&error))?;
            known.insert(path.clone(), image.clone());
            Ok(image)
        };
        paths.iter().map(open).collect()
    }
}

/// Returns whether a layer of this snapshotter has dm-verity. Then containerd's differ is configured to
/// add it to all layers (containerd 2.3 `plugins/diff/erofs`, `enable_dmverity`).
pub(crate) fn has_verity(root: &Path) -> io::Result<bool> {
    let sidecar = format!("{NAME}.dmverity");
    for snapshot in root.join("snapshots").read_dir()? {
        let snapshot = snapshot?;
        // The trial file of another batch may disappear at any time.
        if snapshot.file_type()?.is_dir() && snapshot.path().join(&sidecar).try_exists()? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Copies a layer that is an EROFS image, and returns its bytes and the size of its tree's blocks.
pub(crate) fn copy(
    path: &Path,
    stream: &mut impl Read,
    guard: &Guard,
) -> Result<(u64, BlockSize), Error> {
    let file = create(path).context("create the EROFS image")?;
    let found = copy_stream(stream, &file, guard)?;
    check_image(file, found)
}

/// Checks, before a kernel mounts an image, that it is complete, has only known features, and has no data on other
/// devices. containerd's differ copies any bytes. Returns the bytes `found` of it, and the size of its tree's blocks.
pub(crate) fn check_image(image: File, found: u64) -> Result<(u64, BlockSize), Error> {
    match ErofsReader::open(image) {
        Ok(image) if found < image.size() => {
            let size = image.size();
            Err(Error::ShortImage { found, size })
        }
        Ok(image) if image.devices() > 0 => Err(Error::Devices(image.devices())),
        Ok(image) => Ok((found, tree_block(&image))),
        Err(error) => Err(Error::NotAnImage(error)),
    }
}

/// Returns the image of an empty layer, of two blocks.
#[cfg(test)]
pub(crate) fn empty_image() -> Vec<u8> {
    let target = io::Cursor::new(Vec::new());
    let writer = Writer::new(target, Box::new(resnap_erofs::Memory::new(1 << 20))).unwrap();
    let (image, _) = writer.finish(&mut resnap_erofs::NoLower, [0; 16]).unwrap();
    image.into_inner()
}

#[cfg(test)]
mod tests {
    use resnap_core::Kind;
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[test]
    fn only_complete_images_are_copied() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let guard = Guard::from(CancellationToken::new());
        let layer = resnap_core::Descriptor {
            media_type: String::new(),
            digest: Digest::sha256(b""),
            size: 0,
            annotations: Default::default(),
            platform: None,
        };
        let good = empty_image();
        let mut newer = good.clone();
        // A feature that does not exist yet.
        newer[1024 + 80 + 3] |= 0x40;
        let mut spread = good.clone();
        // The device table is a known feature.
        spread[1024 + 80] |= 8;
        let mut spread_further = spread.clone();
        spread_further[1024 + 86] = 1;
        let mut wide = good.clone();
        // Blocks of directories.
        wide[1024 + 90] = 1;
        let mut other = good.clone();
        other[1024] ^= 1;
        for (image, refused) in [
            (&good[..], None),
            (&spread, None),
            (&newer, Some(Kind::Unimplemented)),
            (&wide, Some(Kind::Unimplemented)),
            (&spread_further, Some(Kind::InvalidArgument)),
            (&other, Some(Kind::InvalidArgument)),
            (&good[..good.len() - 1], Some(Kind::InvalidArgument)),
            (&good[..4096], Some(Kind::InvalidArgument)),
            (&good[..1030], Some(Kind::InvalidArgument)),
            (b"", Some(Kind::InvalidArgument)),
        ] {
            let error = copy(&path, &mut &image[..], &guard).err();
            let kind = error.map(|error| error.into_core(&layer).kind());
            assert_eq!(kind, refused);
            assert_eq!(std::fs::read(&path).unwrap(), image);
        }
    }

    #[test]
    fn parents_are_opened_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        std::fs::write(&path, empty_image()).unwrap();
        let (parents, paths) = (Parents::default(), [path.clone()]);
        assert_eq!(parents.open(&paths).unwrap().len(), 1);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(parents.open(&paths).unwrap()[0].inodes(), 1);
        let other = parents.open(&[path.with_extension("other")]);
        assert!(matches!(other, Err(Error::Unsupported(_))));
    }

    #[test]
    fn uuids_are_those_of_containerd() {
        // RFC 9562, version 5 in its place.
        let uuid = uuid(&Digest::sha256(b""));
        assert_eq!(uuid[6] >> 4, 5);
        assert_ne!(uuid, super::uuid(&Digest::sha256(b"1")));
    }
}
