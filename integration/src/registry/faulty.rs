// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A host that forwards to a registry, and injects faults into its answers to requests for blobs.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::listening::Listening;

/// The first byte of a client that expects TLS.
const TLS: &[u8] = &[0x16];

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// No fault.
    None,
    /// An answer with this status and these header lines, instead of the registry's.
    Status(u16, &'static str),
    /// The connection ends after this many bytes of the body.
    Truncate(usize),
    /// Nothing comes after this many bytes of the body.
    Stall(usize),
    /// The first byte of the body is another one.
    Corrupt,
    /// The body comes in pieces of 4 KiB, at this interval.
    Slow(Duration),
    /// The blob is at this host.
    Redirect(SocketAddr),
}

/// A running host, ended with the value.
#[derive(Debug)]
pub struct FaultyHost {
    listening: Listening,
    heads: Arc<Mutex<Vec<String>>>,
}

impl FaultyHost {
    /// Starts a host before the registry at `upstream`. `choose` returns the fault of a request for a
    /// blob by its number.
    pub fn start(
        upstream: SocketAddr,
        choose: impl Fn(usize) -> Fault + Send + Sync + 'static,
    ) -> Result<Self> {
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let seen = Arc::clone(&heads);
        let serve = move |client| serve(client, upstream, &seen, &choose);
        Ok(Self {
            listening: Listening::start(serve)?,
            heads,
        })
    }

    /// Returns the address.
    pub fn address(&self) -> SocketAddr {
        self.listening.address
    }

    /// Returns the host and port.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.address().port())
    }

    /// Returns the heads of the requests for blobs so far.
    pub fn requests(&self) -> Vec<String> {
        let heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        heads.clone()
    }
}

/// Answers one request.
fn serve(
    mut client: TcpStream,
    upstream: SocketAddr,
    heads: &Mutex<Vec<String>>,
    choose: &dyn Fn(usize) -> Fault,
) -> Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
        if head == TLS {
            client.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n")?;
            return Ok(());
        }
    }
    let head = String::from_utf8(head)?;
    let is_blob = head.starts_with("GET ") && head.contains("/blobs/");
    let fault = match is_blob {
        false => Fault::None,
        true => {
            let mut heads = heads.lock().unwrap_or_else(PoisonError::into_inner);
            heads.push(head.clone());
            choose(heads.len() - 1)
        }
    };
    match fault {
        Fault::Status(status, headers) => {
            let end = "content-length: 0\r\nconnection: close\r\n\r\n";
            write!(client, "HTTP/1.1 {status} Fault\r\n{headers}{end}")?;
            return Ok(());
        }
        Fault::Redirect(to) => {
            let path = head.split(' ').nth(1).context("no path")?;
            let end = "content-length: 0\r\nconnection: close\r\n\r\n";
            write!(
                client,
                "HTTP/1.1 307 Fault\r\nlocation: http://{to}{path}\r\n{end}"
            )?;
            return Ok(());
        }
        _ => {}
    }
    let mut registry = TcpStream::connect(upstream)?;
    let lines = head.trim_end().split("\r\n");
    let lines = lines.filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
    let lines: Vec<_> = lines.collect();
    write!(
        registry,
        "{}\r\nconnection: close\r\n\r\n",
        lines.join("\r\n")
    )?;
    let mut answer = Vec::new();
    registry.read_to_end(&mut answer)?;
    let body = answer.windows(4).position(|end| end == b"\r\n\r\n");
    let body = body.context("no answer")? + 4;
    match fault {
        Fault::Truncate(bytes) => client.write_all(&answer[..answer.len().min(body + bytes)])?,
        Fault::Stall(bytes) => {
            client.write_all(&answer[..answer.len().min(body + bytes)])?;
            // Until the client leaves.
            let _ = client.read(&mut byte)?;
        }
        Fault::Slow(pause) => {
            for piece in answer.chunks(4096) {
                client.write_all(piece)?;
                thread::sleep(pause);
            }
        }
        Fault::Corrupt => {
            if let Some(first) = answer.get_mut(body) {
                *first ^= 1;
            }
            client.write_all(&answer)?;
        }
        _ => client.write_all(&answer)?,
    }
    Ok(())
}
