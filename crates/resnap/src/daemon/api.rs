// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The API, as the daemon serves it.

use anyhow::{Result, anyhow};
use resnap_api::Info;
use resnap_unpacker::Engine;
use tokio::net::UnixListener;
use tokio::sync::watch;

use super::GRACE;
use crate::config::Config;

/// Only root may ask for work, or end it.
pub(super) const MODE: u32 = 0o600;

/// Serves the API until `stop` says so, and then for as long as calls take, within the grace period.
pub(super) async fn serve(
    config: &Config,
    listener: UnixListener,
    engine: Engine,
    stop: watch::Receiver<bool>,
) -> Result<()> {
    let info = Info {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        containerd_address: config.backend().to_string_lossy().into_owned(),
        containerd_namespace: config.namespace.value.clone(),
    };
    let served = resnap_api::serve(listener, engine, info, stop, GRACE).await;
    served.map_err(|error| anyhow!("serve {:?}: {error}", config.api_socket.value))
}
