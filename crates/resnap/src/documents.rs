// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The documents of images that were read, in a file of the runtime directory, for the next command.
//!
//! ```text
//! resnap documents 1
//! sha256:0a… 1234
//! {"schemaVersion":2,…}
//! sha256:1b… 987
//! …
//! ```
//!
//! One file is read at once, which takes a fraction of the time of thousands of small ones. It is replaced
//! as a whole: of processes that replace it at the same time the last one wins, and what the others add is
//! read again. It is only a cache: one that cannot be used is ignored, and documents are compared with
//! their digests when they are used.

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bytes::{Buf as _, Bytes};
use resnap_core::Digest;
use resnap_unpacker::{Engine, KnownDocuments, Reader, UnpackError, make_runtime_dir};
use rustix::fs::{Mode, OFlags};
use rustix::process::geteuid;
use tempfile::NamedTempFile;

/// The name of the file.
const NAME: &str = "documents";

/// The first line.
const FORMAT: &[u8] = b"resnap documents 1\n";

/// The limit on the bytes of a line and on those of the file: documents and the lines between them.
const MAX_LINE_BYTES: usize = 160;
const MAX_FILE_BYTES: usize = 2 * KnownDocuments::MAX_TOTAL_BYTES;

/// The images that are planned at once: documents are read, and the cores of the node used.
pub(crate) const IMAGES_AT_ONCE: usize = 64;

/// A look at a whole namespace, which keeps the documents that it reads.
pub(crate) struct Overview {
    pub(crate) reader: Reader,
    documents: KnownDocuments,
    dir: PathBuf,
}

impl Overview {
    /// Reads the lists of the namespace: see [`Reader::listed`].
    pub(crate) async fn read(
        engine: &Engine,
        runtime_dir: &Path,
        snapshotters: Option<&[String]>,
    ) -> Result<Self, UnpackError> {
        let documents = load(runtime_dir).unwrap_or_else(|error| {
            tracing::debug!(%error, "no documents are known");
            KnownDocuments::default()
        });
        Ok(Self {
            reader: engine.listed(snapshotters, &documents).await?,
            documents,
            dir: runtime_dir.to_owned(),
        })
    }

    /// Returns the names of all images, sorted, without the IDs that the CRI plugin keeps beside them.
    pub(crate) async fn images(&self) -> Result<Vec<String>, UnpackError> {
        let mut images = Vec::new();
        for image in self.reader.images().await? {
            let is_id = image.parse::<Digest>().is_ok();
            if !is_id || self.reader.resolve(&image).await?.reference.is_none() {
                images.push(image);
            }
        }
        Ok(images)
    }

    /// Keeps the documents that were read.
    pub(crate) fn keep_documents(&self) {
        if let Some(documents) = self.documents.changed()
            && let Err(error) = save(&self.dir, &documents)
        {
            tracing::debug!(%error, "the documents that were read are not kept");
        }
    }
}

/// Returns the documents that were kept.
fn load(dir: &Path) -> io::Result<KnownDocuments> {
    make_runtime_dir(dir)?;
    // Neither a link elsewhere nor the wait for a writer of a pipe.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::open(dir.join(NAME), flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(KnownDocuments::default()),
        file => File::from(file?),
    };
    let metadata = file.metadata()?;
    let is_ours = metadata.uid() == geteuid().as_raw() && metadata.mode() & 0o022 == 0;
    if !metadata.is_file() || !is_ours {
        let reason = "it is no file of this user, or others may write to it";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES as u64).read_to_end(&mut bytes)?;
    Ok(KnownDocuments::new(parse(bytes.into())))
}

/// Returns the documents of a file, up to the first damage.
fn parse(mut bytes: Bytes) -> Vec<(Digest, Bytes)> {
    let mut documents = Vec::new();
    if bytes.starts_with(FORMAT) {
        bytes.advance(FORMAT.len());
        documents.extend(std::iter::from_fn(|| next(&mut bytes)));
    }
    documents
}

fn next(bytes: &mut Bytes) -> Option<(Digest, Bytes)> {
    let line = bytes.get(..MAX_LINE_BYTES.min(bytes.len()))?;
    let end = line.iter().position(|byte| *byte == b'\n')?;
    let (digest, size) = std::str::from_utf8(&line[..end]).ok()?.split_once(' ')?;
    let (digest, size) = (digest.parse().ok()?, size.parse().ok()?);
    bytes.advance(end + 1);
    if bytes.get(size) != Some(&b'\n') {
        return None;
    }
    let document = bytes.split_to(size);
    bytes.advance(1);
    Some((digest, document))
}

/// Replaces the file.
fn save(dir: &Path, documents: &[(Digest, Bytes)]) -> io::Result<()> {
    make_runtime_dir(dir)?;
    // Only this user may read and write it.
    let mut file = BufWriter::with_capacity(1 << 20, NamedTempFile::new_in(dir)?);
    file.write_all(FORMAT)?;
    for (digest, document) in documents {
        writeln!(file, "{digest} {}", document.len())?;
        file.write_all(document)?;
        file.write_all(b"\n")?;
    }
    file.into_inner()?.persist(dir.join(NAME))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn documents() -> Vec<(Digest, Bytes)> {
        let texts = ["{}", "", "two\nlines\n"];
        let texts = texts.map(|text| Bytes::from_static(text.as_bytes()));
        texts.map(|text| (Digest::sha256(&text), text)).into()
    }

    #[test]
    fn documents_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).unwrap().changed().is_none());
        save(dir.path(), &documents()).unwrap();
        save(dir.path(), &documents()).unwrap();
        let path = dir.path().join(NAME);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(parse(bytes.into()), documents());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        load(dir.path()).unwrap();
    }

    #[test]
    fn a_damaged_file_is_used_up_to_the_damage() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &documents()).unwrap();
        let whole = fs::read(dir.path().join(NAME)).unwrap();
        for length in 0..whole.len() {
            let cut = parse(Bytes::copy_from_slice(&whole[..length]));
            assert_eq!(cut, documents()[..cut.len()], "{length} bytes");
            for byte in [0, b'\n', b'9'] {
                let mut damaged = whole.clone();
                damaged[length] = byte;
                // Digests are compared later; here it must end.
                assert!(parse(damaged.into()).len() <= documents().len());
            }
        }
        assert_eq!(parse(Bytes::from_static(b"resnap documents 2\n")), []);
    }

    #[test]
    fn a_file_of_others_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        save(dir.path(), &documents()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o602)).unwrap();
        load(dir.path()).unwrap_err();
        let elsewhere = dir.path().join("elsewhere");
        fs::rename(&path, &elsewhere).unwrap();
        symlink(&elsewhere, &path).unwrap();
        load(dir.path()).unwrap_err();
        // It is replaced, and what it points at stays.
        save(dir.path(), &[]).unwrap();
        load(dir.path()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), FORMAT);
        assert!(fs::metadata(&elsewhere).unwrap().len() > FORMAT.len() as u64);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        load(dir.path()).unwrap_err();
    }
}
