// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! One direction of one call: bytes and trailers from one HTTP/2 stream to another.

use std::future::poll_fn;

use bytes::{Bytes, BytesMut};
use h2::{Error, Reason, RecvStream, SendStream};
use tonic::codegen::http::HeaderMap;

use super::call::Call;
use super::exchange::{End, Way};

/// The length of a gRPC message's prefix: the compressed flag and the length of the message.
const PREFIX: usize = 5;

/// The part of a message that the tap waits for and keeps; it can be a frame more.
const KEPT: usize = 64 << 10;

/// Takes the first message off `from`, or the beginning of a long one; more can come with it.
///
/// A request without any message is empty here. One whose first message comes only after containerd
/// has answered would never go on; gRPC clients send theirs at once.
pub(super) async fn head(from: &mut RecvStream) -> Result<Bytes, Error> {
    let mut head = BytesMut::new();
    while head.len() < KEPT && !has_message(&head) {
        let Some(bytes) = from.data().await else {
            break;
        };
        let bytes = bytes?;
        from.flow_control().release_capacity(bytes.len())?;
        head.extend_from_slice(&bytes);
    }
    Ok(head.freeze())
}

/// The first message in `head`.
pub(super) fn first_message(head: &Bytes) -> Bytes {
    let end = message_end(head).unwrap_or(0).min(head.len());
    head.slice(PREFIX.min(end)..end)
}

fn has_message(head: &[u8]) -> bool {
    message_end(head).is_some_and(|end| head.len() >= end)
}

fn message_end(head: &[u8]) -> Option<usize> {
    let (_, length) = head.get(..PREFIX)?.split_first()?;
    let length = u32::from_be_bytes(length.try_into().ok()?);
    usize::try_from(length).ok()?.checked_add(PREFIX)
}

/// Forwards `head`, then all of `from`, no faster than the receiver takes it, and ends `to` as
/// `from` ended; answers with its trailers.
///
/// # Errors
/// The reason why a stream ended early; `to` is left as it is then.
pub(super) async fn pump(
    head: Bytes,
    mut from: RecvStream,
    to: &mut SendStream<Bytes>,
    call: &Call,
    way: Way,
) -> Result<HeaderMap, Error> {
    // With the data, as it came: who waits for the end of a request must not be told later.
    let mut end = from.is_end_stream();
    send(head, to, end).await?;
    while !end {
        let bytes = tokio::select! {
            bytes = from.data() => bytes,
            reason = poll_fn(|cx| to.poll_reset(cx)) => {
                let reason = reason?;
                call.note(way.back(), |half| half.end = Some(End::Reset(reason)));
                return Err(reason.into());
            }
        };
        let Some(bytes) = bytes else { break };
        let bytes = bytes.inspect_err(|error| {
            let reason = error.reason().filter(|_| error.is_reset());
            call.note(way, |half| half.end = reason.map(End::Reset));
        })?;
        let length = bytes.len();
        end = from.is_end_stream();
        call.note(way, |half| {
            half.body.extend_from_slice(&bytes);
            half.end = end.then_some(End::Stream);
        });
        send(bytes, to, end).await?;
        from.flow_control().release_capacity(length)?;
    }
    if end {
        return Ok(HeaderMap::new());
    }
    let trailers = from.trailers().await?.unwrap_or_default();
    call.note(way, |half| {
        half.trailers = trailers.clone();
        half.end = Some(End::Stream);
    });
    if trailers.is_empty() {
        to.send_data(Bytes::new(), true)?;
    } else {
        to.send_trailers(trailers.clone())?;
    }
    Ok(trailers)
}

pub(super) async fn send(
    mut bytes: Bytes,
    to: &mut SendStream<Bytes>,
    end: bool,
) -> Result<(), Error> {
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
        to.send_data(bytes, true)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_message_is_cut_out() {
        let two = Bytes::from_static(&[0, 0, 0, 0, 2, 7, 8, 0, 0, 0, 0, 1, 9]);
        assert_eq!(&first_message(&two)[..], &[7, 8]);
        assert!(has_message(&two[..7]));
        assert!(!has_message(&two[..6]) && !has_message(&two[..4]) && !has_message(&[]));
        assert_eq!(&first_message(&two.slice(..6))[..], &[7]);
        assert_eq!(first_message(&two.slice(..4)).len(), 0);
        assert_eq!(first_message(&Bytes::new()).len(), 0);
    }
}
