// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Fetching a blob from a source into the content store, once for all jobs and processes.

use std::time::Duration;

use futures::StreamExt as _;
use resnap_core::{BlobSource, Error, Ingest, Kind, Labels, MissingBlob, Resource, Result, labels};
use tokio::time::{Instant, sleep};

use crate::chain::Chain;
use crate::lease::undo;

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

/// Fetches the blob of the layer at `index` under the lease of the job, unless it exists by now. After
/// an error, bytes that may be right stay under the lease, for the next source or job.
pub(crate) async fn fetch(
    chain: &Chain,
    index: usize,
    source: &dyn BlobSource,
    blob: &MissingBlob,
) -> Result<()> {
    let name = ingest_name(blob);
    loop {
        let Some(ingest) = open(chain, blob, &name).await? else {
            return Ok(());
        };
        let is_resumed = ingest.offset() > 0;
        let fetched = write(chain, index, source, blob, ingest).await;
        match &fetched {
            // This job has written to it, so nobody else has it open.
            Err(error) if error.kind() == Kind::DataLoss => abort(chain, &name).await,
            _ => return fetched,
        }
        // Another client may have written wrong bytes before.
        if !is_resumed {
            return fetched;
        }
    }
}

async fn abort(chain: &Chain, name: &str) {
    let (writer, scope) = (&chain.backend.ports.writer, &chain.backend.scope);
    if let Err(error) = undo(|| writer.abort(scope, name)).await {
        tracing::debug!(%error, name, "the ingest goes with the lease");
    }
}

async fn write(
    chain: &Chain,
    index: usize,
    source: &dyn BlobSource,
    blob: &MissingBlob,
    mut ingest: Box<dyn Ingest>,
) -> Result<()> {
    let digest = &blob.descriptor.digest;
    let size = blob.descriptor.size;
    let mut last_sent = Instant::now();
    if ingest.offset() < size {
        let mut stream = source.open(blob, ingest.offset()).await?;
        let mut pace = Pace::new(ingest.offset());
        while let Some(piece) = stream.next().await {
            let piece = piece?;
            if piece.len() as u64 > size.saturating_sub(ingest.offset()) {
                let error = Error::new(Kind::DataLoss, "fetch", digest.as_str());
                return Err(error.with_source(format!("there are more than its {size} bytes")));
            }
            ingest.write(piece).await?;
            pace.check(ingest.offset(), digest.as_str())?;
            if last_sent.elapsed() >= PACE {
                last_sent = Instant::now();
                chain.job.emit_fetching(index, ingest.offset());
            }
        }
    }
    if ingest.offset() != size {
        let error = Error::new(Kind::DataLoss, "fetch", digest.as_str());
        let bytes = ingest.offset();
        return Err(error.with_source(format!("there are {bytes} bytes instead of {size}")));
    }
    commit(chain, ingest, blob).await
}

/// Opens the ingest, and waits for another client that writes it; `None` if the blob exists by now.
async fn open(chain: &Chain, blob: &MissingBlob, name: &str) -> Result<Option<Box<dyn Ingest>>> {
    let (writer, digest) = (&chain.backend.ports.writer, &blob.descriptor.digest);
    let mut pace = Pace::new(0);
    loop {
        let opened = {
            // Held meanwhile: a lease that is renewed would miss the ingest.
            let scope = chain.lease.scope().await?;
            writer.ingest(&scope, name, &blob.descriptor).await
        };
        match opened {
            Ok(ingest) => return Ok(Some(ingest)),
            Err(error) if error.is_already_exists() => {
                if adopt(chain, blob).await? {
                    return Ok(None);
                }
            }
            Err(error) if error.kind() == Kind::Unavailable => {}
            Err(error) => return Err(error),
        }
        let written = writer.written(&chain.backend.scope, name).await;
        pace.check(written.unwrap_or(0), digest.as_str())?;
        sleep(POLL).await;
    }
}

/// Adds a blob that another client wrote to the lease. Returns whether it exists.
pub(crate) async fn adopt(chain: &Chain, blob: &MissingBlob) -> Result<bool> {
    let (ports, digest) = (&chain.backend.ports, &blob.descriptor.digest);
    chain.lease.add(&Resource::Content(digest.clone())).await?;
    match ports.content.info(&chain.backend.scope, digest).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

async fn commit(chain: &Chain, ingest: Box<dyn Ingest>, blob: &MissingBlob) -> Result<()> {
    let repositories = blob.repositories.iter();
    let labels: Labels = repositories
        .map(|(host, names)| {
            (
                format!("{}{host}", labels::DISTRIBUTION_SOURCE_PREFIX),
                names.join(","),
            )
        })
        .collect();
    let mut committed = ingest.commit(&labels).await;
    if committed.as_ref().is_err_and(Error::is_not_found) {
        // The lease under which the ingest was opened has been renewed since.
        if let Some(again) = open(chain, blob, &ingest_name(blob)).await? {
            committed = again.commit(&labels).await;
        }
    }
    match committed {
        Err(error) if error.is_already_exists() => adopt(chain, blob).await.map(drop),
        Err(error) if error.kind() == Kind::FailedPrecondition => {
            let digest = blob.descriptor.digest.as_str();
            Err(Error::new(Kind::DataLoss, "fetch", digest).with_source(error))
        }
        committed => committed,
    }
}
