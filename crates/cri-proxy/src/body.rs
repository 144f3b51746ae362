// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Data on its way from one stream to another, and messages that are looked into on it.

use std::future::poll_fn;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::{Error, Reason, RecvStream, SendStream};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::grpc::{DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, Status, code_in, length};
use crate::pass::MAX_LOOKED;

/// How long a message that is looked into may take to come: clients send it at once.
const ARRIVAL: Duration = Duration::from_secs(5);

/// Which end of the way broke.
pub(crate) enum Broken {
    From(Error),
    To(Error),
}

/// Sends `first` on, then all that comes, no faster than the receiver takes it, and ends as `from`
/// does. Answers with gRPC's code, if it ends with that.
pub(crate) async fn pump(
    first: Bytes,
    from: &mut RecvStream,
    to: &mut SendStream<Bytes>,
) -> Result<Option<u16>, Broken> {
    let end = from.is_end_stream();
    if !first.is_empty() || end {
        send(first, to, end).await.map_err(Broken::To)?;
    }
    if end {
        return Ok(None);
    }
    loop {
        let bytes = tokio::select! {
            biased;
            bytes = from.data() => bytes,
            reason = poll_fn(|cx| to.poll_reset(cx)) => {
                return Err(Broken::To(reason.map_or_else(|error| error, Error::from)));
            }
        };
        let Some(bytes) = bytes else { break };
        let bytes = bytes.map_err(Broken::From)?;
        let length = bytes.len();
        let end = from.is_end_stream();
        send(bytes, to, end).await.map_err(Broken::To)?;
        let released = from.flow_control().release_capacity(length);
        released.map_err(Broken::From)?;
        if end {
            return Ok(None);
        }
    }
    let trailers = from.trailers().await.map_err(Broken::From)?;
    let code = trailers.as_ref().and_then(code_in);
    match trailers {
        Some(trailers) => to.send_trailers(trailers),
        None => to.send_data(Bytes::new(), true),
    }
    .map_err(Broken::To)?;
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

/// The beginning of a request that is looked into: all of it, or what cannot be one message that
/// containerd takes.
pub(crate) struct Head<'a> {
    pub(crate) bytes: Bytes,
    /// Its share of what all of them may take.
    _room: Option<SemaphorePermit<'a>>,
}

impl<'a> Head<'a> {
    pub(crate) async fn read(from: &mut RecvStream, room: &'a Semaphore) -> Result<Self, Status> {
        let late = |_| {
            let text = format!("the request's message did not come within {ARRIVAL:?}");
            Status::new(DEADLINE_EXCEEDED, text)
        };
        let read = tokio::time::timeout(ARRIVAL, Self::read_all(from, room));
        read.await.map_err(late)?
    }

    async fn read_all(from: &mut RecvStream, room: &'a Semaphore) -> Result<Self, Status> {
        let mut taken: Option<SemaphorePermit<'a>> = None;
        let mut all = BytesMut::new();
        while let Some(bytes) = from.data().await {
            // Who broke it off does not wait for an answer.
            let broken = |error: Error| Status::new(RESOURCE_EXHAUSTED, error.to_string());
            let bytes = bytes.map_err(broken)?;
            let released = from.flow_control().release_capacity(bytes.len());
            released.map_err(broken)?;
            let count = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let more = room.try_acquire_many(count).map_err(|_| {
                let text = "too much of other requests is waiting for its rest";
                Status::new(RESOURCE_EXHAUSTED, text)
            })?;
            match &mut taken {
                Some(taken) => taken.merge(more),
                None => taken = Some(more),
            }
            if all.is_empty() && from.is_end_stream() {
                return Ok(Self {
                    bytes,
                    _room: taken,
                });
            }
            all.extend_from_slice(&bytes);
            if length(&all).is_some_and(|length| length > MAX_LOOKED) || all.len() > MAX_HEAD {
                break;
            }
        }
        Ok(Self {
            bytes: all.freeze(),
            _room: taken,
        })
    }
}

/// A message with its prefix.
const MAX_HEAD: usize = MAX_LOOKED + 5;
