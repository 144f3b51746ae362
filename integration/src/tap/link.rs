// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What the calls of a connection need of it.

use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Ping, PingPong};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::{Mutex, Notify};

use super::record::Shared;
use super::rule::Side;

/// What the calls of one connection need.
pub(super) struct Link {
    pub(super) shared: Arc<Shared>,
    pub(super) backend: SendRequest<Bytes>,
    pub(super) pings: Mutex<PingPong>,
    pub(super) cut: Notify,
    pub(super) client_pid: Option<i32>,
    pub(super) backend_pid: Option<i32>,
}

impl Link {
    /// Ends both connections without a word.
    pub(super) fn cut(&self) {
        self.cut.notify_one();
    }

    /// Returns when containerd has taken in everything that was sent to it before.
    pub(super) async fn sync(&self) -> Result<(), h2::Error> {
        let mut pings = self.pings.lock().await;
        // h2 may send a ping ahead of what is queued; that is out when the ping is answered, and
        // containerd reads it before a second ping. It calls more than two, with nothing of its own
        // sent in between, a flood.
        pings.ping(Ping::opaque()).await?;
        pings.ping(Ping::opaque()).await?;
        Ok(())
    }

    /// SIGKILL; the connection then ends with the process.
    pub(super) fn kill(&self, side: Side) {
        let pid = match side {
            Side::Client => self.client_pid,
            Side::Backend => self.backend_pid,
        };
        let own = i32::try_from(std::process::id()).ok();
        let result = match pid.filter(|_| pid != own).and_then(Pid::from_raw) {
            Some(pid) => kill_process(pid, Signal::KILL).map_err(|error| error.to_string()),
            None => Err(format!("it is process {pid:?}, this one is {own:?}")),
        };
        if let Err(why) = result {
            self.shared
                .problem(format!("the {side:?} can't be killed: {why}"));
            self.cut();
        }
    }
}
