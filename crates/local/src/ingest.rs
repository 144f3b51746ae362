// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Writing blobs. An ingest is a file that its writer locks; it becomes a blob when it is complete and right.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use resnap_core::{
    ContentWriter, Descriptor, Digest, Error, Hasher, Ingest, Kind, Labels, Resource, Result, Scope,
};
use rustix::fs::OFlags;

use crate::blobs;
use crate::fault::Fault;
use crate::layout::Layout;
use crate::local::Local;
use crate::resource;
use crate::state::State;
use crate::store::check_labels;

/// The size of the pieces that are hashed of an ingest that another client began.
const PIECE_BYTES: usize = 1 << 20;

/// The mode of a blob, as in containerd.
const BLOB_MODE: u32 = 0o444;

#[async_trait]
impl ContentWriter for Local {
    async fn ingest(
        &self,
        scope: &Scope,
        name: &str,
        descriptor: &Descriptor,
    ) -> Result<Box<dyn Ingest>> {
        let (called, wanted, blob) = (scope.clone(), name.to_owned(), descriptor.clone());
        let written = self
            .call_in(scope, "open ingest", name, move |state| {
                let opened = state.store.write(|transaction| {
                    require_new(&state.layout, &blob.digest)?;
                    let resource = Resource::Ingest(wanted.clone());
                    resource::hold(transaction, &called, &resource)?;
                    // In the transaction, so that a collection does not find it without its lease.
                    open(&state.layout.ingest(&wanted))
                })?;
                Written::resume(opened, blob.digest.hasher())
            })
            .await?;
        Ok(Box::new(OpenIngest {
            local: self.clone(),
            scope: scope.clone(),
            name: name.to_owned(),
            descriptor: descriptor.clone(),
            offset: written.size,
            written: Some(written),
        }))
    }

    async fn written(&self, scope: &Scope, name: &str) -> Result<u64> {
        let wanted = name.to_owned();
        self.call_in(
            scope,
            "look up ingest",
            name,
            move |state| match fs::metadata(state.layout.ingest(&wanted)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Fault::missing()),
                metadata => Ok(metadata?.len()),
            },
        )
        .await
    }

    async fn abort(&self, scope: &Scope, name: &str) -> Result<()> {
        let (called, wanted) = (scope.clone(), name.to_owned());
        self.call_in(scope, "abort ingest", name, move |state| {
            state.store.write(|transaction| {
                let path = state.layout.ingest(&wanted);
                if !path.try_exists()? {
                    return Err(Fault::missing());
                }
                resource::release(transaction, &called, &Resource::Ingest(wanted))?;
                blobs::unlink(&path)
            })
        })
        .await
    }
}

/// Opens and locks the file of an ingest.
fn open(path: &Path) -> Result<File, Fault> {
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Fault::Refused(
            Kind::Unavailable,
            "another client writes it".to_owned(),
        )),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

/// The bytes of an ingest.
struct Written {
    file: File,
    hasher: Hasher,
    size: u64,
}

impl Written {
    /// Hashes the bytes of earlier clients.
    fn resume(mut file: File, mut hasher: Hasher) -> Result<Self, Fault> {
        let mut size = 0;
        let mut buffer = vec![0; PIECE_BYTES];
        file.seek(SeekFrom::Start(0))?;
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                return Ok(Self { file, hasher, size });
            }
            hasher.update(&buffer[..count]);
            size += count as u64;
        }
    }

    /// Appends bytes, all or none.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        if let Err(error) = self.file.write_all(bytes) {
            // What was written in part would be read as whole by the next client.
            self.file.set_len(self.size)?;
            return Err(error.into());
        }
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Makes a blob of the ingest.
    fn commit(self, state: &State, commit: &Commit) -> Result<(), Fault> {
        let (layout, blob) = (&state.layout, &commit.descriptor);
        let digest = self.hasher.digest();
        if self.size != blob.size || digest != blob.digest {
            let text = format!(
                "{} bytes with the digest {digest} instead of {} with {}",
                self.size, blob.size, blob.digest
            );
            return Err(Fault::Refused(Kind::FailedPrecondition, text));
        }
        self.file
            .set_permissions(Permissions::from_mode(BLOB_MODE))?;
        self.file.sync_all()?;
        let (from, to) = (layout.ingest(&commit.name), layout.blob(&blob.digest));
        // First the labels: a blob without them would keep nothing that it refers to.
        state.store.write(|transaction| {
            check_labels(&commit.labels)?;
            require_new(layout, &blob.digest)?;
            let content = Resource::Content(blob.digest.clone());
            resource::hold(transaction, &commit.scope, &content)?;
            // Those of a blob that was damaged or lost keep what was made of it.
            let mut labels = blobs::labels(transaction, &blob.digest)?;
            labels.extend(commit.labels.clone());
            blobs::set_labels(transaction, &blob.digest, &labels)
        })?;
        state.store.write(|transaction| {
            require_new(layout, &blob.digest)?;
            // The ingest was removed while it was written, if its lease has ended.
            blobs::require_same(&self.file, &from)?;
            let ingest = Resource::Ingest(commit.name.clone());
            resource::release(transaction, &commit.scope, &ingest)?;
            let directory = to.parent().unwrap_or(&to);
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)?;
            fs::rename(&from, &to)?;
            Ok(File::open(directory)?.sync_all()?)
        })
    }
}

/// Checks that a blob does not exist.
fn require_new(layout: &Layout, digest: &Digest) -> Result<(), Fault> {
    match blobs::size(layout, digest) {
        Ok(_) => Err(Fault::taken()),
        Err(Fault::Refused(..)) => Ok(()),
        Err(fault) => Err(fault),
    }
}

struct Commit {
    scope: Scope,
    name: String,
    descriptor: Descriptor,
    labels: Labels,
}

struct OpenIngest {
    local: Local,
    scope: Scope,
    name: String,
    descriptor: Descriptor,
    offset: u64,
    /// `None` while a write is under way, and after one whose caller has gone.
    written: Option<Written>,
}

impl OpenIngest {
    fn take(&mut self) -> Result<Written> {
        self.written.take().ok_or_else(|| {
            Error::new(Kind::FailedPrecondition, "write ingest", &*self.name)
                .with_source("an earlier write was not waited for; open the ingest again")
        })
    }
}

#[async_trait]
impl Ingest for OpenIngest {
    fn offset(&self) -> u64 {
        self.offset
    }

    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let mut written = self.take()?;
        let work = move |_: &State| {
            let result = written.write(&bytes);
            Ok((written, result))
        };
        let done = self.local.call("write ingest", &self.name, work).await?;
        let (written, result) = done;
        self.offset = written.size;
        self.written = Some(written);
        result.map_err(|fault| fault.of("write ingest", &self.name))
    }

    async fn commit(mut self: Box<Self>, labels: &Labels) -> Result<()> {
        let written = self.take()?;
        let commit = Commit {
            scope: self.scope.clone(),
            name: self.name.clone(),
            descriptor: self.descriptor.clone(),
            labels: labels.clone(),
        };
        self.local
            .call("commit ingest", &self.name, move |state| {
                written.commit(state, &commit)
            })
            .await
    }
}
