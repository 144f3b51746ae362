// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Data on its way from one stream to another, and messages that are looked into on it.

use std::future::poll_fn;

use bytes::Bytes;
use h2::{Error, Reason, RecvStream, SendStream};

use crate::grpc::{PREFIX_LEN, RESOURCE_EXHAUSTED, Status, code_in, length};
use crate::pass::{MAX_PEEKED, STREAM_WINDOW};

/// What is read of a request before it is decided whether the rest is: half of what its client may
/// send in any case.
const SHARE: usize = STREAM_WINDOW as usize / 2;

/// Which end of the way broke.
pub(crate) enum PumpError {
    From(Error),
    To(Error),
}

/// Sends `first` on, then all that comes, no faster than the receiver takes it, and ends as `from`
/// does. Answers with gRPC's code, if it ends with that.
pub(crate) async fn pump(
    first: FirstBytes,
    from: &mut RecvStream,
    to: &mut SendStream<Bytes>,
) -> Result<Option<u16>, PumpError> {
    let end = from.is_end_stream();
    if !first.bytes.is_empty() || end {
        send(first.bytes, to, end).await.map_err(PumpError::To)?;
    }
    if end {
        return Ok(None);
    }
    let released = from.flow_control().release_capacity(first.held);
    released.map_err(PumpError::From)?;
    loop {
        let bytes = tokio::select! {
            biased;
            bytes = from.data() => bytes,
            reason = poll_fn(|cx| to.poll_reset(cx)) => {
                return Err(PumpError::To(reason.map_or_else(|error| error, Error::from)));
            }
        };
        let Some(bytes) = bytes else { break };
        let bytes = bytes.map_err(PumpError::From)?;
        let length = bytes.len();
        let end = from.is_end_stream();
        send(bytes, to, end).await.map_err(PumpError::To)?;
        let released = from.flow_control().release_capacity(length);
        released.map_err(PumpError::From)?;
        if end {
            return Ok(None);
        }
    }
    let trailers = from.trailers().await.map_err(PumpError::From)?;
    let code = trailers.as_ref().and_then(code_in);
    match trailers {
        Some(trailers) => to.send_trailers(trailers),
        None => to.send_data(Bytes::new(), true),
    }
    .map_err(PumpError::To)?;
    Ok(code)
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

/// What of a request goes on first.
#[derive(Default)]
pub(crate) struct FirstBytes {
    pub(crate) bytes: Bytes,
    /// How many of the bytes the client has not got back yet, to send as many more.
    pub(crate) held: usize,
}

/// A request that is looked into, while it arrives.
pub(crate) struct PeekedRequest<'a> {
    from: &'a mut RecvStream,
    bytes: Vec<u8>,
    held: usize,
    ended: bool,
}

impl<'a> PeekedRequest<'a> {
    pub(crate) fn begin(from: &'a mut RecvStream) -> Self {
        Self {
            from,
            bytes: Vec::new(),
            held: 0,
            ended: false,
        }
    }

    /// Reads what the client sends without being asked for more.
    pub(crate) async fn read_share(&mut self) -> Result<(), Status> {
        while self.bytes.len() < SHARE && self.more().await? {}
        Ok(())
    }

    /// What has come.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How long the request is, with its message's prefix, as the prefix says; `None` if this is
    /// not one message that is looked into.
    pub(crate) fn length(&self) -> Option<usize> {
        let length = PREFIX_LEN + length(&self.bytes)?;
        let is_one = self.bytes.first() == Some(&0) && self.bytes.len() <= length;
        (is_one && length <= MAX_PEEKED + PREFIX_LEN).then_some(length)
    }

    /// All of it, if it has come.
    pub(crate) fn whole(&mut self) -> Result<Option<Bytes>, Status> {
        if !self.ended {
            return Ok(None);
        }
        self.release()?;
        let bytes = std::mem::take(&mut self.bytes);
        Ok(Some(bytes.into_boxed_slice().into()))
    }

    /// What has come, to be passed on.
    pub(crate) fn part(self) -> FirstBytes {
        FirstBytes {
            bytes: self.bytes.into(),
            held: self.held,
        }
    }

    /// Reads the rest, up to this length of all; more is not asked for.
    pub(crate) async fn read_to(&mut self, length: usize) -> Result<(), Status> {
        self.bytes
            .reserve_exact(length.saturating_sub(self.bytes.len()));
        while self.bytes.len() <= length {
            self.release()?;
            if !self.more().await? {
                break;
            }
        }
        Ok(())
    }

    async fn more(&mut self) -> Result<bool, Status> {
        if self.ended {
            return Ok(false);
        }
        let Some(bytes) = self.from.data().await else {
            self.ended = true;
            return Ok(false);
        };
        let bytes = bytes.map_err(|error| broken(&error))?;
        self.held += bytes.len();
        self.bytes.extend_from_slice(&bytes);
        self.ended = self.from.is_end_stream();
        Ok(true)
    }

    fn release(&mut self) -> Result<(), Status> {
        let held = std::mem::take(&mut self.held);
        let released = self.from.flow_control().release_capacity(held);
        released.map_err(|error| broken(&error))
    }
}

/// Who broke it off does not wait for an answer.
fn broken(error: &Error) -> Status {
    Status::new(RESOURCE_EXHAUSTED, error.to_string())
}
