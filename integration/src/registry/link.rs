// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A link to a registry, whose answers share a limited rate.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::listening::Listening;

/// Bytes that are passed at once: half a millisecond of a gigabit per second.
const PIECE: usize = 64 * 1024;

/// The time for which an idle link saves up its rate, as the buffers of a switch do.
const BURST: Duration = Duration::from_millis(2);

/// A link with a limited rate, ended with the value.
#[derive(Debug)]
pub struct Link(Listening);

/// The rate that all connections share.
struct Rate {
    bytes_per_second: f64,
    /// The time at which all bytes so far are through.
    free: Mutex<Instant>,
}

impl Rate {
    /// Waits until this many bytes are through.
    fn pass(&self, bytes: usize) {
        let now = Instant::now();
        let until = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let from = now.checked_sub(BURST).map_or(*free, |past| past.max(*free));
            *free = from + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
            *free
        };
        thread::sleep(until.saturating_duration_since(now));
    }
}

impl Link {
    /// Starts a link to the registry at `upstream`.
    pub fn start(upstream: SocketAddr, bytes_per_second: f64) -> Result<Self> {
        let rate = Rate {
            bytes_per_second,
            free: Mutex::new(Instant::now()),
        };
        Ok(Self(Listening::start(move |client| {
            forward(client, upstream, &rate)
        })?))
    }

    /// Returns the address.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// The reference of an image of the registry; containerd takes registries by this name without TLS.
    pub fn reference(&self, name: &str) -> String {
        format!("localhost:{}/{name}", self.address().port())
    }
}

/// Passes a connection on: requests as they come, and answers at the rate.
fn forward(mut client: TcpStream, upstream: SocketAddr, rate: &Rate) -> Result<()> {
    let mut server = TcpStream::connect(upstream)?;
    let (mut requests, mut to) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        // Either side may end at any time.
        let _ = std::io::copy(&mut requests, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let mut buffer = vec![0; PIECE];
    loop {
        let count = server.read(&mut buffer)?;
        let piece = buffer.get(..count).unwrap_or_default();
        if piece.is_empty() {
            client.shutdown(Shutdown::Both)?;
            return Ok(());
        }
        rate.pass(count);
        client.write_all(piece)?;
    }
}
