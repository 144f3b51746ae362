// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Fetching a blob from a source into the content store, once for all jobs and processes.

use std::time::Duration;

use futures::StreamExt as _;
use resnap_core::{BlobSource, Error, Ingest, Kind, MissingBlob, Resource, Result};
use tokio::time::{Instant, sleep};

use crate::backend::Backend;
use crate::feed::Feeding;
use crate::lease::{JobLease, undo};
use crate::missing::source_labels;

/// The number of blobs that a job fetches at once, as in containerd (`max_concurrent_downloads`).
pub(crate) const PARALLEL_FETCHES: usize = 3;

/// The pause between looks at an ingest that another client writes.
const POLL: Duration = Duration::from_millis(200);

/// The shortest time between two progress events.
const PACE: Duration = Duration::from_millis(100);

/// Returns the name of a blob's ingest: containerd's own, so that a pull and a job wait for each
/// other, and each goes on where the other has stopped (containerd `core/remotes/handlers.go`,
/// `MakeRefKey`).
fn ingest_name(blob: &MissingBlob) -> String {
    format!("layer-{}", blob.descriptor.digest)
}

/// The least bytes of a blob in [`PACE_WINDOW`]. A slower source, or another client that is slower,
/// keeps others waiting who share the blob.
const MIN_BYTES: u64 = 3 << 20;

/// The time over which the pace is measured, longer than a registry may ask to wait.
const PACE_WINDOW: Duration = Duration::from_secs(300);

/// The number of servers of a source whose bytes of a blob may be wrong or too slow. A source forgets which
/// it has rejected, and a fetch from all of them takes time.
pub(crate) const MAX_SERVERS: usize = 8;

/// The pace of a transfer.
struct Pace {
    since: Instant,
    bytes: u64,
}

impl Pace {
    fn new(bytes: u64) -> Self {
        let since = Instant::now();
        Self { since, bytes }
    }

    /// Checks that there is progress. `bytes` have been transferred so far.
    fn check(&mut self, bytes: u64, digest: &str) -> Result<()> {
        if self.since.elapsed() < PACE_WINDOW {
            return Ok(());
        }
        if bytes.saturating_sub(self.bytes) < MIN_BYTES {
            let error = Error::new(Kind::DeadlineExceeded, "fetch", digest);
            let text = format!("fewer than {MIN_BYTES} bytes came within {PACE_WINDOW:?}");
            return Err(error.with_source(text));
        }
        *self = Self::new(bytes);
        Ok(())
    }
}

/// The fetch of a blob.
pub(crate) struct Fetching<'a> {
    pub(crate) backend: &'a Backend,
    /// The lease under which it is written.
    pub(crate) lease: &'a JobLease,
    pub(crate) blob: &'a MissingBlob,
    /// Called with the number of bytes that were fetched, while nothing else shows progress.
    pub(crate) progress: &'a (dyn Fn(u64) + Send + Sync),
    pub(crate) feeding: Option<&'a mut Feeding>,
}

impl Fetching<'_> {
    /// Fetches the blob, unless it exists by now. After an error, bytes that may be right stay under the
    /// lease, for the next source or job.
    pub(crate) async fn fetch(&mut self, source: &dyn BlobSource) -> Result<()> {
        let name = ingest_name(self.blob);
        let mut servers = 0;
        loop {
            servers += 1;
            let Some(ingest) = self.open(&name).await? else {
                return Ok(());
            };
            let is_resumed = ingest.offset() > 0;
            let fetched = self.write(source, ingest).await;
            let kind = fetched.as_ref().map_err(Error::kind).err();
            if !matches!(kind, Some(Kind::DataLoss | Kind::DeadlineExceeded)) {
                return fetched;
            }
            let is_wrong = kind == Some(Kind::DataLoss);
            if is_wrong {
                // This job has written to it, so nobody else has it open.
                self.abort(&name).await;
            }
            let has_others = source.reject(self.blob);
            // Another client may have written wrong bytes before.
            if servers == MAX_SERVERS || !(has_others || is_wrong && is_resumed) {
                return fetched;
            }
        }
    }

    async fn abort(&mut self, name: &str) {
        if let Some(feeding) = &mut self.feeding {
            feeding.end();
        }
        let (writer, scope) = (&self.backend.ports.writer, &self.backend.scope);
        if let Err(error) = undo(|| writer.abort(scope, name)).await {
            tracing::debug!(%error, name, "the ingest goes with the lease");
        }
    }

    async fn write(&mut self, source: &dyn BlobSource, mut ingest: Box<dyn Ingest>) -> Result<()> {
        let blob = &self.blob.descriptor;
        let (digest, size) = (blob.digest.as_str(), blob.size);
        let mut last_sent = Instant::now();
        if ingest.offset() < size {
            let mut stream = source.open(self.blob, ingest.offset()).await?;
            let mut pace = Pace::new(ingest.offset());
            if ingest.offset() == 0
                && let Some(feeding) = &mut self.feeding
            {
                feeding.begin(blob);
            }
            while let Some(piece) = stream.next().await {
                let piece = piece?;
                if piece.len() as u64 > size.saturating_sub(ingest.offset()) {
                    let error = Error::new(Kind::DataLoss, "fetch", digest);
                    return Err(error.with_source(format!("there are more than its {size} bytes")));
                }
                if let Some(feeding) = &mut self.feeding {
                    feeding.send(&piece).await;
                }
                ingest.write(piece).await?;
                pace.check(ingest.offset(), digest)?;
                let is_read = self
                    .feeding
                    .as_ref()
                    .is_some_and(|feeding| feeding.is_read());
                if !is_read && last_sent.elapsed() >= PACE {
                    last_sent = Instant::now();
                    (self.progress)(ingest.offset());
                }
            }
        }
        if ingest.offset() != size {
            let error = Error::new(Kind::DataLoss, "fetch", digest);
            let bytes = ingest.offset();
            return Err(error.with_source(format!("there are {bytes} bytes instead of {size}")));
        }
        self.commit(ingest).await
    }

    async fn open(&self, name: &str) -> Result<Option<Box<dyn Ingest>>> {
        open(self.backend, self.lease, self.blob, name).await
    }

    async fn commit(&self, ingest: Box<dyn Ingest>) -> Result<()> {
        let labels = source_labels(self.blob);
        let mut committed = ingest.commit(&labels).await;
        if committed.as_ref().is_err_and(Error::is_not_found) {
            // The lease under which the ingest was opened has been renewed since.
            if let Some(again) = self.open(&ingest_name(self.blob)).await? {
                committed = again.commit(&labels).await;
            }
        }
        match committed {
            Err(error) if error.is_already_exists() => {
                adopt(self.backend, self.lease, self.blob).await.map(drop)
            }
            Err(error) if error.kind() == Kind::FailedPrecondition => {
                let digest = self.blob.descriptor.digest.as_str();
                Err(Error::new(Kind::DataLoss, "fetch", digest).with_source(error))
            }
            committed => committed,
        }
    }
}

/// Opens an ingest, and waits for another client that writes it; `None` if the blob exists by now.
pub(crate) async fn open(
    backend: &Backend,
    lease: &JobLease,
    blob: &MissingBlob,
    name: &str,
) -> Result<Option<Box<dyn Ingest>>> {
    let writer = &backend.ports.writer;
    let mut pace = Pace::new(0);
    loop {
        let opened = {
            // Held meanwhile: a lease that is renewed would miss the ingest.
            let scope = lease.scope().await?;
            writer.ingest(&scope, name, &blob.descriptor).await
        };
        match opened {
            Ok(ingest) => return Ok(Some(ingest)),
            Err(error) if error.is_already_exists() => {
                if adopt(backend, lease, blob).await? {
                    return Ok(None);
                }
            }
            Err(error) if error.kind() == Kind::Unavailable => {}
            Err(error) => return Err(error),
        }
        let written = writer.written(&backend.scope, name).await;
        pace.check(written.unwrap_or(0), blob.descriptor.digest.as_str())?;
        sleep(POLL).await;
    }
}

/// Adds a blob that another client wrote to the lease. Returns whether it exists.
pub(crate) async fn adopt(backend: &Backend, lease: &JobLease, blob: &MissingBlob) -> Result<bool> {
    let digest = &blob.descriptor.digest;
    lease.add(&Resource::Content(digest.clone())).await?;
    match backend.ports.content.info(&backend.scope, digest).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}
