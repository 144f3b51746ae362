// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A layer as a file `layer.erofs`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use resnap_core::Digest;
use resnap_erofs::{Image, ImageError, Lower, Metadata, Stack, Writer};
use resnap_layer::Layer;

use crate::error::{Doing as _, Error};
use crate::guard::Guard;

type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// The file's name, beside `.erofslayer`.
pub(crate) const NAME: &str = "layer.erofs";

/// The image's UUID: as containerd has it, so that the same layer gets the same
/// (`plugins/diff/erofs/differ.go`).
fn uuid(blob: &Digest) -> [u8; 16] {
    let name = format!("erofs:blobs/{blob}");
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, name.as_bytes()).into_bytes()
}

/// A new file in the place of whatever is there.
fn create(path: &Path) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)
}

/// Writes all of a layer but what layers below decide.
pub(crate) fn write<R: Read>(
    path: &Path,
    layer: &mut Layer<R>,
    is_lowest: bool,
    guard: &Guard,
) -> Result<Writer<File>, Error> {
    let file = create(path).when("create the EROFS image")?;
    let mut writer = Writer::new(file, Box::new(guard.clone()))?;
    if is_lowest {
        writer = writer.lowest();
    }
    writer.add(layer)?;
    Ok(writer)
}

/// Writes the rest; `parents` are the files of the layers below, the topmost first. Without success
/// the file at `path`, which the writer writes, is gone.
///
/// A parent that cannot be read is one that somebody else wrote in a way of their own.
pub(crate) fn finish(
    writer: Writer<File>,
    path: &Path,
    parents: &[PathBuf],
    blob: &Digest,
    guard: &Guard,
) -> Result<(), Error> {
    let finished = open(parents).and_then(|stack| {
        let mut lower = Wanted { stack, guard };
        let finished = writer.finish(&mut lower, uuid(blob));
        finished.map_err(|error| match error {
            resnap_erofs::Error::Lower { .. } if guard.is_over() => Error::Stopped,
            resnap_erofs::Error::Lower { ref source, .. } => {
                Error::Unfit(format!("{error}: {source}"))
            }
            error => error.into(),
        })
    });
    if finished.is_err() {
        std::fs::remove_file(path).when("remove the EROFS image")?;
    }
    finished.map(drop)
}

/// Layers below, which say no more once nobody wants it.
struct Wanted<'a> {
    stack: Stack<File>,
    guard: &'a Guard,
}

impl Lower for Wanted<'_> {
    fn directory(&mut self, path: &[u8]) -> Result<Option<Metadata>, BoxedError> {
        self.guard.step()?;
        Ok(self.stack.directory(path)?)
    }
}

fn open(images: &[PathBuf]) -> Result<Stack<File>, Error> {
    let images = images.iter().map(|path| {
        let unfit = |error: &dyn std::fmt::Display| Error::Unfit(format!("{path:?}: {error}"));
        let file = File::open(path).map_err(|error| unfit(&error))?;
        Image::open(file).map_err(|error| unfit(&error))
    });
    Ok(Stack::new(images.collect::<Result<_, _>>()?))
}

/// Whether a layer of this snapshotter has been made with dm-verity, by containerd's differ: then
/// others are to have it, too (containerd 2.3 `plugins/diff/erofs`, `enable_dmverity`).
pub(crate) fn has_verity(root: &Path) -> io::Result<bool> {
    let sidecar = format!("{NAME}.dmverity");
    for snapshot in root.join("snapshots").read_dir()? {
        let snapshot = snapshot?;
        // What another batch tries is a file, and gone at once.
        if snapshot.file_type()?.is_dir() && snapshot.path().join(&sidecar).try_exists()? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Copies a layer that is an image already, and looks whether it is. What features it has is between
/// who made it and the kernel.
pub(crate) fn copy(path: &Path, stream: &mut impl Read) -> Result<(), Error> {
    let mut file = create(path).when("create the EROFS image")?;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let count = stream.read(&mut buffer).when("read the layer")?;
        let Some(piece) = buffer.get(..count).filter(|piece| !piece.is_empty()) else {
            break;
        };
        file.write_all(piece).when("write the EROFS image")?;
    }
    let found = file.metadata().when("look at the EROFS image")?.len();
    match Image::open(file) {
        Ok(image) if found < image.size() => {
            let size = image.size();
            Err(Error::ShortImage { found, size })
        }
        Ok(_) | Err(ImageError::Unsupported(_)) => Ok(()),
        Err(error) => Err(Error::NoImage(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The image of an empty layer, of two blocks.
    fn image() -> Vec<u8> {
        let target = io::Cursor::new(Vec::new());
        let writer = Writer::new(target, Box::new(resnap_erofs::Memory::new(1 << 20))).unwrap();
        let (image, _) = writer.finish(&mut resnap_erofs::Nothing, [0; 16]).unwrap();
        image.into_inner()
    }

    #[test]
    fn images_are_copied_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let good = image();
        let mut newer = good.clone();
        // A feature that nobody has yet.
        newer[1024 + 80 + 3] |= 0x40;
        let mut other = good.clone();
        other[1024] ^= 1;
        for (image, is_taken) in [
            (&good[..], true),
            (&newer, true),
            (&other, false),
            (&good[..good.len() - 1], false),
            (&good[..4096], false),
            (&good[..1030], false),
            (b"", false),
        ] {
            let copied = copy(&path, &mut &image[..]);
            assert_eq!(copied.is_ok(), is_taken, "{copied:?}");
            assert_eq!(std::fs::read(&path).unwrap(), image);
        }
    }

    #[test]
    fn uuids_are_those_of_containerd() {
        // RFC 9562, version 5 in its place.
        let uuid = uuid(&Digest::sha256(b""));
        assert_eq!(uuid[6] >> 4, 5);
        assert_ne!(uuid, super::uuid(&Digest::sha256(b"1")));
    }
}
