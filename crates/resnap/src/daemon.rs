// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap serve`.

mod api;
mod listen;
mod prewarm;
mod service;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use resnap_core::{Kind, in_full};
use resnap_cri_proxy::{Proxy, Settings};
use resnap_unpacker::{Engine, UnpackError};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::commands::{Outcome, working_engine};
use crate::config::Config;
use listen::Socket;
use service::Service;

/// How long calls may take to end after the signal to stop.
const GRACE: Duration = Duration::from_secs(30);

pub(crate) async fn run(config: &Config) -> Result<Outcome> {
    let (listener, socket) = Socket::listen(&config.cri_socket.value, 0o660).await?;
    let api = Socket::listen(&config.api_socket.value, api::MODE).await;
    // The first error is what counts.
    let (api_listener, api_socket) = api.inspect_err(|_| drop(socket.remove()))?;
    let engine = connected(config).await?;
    let stopped = signals()?;
    let proxy = proxy(config, engine.clone());
    tracing::info!(socket = ?config.cri_socket.value, backend = ?config.backend(), "serving");
    let api = api::serve(config, api_listener, engine.clone(), stopped.clone());
    let serve = async { tokio::join!(api, proxy.serve(listener, stopped, GRACE)) };
    let (api, served) = tokio::select! {
        ended = serve => ended,
        never = prewarm::run(config, &engine) => match never {},
    };
    socket.remove()?;
    api_socket.remove()?;
    api?;
    served?;
    Ok(Outcome::Done)
}

/// The proxy in front of this engine's containerd.
pub(crate) fn proxy(config: &Config, engine: Engine) -> Proxy {
    let service = Arc::new(Service(engine));
    Proxy::new(config.backend(), service, settings(config), None)
}

/// What the configuration says to a proxy.
fn settings(config: &Config) -> Settings {
    Settings {
        profiles: config.profiles.clone(),
        always: config.always.value,
        unlabelled: config.unlabelled.value,
        default_snapshotter: config.default_snapshotter.clone(),
        sandbox_image: config.sandbox_image.clone(),
        handlers: config.handlers.clone(),
    }
}

/// Says when to stop.
fn signals() -> Result<watch::Receiver<bool>> {
    let (stop, stopped) = watch::channel(false);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        // Who serves listens for as long as they serve.
        let _ = stop.send(true);
    });
    Ok(stopped)
}

/// The engine, once containerd is there: at boot it may come later.
async fn connected(config: &Config) -> Result<Engine> {
    loop {
        let error = match working_engine(config).await {
            Err(error) => error,
            engine => return engine,
        };
        let unpack_error = error.downcast_ref::<UnpackError>();
        if unpack_error.is_none_or(|error| error.kind() != Kind::Unavailable) {
            return Err(error);
        }
        tracing::warn!("{}; trying again", in_full(error.as_ref()));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
