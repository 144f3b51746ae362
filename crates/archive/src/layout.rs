// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The files of OCI layouts (image-spec `image-layout.md`).

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use bytes::Bytes;
use resnap_core::Digest;
use rustix::fs::{Mode, OFlags};

/// The file with the index of a layout.
pub(crate) const INDEX: &str = "index.json";

/// The directory with the blobs.
pub(crate) const BLOBS: &str = "blobs";

/// The file that makes a directory a layout.
pub(crate) const MARKER: &str = "oci-layout";

/// A file of a layout.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted<'a> {
    /// The index, by which everything else is reached.
    Index,
    Blob(&'a Digest),
}

/// A file of a layout.
pub(crate) enum Found {
    /// A file that is one, or has one in it.
    File { file: File, offset: u64, size: u64 },
    /// One that the archive does not have as a file.
    Made(Bytes),
}

impl Found {
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::File { size, .. } => *size,
            Self::Made(bytes) => bytes.len() as u64,
        }
    }

    /// Reads all of it, unless it is larger than `limit`.
    pub(crate) fn read(self, limit: u64) -> io::Result<Bytes> {
        let size = self.size();
        if size > limit {
            let text = format!("a document of {size} bytes, and only {limit} may be read");
            return Err(io::Error::other(text));
        }
        match self {
            Self::Made(bytes) => Ok(bytes),
            Self::File {
                mut file, offset, ..
            } => {
                let mut bytes = Vec::new();
                file.seek(SeekFrom::Start(offset))?;
                file.take(size).read_to_end(&mut bytes)?;
                Ok(bytes.into())
            }
        }
    }
}

/// Returns whether a directory is a layout.
pub(crate) fn is_layout(path: &Path) -> bool {
    path.join(MARKER).is_file()
}

/// Opens a file of a layout that is a directory; `None` if it does not have the file.
pub(crate) fn open(layout: &Path, wanted: Wanted<'_>) -> io::Result<Option<Found>> {
    let path = match wanted {
        Wanted::Index => layout.join(INDEX),
        Wanted::Blob(digest) => {
            let blobs = layout.join(BLOBS).join(digest.algorithm());
            blobs.join(digest.encoded())
        }
    };
    let is_file = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        metadata => metadata?.is_file(),
    };
    // Opening a device may have an effect.
    if !is_file {
        return Ok(None);
    }
    // A FIFO that takes its place must not block, and a link must not lead elsewhere.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(&path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    Ok(metadata.is_file().then(|| Found::File {
        size: metadata.size(),
        file,
        offset: 0,
    }))
}
