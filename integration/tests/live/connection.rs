// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Calls to a containerd without a process for each: a `ctr` takes 20 ms of a core, and tests ask thousands
//! of times.

use anyhow::Result;
use resnap_containerd::Client;
use resnap_core::Ports;
use resnap_integration::daemon::Containerd;
use tokio::runtime::{Builder, Runtime};

/// A connection to a containerd, with what drives its calls.
pub(crate) struct Connection {
    pub(crate) runtime: Runtime,
    pub(crate) ports: Ports,
}

impl Connection {
    pub(crate) fn new(containerd: &Containerd) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let address = containerd.socket().to_string_lossy();
        let client = runtime.block_on(Client::connect(&address))?;
        Ok(Self {
            ports: client.ports(),
            runtime,
        })
    }
}
