// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The socket at which containerd asks for layers: resnap as its diff plugin. It is served only if it is
//! configured, or handed over by the service manager.

use std::convert::Infallible;
use std::os::unix::net::UnixListener as StdListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use async_trait::async_trait;
use resnap_containerd::{AskedLayer, DiffServer, LayerWriter};
use resnap_core::{Applied, Error};
use resnap_unpacker::{Engine, LayerRequest};
use tokio::net::UnixListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::listen::Socket;
use crate::config::Config;
use crate::connect;

/// The mode of the socket: whoever may use it has files written.
const MODE: u32 = 0o600;

/// The time limit for the look whether layers can be written: kubelet waits meanwhile.
const OPEN_TIME: Duration = Duration::from_secs(10);

/// The socket, before it is served.
pub(super) struct DiffSocket {
    listener: UnixListener,
    socket: Socket,
    is_handed_over: bool,
}

impl DiffSocket {
    /// Listens on the socket that was handed over, or at the configured path. Returns `None` if there is neither.
    pub(super) async fn listen(
        config: &Config,
        handed_over: Option<StdListener>,
    ) -> Result<Option<Self>> {
        let is_handed_over = handed_over.is_some();
        let path = match (&config.diff_socket.value, is_handed_over) {
            (Some(path), _) => path.clone(),
            (None, true) => PathBuf::new(),
            (None, false) => return Ok(None),
        };
        let (listener, socket) = Socket::listen(handed_over, &path, MODE).await?;
        Ok(Some(Self {
            listener,
            socket,
            is_handed_over,
        }))
    }

    /// Returns the socket if it is to be served, and what writes layers. Without the right to write layers, a
    /// socket that is this process's own is removed. One of the service manager stays, where containerd would
    /// wait for ever: its layers are handed back.
    pub(super) async fn open(
        mut self,
        config: &Config,
        engine: &Engine,
    ) -> Result<Option<DiffService>> {
        let can_write = match timeout(OPEN_TIME, can_write(config, engine)).await {
            Ok(Ok(can_write)) => can_write,
            Ok(Err(error)) => {
                tracing::error!(%error, "it is not known whether layers can be written");
                false
            }
            Err(_) => {
                tracing::error!(
                    "it was not found out within {OPEN_TIME:?} whether layers can be written"
                );
                false
            }
        };
        if !can_write && !self.is_handed_over {
            tracing::error!(
                "the socket for containerd's diff plugin is not opened, as no layer could be written; \
                 with it in containerd's configuration, no image can be pulled"
            );
            return Ok(None);
        }
        if !can_write {
            tracing::error!("all layers that containerd asks for are left to containerd");
        }
        let writer = Writer(can_write.then(|| engine.clone()));
        let server = connect::diff_server(config, Arc::new(writer)).await?;
        self.socket.publish()?;
        Ok(Some(DiffService {
            listener: self.listener,
            socket: self.socket,
            server,
        }))
    }
}

/// The socket while it is served.
pub(super) struct DiffService {
    listener: UnixListener,
    socket: Socket,
    server: DiffServer,
}

impl DiffService {
    /// Serves the socket until `stop` is cancelled, and then until the last call has ended or `grace` has passed.
    pub(super) async fn serve(self, stop: CancellationToken, grace: Duration) -> Result<()> {
        let Self {
            listener,
            mut socket,
            server,
        } = self;
        let serving = server.serve(listener, stop.clone(), grace);
        let hand_over = async {
            stop.cancelled().await;
            socket.hand_over();
            std::future::pending::<Infallible>().await
        };
        let served = tokio::select! {
            served = serving => served,
            never = hand_over => match never {},
        };
        served.map_err(|error| {
            // The other sockets are served on.
            tracing::error!(
                error,
                "the socket for containerd's diff plugin is not served any more"
            );
            anyhow!("serve containerd's diff plugin: {error}")
        })
    }
}

/// Returns whether layers of a snapshotter can be written, and warns of those that cannot.
async fn can_write(config: &Config, engine: &Engine) -> Result<bool> {
    let settings = config.applier.clone();
    let written = engine
        .snapshotters()
        .await?
        .into_iter()
        .filter(move |found| settings.writes(&found.name) && found.failure.is_none());
    let roots: Vec<_> = written
        .filter_map(|found| Some((found.name, PathBuf::from(found.root?))))
        .collect();
    let probed = tokio::task::spawn_blocking(|| {
        let probe = |(name, root): (String, PathBuf)| {
            let probed = resnap_applier::probe(&name, &root);
            if let Err(error) = &probed {
                tracing::warn!(%error, ?root, "layers on {name} cannot be written");
            }
            probed.is_ok()
        };
        roots.into_iter().filter(|root| probe(root.clone())).count()
    });
    Ok(probed.await? > 0)
}

/// Writes layers with an engine, or leaves all to containerd.
struct Writer(Option<Engine>);

#[async_trait]
impl LayerWriter for Writer {
    async fn write(&self, asked: AskedLayer) -> Result<Option<Applied>, Error> {
        let Some(engine) = &self.0 else {
            return Ok(None);
        };
        let AskedLayer {
            namespace,
            layer,
            mounts,
            sync_fs,
            process,
        } = asked;
        let request = LayerRequest {
            namespace,
            layer,
            mounts,
            sync_fs,
            backend: process,
        };
        engine.write_layer(request).await
    }
}
