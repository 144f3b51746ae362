// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The blob source.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use resnap_core::{
    BlobSource, ByteStream, Digest, Error, Kind, MissingBlob, Referrer, ReferrerList, Result,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::task::spawn_blocking;

use crate::images::{self, ArchiveForm, ArchivedImage};
use crate::index::{Index, index};
use crate::layout::{self, Found, Wanted, is_layout};
use crate::referrers::Walk;
use crate::rejections::Rejections;

/// The size of the pieces of a blob.
const PIECE_BYTES: usize = 1 << 20;

/// The blobs in OCI layouts, OCI archives and `docker save` archives. Clones share the indexes of the
/// archives.
#[derive(Debug, Clone)]
pub struct ArchiveSource {
    paths: Arc<[PathBuf]>,
    indexes: Arc<Mutex<HashMap<PathBuf, Indexed>>>,
    rejections: Arc<Rejections>,
}

/// The version of an archive: its inode, size and time of modification.
type Version = (u64, u64, i64, i64);

/// The index of a version of an archive.
type Indexed = (Version, Arc<Index>);

impl ArchiveSource {
    /// Returns the source of the blobs at these paths. Each is an archive, an OCI layout, or a directory
    /// of archives and layouts. Paths may come and go; one that does not exist has no blobs.
    pub fn new(paths: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        Self {
            paths: paths.into_iter().map(Into::into).collect(),
            indexes: Arc::default(),
            rejections: Arc::default(),
        }
    }

    /// Returns the images of an archive or layout, which need not be one of this source.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it does not exist; [`Kind::InvalidArgument`] if it is no archive or layout of this
    /// form; [`Kind::PermissionDenied`] if this user may not read it; [`Kind::Unavailable`] if it cannot be read.
    pub async fn images(&self, path: &Path, form: ArchiveForm) -> Result<Vec<ArchivedImage>> {
        let (this, path) = (self.clone(), path.to_owned());
        let subject = path.display().to_string();
        let listed = spawn_blocking(move || this.images_blocking(&path, form)).await;
        let listed = listed.map_err(io::Error::other).and_then(|listed| listed);
        listed.map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::NotFound => Kind::NotFound,
                io::ErrorKind::InvalidData => Kind::InvalidArgument,
                io::ErrorKind::PermissionDenied => Kind::PermissionDenied,
                _ => Kind::Unavailable,
            };
            Error::new(kind, "list the images of", subject).with_source(error)
        })
    }

    fn images_blocking(&self, path: &Path, form: ArchiveForm) -> io::Result<Vec<ArchivedImage>> {
        path.metadata()?;
        let none = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
        match form {
            ArchiveForm::Oci => {
                let index = self.open_in(path, Wanted::Index)?;
                let index = index.ok_or_else(|| match path.is_dir() {
                    true => none("it has no index.json of an OCI layout"),
                    false => none("it has no index.json of an OCI layout, or is cut short"),
                })?;
                images::of_layout(&index.read(ReferrerList::MAX_DOCUMENT as u64)?)
            }
            ArchiveForm::Docker => {
                let archive = self.archive(path)?;
                let saved = archive.map(|(_, index)| images::of_saved(&index.saved));
                let saved = saved.filter(|images| !images.is_empty());
                saved.ok_or_else(|| none("no image of `docker save` is in it"))
            }
        }
    }

    /// Finds a blob, and its place.
    async fn find(&self, blob: &MissingBlob) -> Result<Option<(PathBuf, Found)>> {
        let digest = blob.descriptor.digest.clone();
        let (this, wanted) = (self.clone(), digest.clone());
        let found = spawn_blocking(move || this.find_blocking(&wanted));
        let found = found.await.map_err(io::Error::other);
        found
            .and_then(|found| found)
            .map_err(|error| failed(digest.as_str(), error))
    }

    fn find_blocking(&self, digest: &Digest) -> io::Result<Option<(PathBuf, Found)>> {
        let rejected = self.rejections.of(digest);
        let (last, first): (Vec<_>, Vec<_>) = self
            .candidates()
            .into_iter()
            .partition(|path| rejected.contains(path));
        for path in first.into_iter().chain(last) {
            match self.open_in(&path, Wanted::Blob(digest)) {
                Ok(Some(found)) => return Ok(Some((path, found))),
                Ok(None) => {}
                // One bad file must not hide the others.
                Err(error) => tracing::debug!(?path, %error, "the archive cannot be read"),
            }
        }
        Ok(None)
    }

    fn referrers_blocking(&self, subject: &Digest, artifact_types: &[&str]) -> Vec<Referrer> {
        let mut list = ReferrerList::new(subject, artifact_types);
        for path in self.candidates() {
            let walk = Walk::new(|wanted| self.open_in(&path, wanted));
            if let Err(error) = walk.add(subject, &mut list) {
                tracing::debug!(?path, %error, "the archive cannot be searched");
            }
        }
        list.into_found()
    }

    /// Opens a file of an archive or layout.
    fn open_in(&self, path: &Path, wanted: Wanted<'_>) -> io::Result<Option<Found>> {
        match path.is_dir() {
            true => layout::open(path, wanted),
            false => {
                let archive = self.archive(path)?;
                Ok(archive.and_then(|(file, index)| index.get(file, wanted)))
            }
        }
    }

    /// Returns the archives and layouts.
    fn candidates(&self) -> Vec<PathBuf> {
        let mut candidates = Vec::new();
        for path in &*self.paths {
            match path.read_dir() {
                Ok(entries) if !is_layout(path) => {
                    let mut inside: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
                    inside.retain(|path| path.is_file() || is_layout(path));
                    inside.sort();
                    candidates.extend(inside);
                }
                _ => candidates.push(path.clone()),
            }
        }
        candidates
    }

    /// Opens an archive, with its index.
    fn archive(&self, path: &Path) -> io::Result<Option<(File, Arc<Index>)>> {
        // A FIFO must not block.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::open(path, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            file => File::from(file?),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
        }
        let version = (
            metadata.ino(),
            metadata.size(),
            metadata.mtime(),
            metadata.mtime_nsec(),
        );
        let known = {
            let indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
            indexes.get(path).cloned()
        };
        let index = match known {
            Some((known, index)) if known == version => index,
            _ => {
                let index = Arc::new(index(file.try_clone()?)?);
                let mut indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
                indexes.insert(path.to_owned(), (version, Arc::clone(&index)));
                index
            }
        };
        Ok(Some((file, index)))
    }
}

fn failed(subject: &str, error: io::Error) -> Error {
    Error::new(Kind::Unavailable, "read from an archive", subject).with_source(error)
}

#[async_trait]
impl BlobSource for ArchiveSource {
    fn name(&self) -> &'static str {
        "archive"
    }

    async fn has(&self, blob: &MissingBlob) -> Result<bool> {
        Ok(self.find(blob).await?.is_some())
    }

    async fn referrers(
        &self,
        subject: &MissingBlob,
        artifact_types: &[&str],
    ) -> Result<Vec<Referrer>> {
        let digest = subject.descriptor.digest.clone();
        let text = digest.to_string();
        let types: Vec<_> = artifact_types.iter().map(|&name| name.to_owned()).collect();
        let this = self.clone();
        let found = spawn_blocking(move || {
            let types: Vec<_> = types.iter().map(String::as_str).collect();
            this.referrers_blocking(&digest, &types)
        });
        found
            .await
            .map_err(|error| failed(&text, io::Error::other(error)))
    }

    fn reject(&self, blob: &MissingBlob) -> bool {
        self.rejections.reject(&blob.descriptor.digest)
    }

    async fn open(&self, blob: &MissingBlob, offset: u64) -> Result<ByteStream> {
        let subject = blob.descriptor.digest.to_string();
        let Some(found) = self.find(blob).await? else {
            let paths: Vec<_> = self.paths.iter().map(|path| path.display()).collect();
            let error = Error::new(Kind::NotFound, "find in an archive", subject);
            return Err(error.with_source(format!("no archive in {paths:?} has it")));
        };
        let (place, found) = found;
        self.rejections.serve(&blob.descriptor.digest, &place);
        let (mut file, start, size) = match found {
            Found::File { file, offset, size } => (file, offset, size),
            Found::Made(bytes) => {
                let start = usize::try_from(offset).map_or(bytes.len(), |at| at.min(bytes.len()));
                return Ok(stream::iter([Ok(bytes.slice(start..))]).boxed());
            }
        };
        let sought = file.seek(SeekFrom::Start(start.saturating_add(offset)));
        sought.map_err(|error| failed(&subject, error))?;
        let rest = size.saturating_sub(offset);
        let pieces = stream::unfold(Some((file, rest)), move |state| {
            let (subject, place) = (subject.clone(), place.clone());
            async move {
                let (file, rest) = state.filter(|(_, rest)| *rest > 0)?;
                let read = spawn_blocking(move || read_piece(file, rest)).await;
                let read = read.map_err(io::Error::other).and_then(|read| read);
                Some(match read {
                    Ok((piece, file)) => {
                        let rest = rest - piece.len() as u64;
                        (Ok(piece), Some((file, rest)))
                    }
                    Err(error) => {
                        // Not that it is unavailable: another place may have it.
                        let error = format!("{}: {error}", place.display());
                        let damaged = Error::new(Kind::DataLoss, "read", subject);
                        (Err(damaged.with_source(error)), None)
                    }
                })
            }
        });
        Ok(pieces.boxed())
    }
}

fn read_piece(mut file: File, rest: u64) -> io::Result<(Bytes, File)> {
    let length = usize::try_from(rest).map_or(PIECE_BYTES, |rest| rest.min(PIECE_BYTES));
    let mut piece = vec![0; length];
    file.read_exact(&mut piece)?;
    Ok((piece.into(), file))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use resnap_core::Descriptor;

    use super::*;

    fn blob(bytes: &[u8]) -> MissingBlob {
        let media_type = "application/vnd.oci.image.layer.v1.tar";
        let (digest, size) = (Digest::sha256(bytes), bytes.len() as u64);
        MissingBlob::new(Descriptor::new(media_type, digest, size), None)
    }

    async fn read(source: &ArchiveSource, blob: &MissingBlob, offset: u64) -> Result<Vec<u8>> {
        let mut stream = source.open(blob, offset).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = stream.next().await {
            bytes.extend_from_slice(&piece?);
        }
        Ok(bytes)
    }

    fn add(archive: &mut tar::Builder<File>, name: &str, bytes: &[u8]) {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes).unwrap();
    }

    fn archive(path: &Path, files: &[(&str, &[u8])]) {
        let mut archive = tar::Builder::new(File::create(path).unwrap());
        for (name, bytes) in files {
            add(&mut archive, name, bytes);
        }
        archive.finish().unwrap();
    }

    #[tokio::test]
    async fn layouts_and_archives_are_read_from_any_offset() {
        let dir = tempfile::tempdir().unwrap();
        let large = vec![7; PIECE_BYTES + 5];
        let blobs: [&[u8]; 3] = [b"in a layout", &large, b"saved"];
        let [in_layout, in_archive, saved] = blobs.map(blob);
        let encoded = |blob: &MissingBlob| blob.descriptor.digest.encoded().to_owned();

        let layout = dir.path().join("layout/blobs/sha256");
        fs::create_dir_all(&layout).unwrap();
        fs::write(dir.path().join("layout/oci-layout"), "{}").unwrap();
        fs::write(layout.join(encoded(&in_layout)), blobs[0]).unwrap();
        let name = format!("./blobs/sha256/{}", encoded(&in_archive));
        archive(&dir.path().join("oci.tar"), &[(&name, blobs[1])]);
        let config = format!(
            r#"{{"rootfs":{{"diff_ids":["{}"]}}}}"#,
            saved.descriptor.digest
        );
        archive(
            &dir.path().join("saved.tar"),
            &[
                ("abc/layer.tar", blobs[2]),
                ("c.json", config.as_bytes()),
                (
                    "manifest.json",
                    br#"[{"Config":"c.json","Layers":["abc/layer.tar"]}]"#,
                ),
            ],
        );
        fs::write(dir.path().join("other.txt"), "no archive").unwrap();

        let source = ArchiveSource::new([dir.path()]);
        for (bytes, blob) in blobs.iter().zip([in_layout, in_archive, saved]) {
            assert!(source.has(&blob).await.unwrap());
            for offset in [0, 3, bytes.len()] {
                let read = read(&source, &blob, offset as u64).await.unwrap();
                assert_eq!(read, bytes[offset..]);
            }
        }
        let missing = blob(b"nowhere");
        assert!(!source.has(&missing).await.unwrap());
        let error = read(&source, &missing, 0).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
    }

    #[tokio::test]
    async fn a_place_with_wrong_bytes_is_asked_last() {
        let dir = tempfile::tempdir().unwrap();
        let good = b"of the right digest";
        let wanted = blob(good);
        let name = format!("blobs/sha256/{}", wanted.descriptor.digest.encoded());
        // In the order in which they are asked.
        for (place, bytes) in [("1", &b"of another digest"[..]), ("2", b"of"), ("4", good)] {
            let path = dir.path().join(place).join(&name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(dir.path().join(place).join("oci-layout"), "{}").unwrap();
            fs::write(path, bytes).unwrap();
        }
        let cut = dir.path().join("3");
        archive(&cut, &[(&name, &[7; 5000])]);
        let file = File::options().write(true).open(&cut).unwrap();
        file.set_len(1000).unwrap();

        let source = ArchiveSource::new([dir.path()]);
        let mut served = Vec::new();
        for _ in 0..4 {
            served.push(
                read(&source, &wanted, 0)
                    .await
                    .map_err(|error| error.kind()),
            );
            if served.last().unwrap().as_deref() == Ok(good) {
                break;
            }
            assert!(source.reject(&wanted), "another has it");
        }
        let wrong = [Ok(b"of another digest".to_vec()), Ok(b"of".to_vec())];
        let cut = Err(Kind::DataLoss);
        assert_eq!(served, [&wrong[..], &[cut, Ok(good.to_vec())]].concat());
        assert!(source.reject(&wanted));
        assert_eq!(
            read(&source, &wanted, 0).await.unwrap(),
            b"of another digest"
        );
        assert!(!source.reject(&wanted), "all were asked");
    }

    #[tokio::test]
    async fn an_archive_that_changes_is_indexed_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("oci.tar");
        let source = ArchiveSource::new([&path]);
        let (first, second) = (blob(b"first"), blob(b"the second"));
        assert!(!source.has(&first).await.unwrap());
        for (bytes, blob) in [(&b"first"[..], &first), (b"the second", &second)] {
            let name = format!("blobs/sha256/{}", blob.descriptor.digest.encoded());
            archive(&path, &[(&name, bytes), ("padding", bytes)]);
            assert!(source.has(blob).await.unwrap());
        }
        assert!(!source.has(&first).await.unwrap());
    }
}
