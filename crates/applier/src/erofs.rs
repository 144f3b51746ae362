// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A layer as a file `layer.erofs`.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use resnap_core::Digest;
use resnap_erofs::{ErofsReader, Lower, Metadata, Stack, Writer};
use resnap_layer::Layer;

use crate::error::{Doing as _, Error};
use crate::guard::Guard;
use crate::memory::Denied;

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

/// Writes the rest; `parents` are the layers below, the topmost first.
pub(crate) fn finish(
    writer: Writer<File>,
    parents: Vec<Parent>,
    blob: &Digest,
    guard: &Guard,
) -> Result<(), Error> {
    let mut lower = Wanted {
        count: parents.len(),
        stack: Stack::new(parents),
        guard,
    };
    let finished = writer.finish(&mut lower, uuid(blob));
    finished.map(drop).map_err(|error| match error {
        resnap_erofs::Error::Lower { ref source, .. } if !source.is::<Denied>() => {
            Error::Unfit(format!("{error}: {source}"))
        }
        error => error.into(),
    })
}

/// Layers below, which say no more once nobody wants it.
struct Wanted<'a> {
    stack: Stack<Arc<File>>,
    count: usize,
    guard: &'a Guard,
}

impl Lower for Wanted<'_> {
    fn directory(&mut self, path: &[u8]) -> Result<Option<Metadata>, BoxedError> {
        self.guard.look(self.count)?;
        Ok(self.stack.directory(path)?)
    }
}

/// A layer below.
pub(crate) type Parent = ErofsReader<Arc<File>>;

/// The layers below those of a batch, each opened once.
#[derive(Debug, Default)]
pub(crate) struct Parents(Mutex<HashMap<PathBuf, Parent>>);

impl Parents {
    /// The images in these files. One that cannot be read is one that somebody else wrote in a way of
    /// their own.
    pub(crate) fn open(&self, paths: &[PathBuf]) -> Result<Vec<Parent>, Error> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let open = |path: &PathBuf| {
            let unfit = |error: &dyn std::fmt::Display| Error::Unfit(format!("{path:?}: {error}"));
            if let Some(image) = known.get(path) {
                return Ok(image.clone());
            }
            let file = File::open(path).map_err(|error| unfit(&error))?;
            let image = ErofsReader::open(Arc::new(file)).map_err(|error| unfit(&error))?;
            known.insert(path.clone(), image.clone());
            Ok(image)
        };
        paths.iter().map(open).collect()
    }
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

/// Copies a layer that is an image already, and looks whether it is, before any kernel does: whole,
/// with features that are known, and with all its data in it. containerd's differ would copy any.
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
    match ErofsReader::open(file) {
        Ok(image) if found < image.size() => {
            let size = image.size();
            Err(Error::ShortImage { found, size })
        }
        Ok(image) if image.devices() > 0 => Err(Error::Devices(image.devices())),
        Ok(_) => Ok(()),
        Err(error) => Err(Error::NoImage(error)),
    }
}

#[cfg(test)]
mod tests {
    use resnap_core::Kind;

    use super::*;

    /// The image of an empty layer, of two blocks.
    fn image() -> Vec<u8> {
        let target = io::Cursor::new(Vec::new());
        let writer = Writer::new(target, Box::new(resnap_erofs::Memory::new(1 << 20))).unwrap();
        let (image, _) = writer.finish(&mut resnap_erofs::NoLower, [0; 16]).unwrap();
        image.into_inner()
    }

    #[test]
    fn images_are_copied_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let layer = resnap_core::Descriptor {
            media_type: String::new(),
            digest: Digest::sha256(b""),
            size: 0,
            annotations: Default::default(),
            platform: None,
        };
        let good = image();
        let mut newer = good.clone();
        // A feature that nobody has yet.
        newer[1024 + 80 + 3] |= 0x40;
        let mut spread = good.clone();
        // The device table is a feature that is known.
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
            let error = copy(&path, &mut &image[..]).err();
            let kind = error.map(|error| error.into_core(&layer).kind());
            assert_eq!(kind, refused);
            assert_eq!(std::fs::read(&path).unwrap(), image);
        }
    }

    #[test]
    fn parents_are_opened_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        std::fs::write(&path, image()).unwrap();
        let (parents, paths) = (Parents::default(), [path.clone()]);
        assert_eq!(parents.open(&paths).unwrap().len(), 1);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(parents.open(&paths).unwrap()[0].inodes(), 1);
        let other = parents.open(&[path.with_extension("other")]);
        assert!(matches!(other, Err(Error::Unfit(_))));
    }

    #[test]
    fn uuids_are_those_of_containerd() {
        // RFC 9562, version 5 in its place.
        let uuid = uuid(&Digest::sha256(b""));
        assert_eq!(uuid[6] >> 4, 5);
        assert_ne!(uuid, super::uuid(&Digest::sha256(b"1")));
    }
}
