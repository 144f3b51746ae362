// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The stream between a socket and an HTTP/2 codec.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::frames::{Frames, Step};

/// The size of a read while an incomplete header block is buffered.
const READ_SIZE: usize = 16 << 10;

/// A connection whose invalid `:authority` headers are replaced as the server reads them.
#[derive(Debug)]
pub struct AnyAuthority<S> {
    stream: S,
    frames: Frames,
    /// The bytes of an incomplete header block.
    incomplete: BytesMut,
    /// The bytes that the server reads next.
    ready: BytesMut,
}

impl<S> AnyAuthority<S> {
    /// Wraps a connection of which no byte has been read.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            frames: Frames::default(),
            incomplete: BytesMut::new(),
            ready: BytesMut::new(),
        }
    }

    /// Returns the wrapped connection.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Moves complete frames from `incomplete` to `ready`.
    fn process_incomplete(&mut self) {
        while !self.incomplete.is_empty() {
            match self.frames.step(&self.incomplete) {
                Step::Pass(count) => self
                    .ready
                    .extend_from_slice(&self.incomplete.split_to(count)),
                Step::Replace(count, replacement) => {
                    self.incomplete.advance(count);
                    self.ready.extend_from_slice(&replacement);
                }
                Step::Incomplete => return,
            }
        }
        // Frees the buffer: a large block must not occupy memory for the life of a connection.
        self.incomplete = BytesMut::new();
    }

    /// Processes bytes that were read while nothing was incomplete. Returns how many of them the
    /// server gets as they are; the rest is buffered.
    fn process_new(&mut self, bytes: &[u8]) -> usize {
        let mut passed = 0;
        while passed < bytes.len() {
            match self.frames.step(&bytes[passed..]) {
                Step::Pass(count) => passed += count,
                Step::Replace(count, replacement) => {
                    self.ready.extend_from_slice(&replacement);
                    self.incomplete.extend_from_slice(&bytes[passed + count..]);
                    self.process_incomplete();
                    break;
                }
                Step::Incomplete => {
                    self.incomplete.extend_from_slice(&bytes[passed..]);
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
            if !this.ready.is_empty() {
                let count = buf.remaining().min(this.ready.len());
                buf.put_slice(&this.ready.split_to(count));
                if this.ready.is_empty() {
                    this.ready = BytesMut::new();
                }
                return Poll::Ready(Ok(()));
            }
            if this.incomplete.is_empty() {
                let before = buf.filled().len();
                ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
                let end = buf.filled().len();
                if end == before {
                    return Poll::Ready(Ok(()));
                }
                let passed = this.process_new(&buf.filled()[before..]);
                buf.set_filled(before + passed);
                if passed > 0 {
                    return Poll::Ready(Ok(()));
                }
            } else {
                let mut buffer = [0; READ_SIZE];
                let mut read = ReadBuf::new(&mut buffer);
                ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
                if read.filled().is_empty() {
                    return Poll::Ready(Ok(()));
                }
                this.incomplete.extend_from_slice(read.filled());
                this.process_incomplete();
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
