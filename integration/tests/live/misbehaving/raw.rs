// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! HTTP/2 by the byte, for those who do not keep to it.

use std::io::{ErrorKind, Read as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Bytes that violate HTTP/2.
pub(super) const GARBAGE: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n",
    &[0xff; 64],
    // After a preface: settings of an odd length, data on no stream, a header block that is none,
    // a window that is too large, a frame that is.
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x05\x04\x00\x00\x00\x00\x00abcde",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x01\x00\x01\x00\x00\x00\x00a",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x02\x01\x05\x00\x00\x00\x01\xff\xff",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x04\x08\x00\x00\x00\x00\x00\x7f\xff\xff\xff",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\xff\xff\xff\x00\x00\x00\x00\x00\x01",
];

/// The limit of each operation.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

pub(super) fn connect(socket: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(stream)
}

/// Checks that the other side closes the connection.
pub(super) fn ends(mut stream: UnixStream) -> Result<()> {
    let mut received = Vec::new();
    match stream.read_to_end(&mut received) {
        Ok(_) => Ok(()),
        // The other side has unread data.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The frames of a client, to be written at once.
pub(super) struct Frames(Vec<u8>);

impl Frames {
    pub(super) fn begin() -> Self {
        Self(PREFACE.to_vec()).frame(SETTINGS, 0, 0, &[])
    }

    /// Returns the frames of a client with unlimited windows.
    pub(super) fn begin_eagerly() -> Self {
        let window = 0x7fff_ffff_u32.to_be_bytes();
        let settings = [&[0, 4], &window[..]].concat();
        let more = (0x7fff_ffff_u32 - 0xffff).to_be_bytes();
        Self(PREFACE.to_vec())
            .frame(SETTINGS, 0, 0, &settings)
            .frame(WINDOW_UPDATE, 0, 0, &more)
    }

    /// Returns the headers of a call.
    pub(super) fn headers(self, stream: u32, path: &str, namespace: &str) -> Self {
        let mut block = block(path);
        field(&mut block, "containerd-namespace", namespace);
        self.frame(HEADERS, END_HEADERS, stream, &block)
    }

    /// Some of the headers of a call.
    pub(super) fn endless_headers(self, stream: u32, path: &str) -> Self {
        self.frame(HEADERS, 0, stream, &block(path))
    }

    /// Data in frames that everybody takes.
    pub(super) fn data(mut self, stream: u32, data: &[u8], end: bool) -> Self {
        let mut pieces = data.chunks(16 << 10).peekable();
        while let Some(piece) = pieces.next() {
            let last = end && pieces.peek().is_none();
            self = self.frame(DATA, if last { END_STREAM } else { 0 }, stream, piece);
        }
        self
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn frame(mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Self {
        let [_, length @ ..] = u32::try_from(payload.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes();
        self.0.extend(length);
        self.0.extend([kind, flags]);
        self.0.extend(stream.to_be_bytes());
        self.0.extend(payload);
        self
    }
}

fn block(path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        field(&mut block, name, value);
    }
    block
}

/// Literally; all are short.
fn field(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    for text in [name, value] {
        block.push(u8::try_from(text.len()).unwrap_or(u8::MAX) & 0x7f);
        block.extend(text.bytes());
    }
}
