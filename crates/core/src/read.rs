// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Reading whole blobs, such as manifests and configs, with bounds on their size and number.

use futures::StreamExt as _;
use futures::channel::oneshot;

use crate::{ContentReader, Descriptor, Digest, Error, Kind, LargeReadPermit, Result, Scope};

/// The right of a reader of documents to hold large ones, or what it parsed them to. It is asked for at
/// the first of them, and ends when this is dropped.
#[derive(Debug, Default)]
pub struct LargeRead(Option<LargeReadPermit>);

impl LargeRead {
    async fn admit(&mut self, content: &dyn ContentReader) {
        if self.0.is_none() {
            self.0 = Some(content.admit_large_read().await);
        }
    }
}

/// From so many bytes on it takes long to work on them.
const LARGE: usize = 64 << 10;

/// Does `work` on bytes that were read: of many, where [`ContentReader::work`] has it done.
///
/// # Errors
/// [`Kind::Internal`] if the work panicked there.
pub async fn work_on<T: Send + 'static>(
    content: &dyn ContentReader,
    bytes: Vec<u8>,
    work: impl FnOnce(Vec<u8>) -> T + Send + 'static,
) -> Result<T> {
    if bytes.len() < LARGE {
        return Ok(work(bytes));
    }
    let size = bytes.len();
    let (sender, receiver) = oneshot::channel();
    let work = move || {
        // Who asked may have gone.
        let _ = sender.send(work(bytes));
    };
    content.work(Box::new(work)).await;
    let done = receiver.await;
    done.map_err(|_| {
        Error::new(
            Kind::Internal,
            "work on",
            format!("{size} bytes of content"),
        )
    })
}

/// Reads a blob of at most `limit` bytes, or returns how many of more it has read.
async fn read_up_to(
    content: &dyn ContentReader,
    scope: &Scope,
    digest: &Digest,
    limit: usize,
) -> Result<std::result::Result<Vec<u8>, u64>> {
    let mut stream = content.open(scope, digest).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        if bytes.len() + piece.len() > limit {
            return Ok(Err((bytes.len() + piece.len()) as u64));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(Ok(bytes))
}

/// Reads a whole blob of at most `limit` bytes and checks it against its digest. One that is small, and
/// is said to be, waits for no other reader.
///
/// # Errors
/// [`Kind::ResourceExhausted`] for one over the limit, by what it says and by what comes;
/// [`Kind::DataLoss`] if the bytes are not those of the digest; else the port's.
pub async fn read_verified(
    content: &dyn ContentReader,
    scope: &Scope,
    descriptor: &Descriptor,
    limit: usize,
    large: &mut LargeRead,
) -> Result<Vec<u8>> {
    let digest = &descriptor.digest;
    let too_large = |size: u64| {
        Error::new(Kind::ResourceExhausted, "read content", digest.as_str()).with_source(format!(
            "{size} bytes or more, and {} has at most {limit}",
            descriptor.media_type
        ))
    };
    if usize::try_from(descriptor.size).map_or(true, |size| size > limit) {
        return Err(too_large(descriptor.size));
    }
    // What a descriptor says of the size may be wrong.
    let mut read = Err(descriptor.size);
    if large.0.is_none() && descriptor.size < LARGE as u64 {
        read = read_up_to(content, scope, digest, LARGE.min(limit)).await?;
    }
    // Nobody waits with a stream open: on one connection, those that are not read keep others from
    // getting on.
    if read.is_err() {
        large.admit(content).await;
        read = read_up_to(content, scope, digest, limit).await?;
    }
    let bytes = read.map_err(too_large)?;
    let expected = digest.clone();
    let hash = move |bytes: Vec<u8>| (expected.same_algorithm(&bytes), bytes);
    let (actual, bytes) = work_on(content, bytes, hash).await?;
    if actual != *digest {
        return Err(Error::new(Kind::DataLoss, "read content", digest.as_str())
            .with_source(format!("its bytes have the digest {actual}")));
    }
    Ok(bytes)
}
