// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The bytes of a connection.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::frames::{Frames, Step};

/// How much is read at once where it does not pass at once.
const PIECE: usize = 16 << 10;

/// A connection of a client, of which the server reads `:authority`s that it takes.
#[derive(Debug)]
pub struct AnyAuthority<S> {
    stream: S,
    frames: Frames,
    /// What has come and is not decided on.
    undecided: BytesMut,
    /// What is decided on and not read.
    decided: BytesMut,
}

impl<S> AnyAuthority<S> {
    /// The connection, from its first byte.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            frames: Frames::default(),
            undecided: BytesMut::new(),
            decided: BytesMut::new(),
        }
    }

    /// The connection as it is.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Decides on what has come, as far as that is possible.
    fn decide(&mut self) {
        while !self.undecided.is_empty() {
            match self.frames.step(&self.undecided) {
                Step::Pass(count) => self
                    .decided
                    .extend_from_slice(&self.undecided.split_to(count)),
                Step::Replace(count, instead) => {
                    self.undecided.advance(count);
                    self.decided.extend_from_slice(&instead);
                }
                Step::More => return,
            }
        }
        // No connection keeps what a large block took.
        self.undecided = BytesMut::new();
    }

    /// Decides on what has just come, where nothing is undecided; gives how much of it goes on at
    /// once.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        let mut passed = 0;
        while passed < bytes.len() {
            match self.frames.step(&bytes[passed..]) {
                Step::Pass(count) => passed += count,
                Step::Replace(count, instead) => {
                    self.decided.extend_from_slice(&instead);
                    self.undecided.extend_from_slice(&bytes[passed + count..]);
                    self.decide();
                    break;
                }
                Step::More => {
                    self.undecided.extend_from_slice(&bytes[passed..]);
                    break;
                }
            }
        }
        passed
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AnyAuthority<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if !this.decided.is_empty() {
                let count = buf.remaining().min(this.decided.len());
                buf.put_slice(&this.decided.split_to(count));
                if this.decided.is_empty() {
                    this.decided = BytesMut::new();
                }
                return Poll::Ready(Ok(()));
            }
            if this.undecided.is_empty() {
                let before = buf.filled().len();
                ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
                let end = buf.filled().len();
                if end == before {
                    return Poll::Ready(Ok(()));
                }
                let passed = this.pass(&buf.filled()[before..]);
                buf.set_filled(before + passed);
                if passed > 0 {
                    return Poll::Ready(Ok(()));
                }
            } else {
                let mut piece = [0; PIECE];
                let mut more = ReadBuf::new(&mut piece);
                ready!(Pin::new(&mut this.stream).poll_read(cx, &mut more))?;
                if more.filled().is_empty() {
                    return Poll::Ready(Ok(()));
                }
                this.undecided.extend_from_slice(more.filled());
                this.decide();
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AnyAuthority<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
