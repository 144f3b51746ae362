// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The daemon's API socket.

use std::time::Duration;

use anyhow::{Result, anyhow};
use resnap_api::Info;
use resnap_unpacker::Engine;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// The mode of the socket: only root may start or cancel jobs.
pub(super) const MODE: u32 = 0o600;

/// Serves the API until `stop` is cancelled, and then until the last call has ended or `grace` has passed.
pub(super) async fn serve(
    config: &Config,
    listener: UnixListener,
    engine: Engine,
    stop: CancellationToken,
    grace: Duration,
) -> Result<()> {
    let info = Info {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        containerd_address: config.backend().to_string_lossy().into_owned(),
        containerd_namespace: config.namespace.value.clone(),
    };
    let served = resnap_api::serve(listener, engine, info, stop, grace).await;
    served.map_err(|error| anyhow!("serve {:?}: {error}", config.api_socket.value))
}
