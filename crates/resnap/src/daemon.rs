// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap serve`.

mod api;
mod http;
mod listen;
mod metrics;
mod prewarm;
mod systemd;

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Result;
use resnap_core::{Kind, SnapshotterInfo, error_chain};
use resnap_cri_proxy::{Proxy, ProxyObserver, ProxySettings};
use resnap_unpacker::{Engine, UnpackError};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::commands::{Outcome, observed_engine};
use crate::config::Config;
use listen::Socket;
use metrics::Metrics;

pub(crate) use systemd::Sockets;

/// How long calls may take to end after the signal to stop.
const GRACE: Duration = Duration::from_secs(30);

pub(crate) async fn run(config: &Config, mut sockets: Sockets) -> Result<Outcome> {
    let serving = Arc::new(OnceLock::new());
    systemd::keep_telling(Arc::clone(&serving));
    let path = &config.cri_socket.value;
    let (listener, mut cri) = Socket::listen(sockets.take("cri"), path, 0o660).await?;
    let path = &config.api_socket.value;
    let (api_listener, mut api) = Socket::listen(sockets.take("api"), path, api::MODE).await?;
    let mut stopped = signals()?;
    let metrics = metrics(config).await?;
    let engine = tokio::select! {
        engine = connected(config, metrics.clone()) => engine?,
        _ = stopped.wait_for(|stopped| *stopped) => return Ok(Outcome::Done),
    };
    let proxy = proxy(config, engine.clone(), metrics.map(|metrics| metrics as _));
    let proxy = serving.get_or_init(|| proxy);
    for socket in [&mut cri, &mut api] {
        socket.publish()?;
    }
    tracing::info!(socket = ?config.cri_socket.value, backend = ?config.backend(), "serving");
    systemd::ready();
    let serve_api = api::serve(config, api_listener, engine.clone(), stopped.clone());
    let serve_cri = proxy.serve(listener, stopped.clone(), GRACE);
    let hand_over = async {
        let _ = stopped.wait_for(|stopped| *stopped).await;
        cri.hand_over();
        api.hand_over();
        std::future::pending::<Infallible>().await
    };
    let (api_served, cri_served) = tokio::select! {
        ended = async { tokio::join!(serve_api, serve_cri) } => ended,
        never = prewarm::run(config, &engine) => match never {},
        never = hand_over => match never {},
    };
    api_served?;
    cri_served?;
    Ok(Outcome::Done)
}

/// The proxy in front of this engine's containerd.
pub(crate) fn proxy(
    config: &Config,
    engine: Engine,
    observer: Option<Arc<dyn ProxyObserver>>,
) -> Proxy {
    Proxy::new(
        config.backend(),
        Arc::new(engine),
        settings(config),
        observer,
    )
}

/// What is counted, where anybody may ask for it.
async fn metrics(config: &Config) -> Result<Option<Arc<Metrics>>> {
    let Some(address) = config.metrics_address.value else {
        return Ok(None);
    };
    let metrics = Arc::new(Metrics::new());
    http::serve(address, Arc::clone(&metrics), config.address.value.clone()).await?;
    Ok(Some(metrics))
}

/// What the configuration says to a proxy.
fn settings(config: &Config) -> ProxySettings {
    let mut settings = ProxySettings::default();
    settings.profiles = config.profiles.clone();
    settings.always = config.always.value;
    settings.unlabelled = config.unlabelled.value;
    settings.default_snapshotter = config.default_snapshotter.clone();
    settings.sandbox_image = config.sandbox_image.clone();
    settings.handlers = config.handlers.clone();
    settings
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
        systemd::stopping();
        // Who serves listens for as long as they serve.
        let _ = stop.send(true);
    });
    Ok(stopped)
}

/// Removes what a daemon that was killed left, while this one serves already.
fn clear(snapshotters: Vec<SnapshotterInfo>) {
    let roots = snapshotters.into_iter().filter_map(|found| found.root);
    for root in roots {
        tokio::task::spawn_blocking(move || {
            if let Err(error) = resnap_applier::clear(Path::new(&root)) {
                tracing::debug!(root, %error, "what was built ahead is not removed");
            }
        });
    }
}

/// The engine, once containerd is there: at boot it may come later.
async fn connected(config: &Config, metrics: Option<Arc<Metrics>>) -> Result<Engine> {
    let mut seconds = 0_u64;
    loop {
        let observer = metrics.clone().map(|metrics| metrics as _);
        let answered = async {
            let engine = observed_engine(config, observer).await?;
            // Its socket is there before it answers, and while it hangs.
            clear(engine.snapshotters().await?);
            Ok(engine)
        };
        let error: anyhow::Error = match answered.await {
            Err(error) => error,
            engine => {
                if seconds > 0 {
                    tracing::warn!("containerd answers, after {seconds} s");
                }
                return engine;
            }
        };
        let kind = error.downcast_ref().map(UnpackError::kind);
        if !matches!(kind, Some(Kind::Unavailable | Kind::DeadlineExceeded)) {
            return Err(error);
        }
        let reason = error_chain(error.as_ref());
        systemd::waiting(&reason);
        if seconds.is_multiple_of(60) {
            tracing::warn!("{reason}; trying again each second");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        seconds += 1;
    }
}
