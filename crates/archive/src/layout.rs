// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The files of OCI layouts (image-spec `image-layout.md`).

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use resnap_core::Digest;
use rustix::fs::{Mode, OFlags};

/// The file with the index of a layout.
pub(crate) const INDEX: &str = "index.json";

/// A file of a layout.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted<'a> {
    /// The index, by which everything else is reached.
    Index,
    Blob(&'a Digest),
}

/// A file that is one of a layout, or has one in it.
pub(crate) struct Found {
    pub(crate) file: File,
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

impl Found {
    /// Reads all of it, unless it is larger than `limit`.
    pub(crate) fn read(mut self, limit: u64) -> io::Result<Vec<u8>> {
        if self.size > limit {
            let size = self.size;
            let text = format!("a document of {size} bytes, and only {limit} may be read");
            return Err(io::Error::other(text));
        }
        let mut bytes = Vec::new();
        self.file.seek(SeekFrom::Start(self.offset))?;
        self.file.take(self.size).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// Returns whether a directory is a layout.
pub(crate) fn is_layout(path: &Path) -> bool {
    path.join("oci-layout").is_file()
}

/// Opens a file of a layout that is a directory; `None` if it does not have the file.
pub(crate) fn open(layout: &Path, wanted: Wanted<'_>) -> io::Result<Option<Found>> {
    let path = match wanted {
        Wanted::Index => layout.join(INDEX),
        Wanted::Blob(digest) => {
            let blobs = layout.join("blobs").join(digest.algorithm());
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
    Ok(metadata.is_file().then(|| Found {
        size: metadata.size(),
        file,
        offset: 0,
    }))
}
