// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Forwarding the data of a stream, and reading the beginning of a request.

use std::future::poll_fn;

use bytes::Bytes;
use h2::{Error, Reason, RecvStream, SendStream};
use resnap_core::Kind;

use crate::grpc::{Outcome, PREFIX_LEN, Status, length, outcome_in};
use crate::limits::MAX_PEEKED;

/// The bytes of a request that are read before it is decided whether to read the rest: less than its client
/// may send unasked.
const BEGINNING: usize = 32 << 10;

/// The side on which forwarding failed.
pub(crate) enum PumpError {
    Read(Error),
    Write(Error),
}

/// Forwards `first` and then all data of `from`, no faster than the receiver accepts it, and shows `on_data` what
/// comes from `from`. Ends `to` as `from` ends. Returns the outcome that the trailers state, if any.
pub(crate) async fn pump(
    first: FirstBytes,
    from: &mut RecvStream,
    to: &mut SendStream<Bytes>,
    mut on_data: impl FnMut(&Bytes),
) -> Result<Option<Outcome>, PumpError> {
    let end = from.is_end_stream();
    let mut pieces = first.pieces;
    let last = pieces.pop().unwrap_or_default();
    for piece in pieces {
        send(piece, to, false).await.map_err(PumpError::Write)?;
    }
    if !last.is_empty() || end {
        send(last, to, end).await.map_err(PumpError::Write)?;
    }
    if end {
        return Ok(None);
    }
    let released = from.flow_control().release_capacity(first.unreleased);
    released.map_err(PumpError::Read)?;
    loop {
        let bytes = tokio::select! {
            biased;
            bytes = from.data() => bytes,
            reason = poll_fn(|cx| to.poll_reset(cx)) => {
                return Err(PumpError::Write(reason.map_or_else(|error| error, Error::from)));
            }
        };
        let Some(bytes) = bytes else { break };
        let bytes = bytes.map_err(PumpError::Read)?;
        on_data(&bytes);
        let length = bytes.len();
        let end = from.is_end_stream();
        send(bytes, to, end).await.map_err(PumpError::Write)?;
        let released = from.flow_control().release_capacity(length);
        released.map_err(PumpError::Read)?;
        if end {
            return Ok(None);
        }
    }
    let trailers = from.trailers().await.map_err(PumpError::Read)?;
    let outcome = trailers.as_ref().and_then(outcome_in);
    match trailers {
        Some(trailers) => to.send_trailers(trailers),
        None => to.send_data(Bytes::new(), true),
    }
    .map_err(PumpError::Write)?;
    Ok(outcome)
}

async fn send(mut bytes: Bytes, to: &mut SendStream<Bytes>, end: bool) -> Result<(), Error> {
    while !bytes.is_empty() {
        to.reserve_capacity(bytes.len());
        let capacity = poll_fn(|cx| to.poll_capacity(cx)).await;
        let capacity = capacity.unwrap_or_else(|| Err(Reason::CANCEL.into()))?;
        let piece = bytes.split_to(capacity.min(bytes.len()));
        let last = end && bytes.is_empty();
        to.send_data(piece, last)?;
        if last {
            return Ok(());
        }
    }
    if end {
        to.send_data(Bytes::new(), true)?;
    }
    Ok(())
}

/// The bytes of a request that have been read before it is forwarded.
#[derive(Default)]
pub(crate) struct FirstBytes {
    pieces: Vec<Bytes>,
    /// The flow-control capacity that has not been given back to the client yet.
    unreleased: usize,
}

impl FirstBytes {
    /// Returns the bytes of a whole request, in pieces.
    pub(crate) fn whole(pieces: Vec<Bytes>) -> Self {
        Self {
            pieces,
            unreleased: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.iter().all(Bytes::is_empty)
    }
}

/// A request that is read before it is forwarded.
pub(crate) struct PeekedRequest<'a> {
    from: &'a mut RecvStream,
    bytes: Vec<u8>,
    unreleased: usize,
    ended: bool,
}

impl<'a> PeekedRequest<'a> {
    pub(crate) fn new(from: &'a mut RecvStream) -> Self {
        Self {
            from,
            bytes: Vec::new(),
            unreleased: 0,
            ended: false,
        }
    }

    /// Reads at least [`BEGINNING`] bytes, or to the end. The client may send that much unasked.
    pub(crate) async fn read_beginning(&mut self) -> Result<(), Status> {
        while self.bytes.len() < BEGINNING && self.read_more().await? {}
        Ok(())
    }

    /// Returns the bytes read so far.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the length of the request, as the prefix of its message states it. `None` if it is
    /// not one uncompressed message of at most [`MAX_PEEKED`] bytes.
    pub(crate) fn length(&self) -> Option<usize> {
        let length = PREFIX_LEN + length(&self.bytes)?;
        let is_one = self.bytes.first() == Some(&0) && self.bytes.len() <= length;
        (is_one && length <= MAX_PEEKED + PREFIX_LEN).then_some(length)
    }

    /// Takes the whole request, if it has been read to its end.
    pub(crate) fn take_whole(&mut self) -> Result<Option<Bytes>, Status> {
        if !self.ended {
            return Ok(None);
        }
        self.release()?;
        let bytes = std::mem::take(&mut self.bytes);
        Ok(Some(bytes.into_boxed_slice().into()))
    }

    /// Returns what has been read, to be forwarded before the rest.
    pub(crate) fn into_first_bytes(self) -> FirstBytes {
        FirstBytes {
            pieces: vec![self.bytes.into()],
            unreleased: self.unreleased,
        }
    }

    /// Reads to the end, or past `length` bytes.
    pub(crate) async fn read_to(&mut self, length: usize) -> Result<(), Status> {
        self.bytes
            .reserve_exact(length.saturating_sub(self.bytes.len()));
        while self.bytes.len() <= length {
            self.release()?;
            if !self.read_more().await? {
                break;
            }
        }
        Ok(())
    }

    async fn read_more(&mut self) -> Result<bool, Status> {
        if self.ended {
            return Ok(false);
        }
        let Some(bytes) = self.from.data().await else {
            self.ended = true;
            return Ok(false);
        };
        let bytes = bytes.map_err(|error| read_error(&error))?;
        self.unreleased += bytes.len();
        self.bytes.extend_from_slice(&bytes);
        self.ended = self.from.is_end_stream();
        Ok(true)
    }

    fn release(&mut self) -> Result<(), Status> {
        let unreleased = std::mem::take(&mut self.unreleased);
        let released = self.from.flow_control().release_capacity(unreleased);
        released.map_err(|error| read_error(&error))
    }
}

/// Returns the error for a request that broke off. Its client does not wait for a response.
fn read_error(error: &Error) -> Status {
    Status::new(Kind::ResourceExhausted, error.to_string())
}
