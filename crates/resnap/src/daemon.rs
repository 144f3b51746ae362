// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap serve`.

mod api;
mod diff;
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
use resnap_core::{Kind, PullCredentials, SnapshotterInfo, error_chain};
use resnap_cri_proxy::Proxy;
use resnap_unpacker::{Engine, UnpackError};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::connect;
use crate::exit_status::ExitStatus;
use diff::DiffSocket;
use listen::Socket;
use metrics::Metrics;

pub(crate) use systemd::Sockets;

/// The pause between two looks for credentials whose lifetime is over.
const EXPIRY_PAUSE: Duration = Duration::from_secs(60);

/// The time that calls have to end after the signal to stop.
const GRACE: Duration = Duration::from_secs(30);

/// The time that layers which containerd has asked for have after that.
const LAYER_GRACE: Duration = Duration::from_secs(10);

pub(crate) async fn run(config: &Config, mut sockets: Sockets) -> Result<ExitStatus> {
    let serving = Arc::new(OnceLock::new());
    systemd::keep_watchdog(Arc::clone(&serving));
    let path = &config.cri_socket.value;
    let (listener, mut cri) = Socket::listen(sockets.take("cri"), path, 0o660).await?;
    let path = &config.api_socket.value;
    let (api_listener, mut api) = Socket::listen(sockets.take("api"), path, api::MODE).await?;
    let diff = DiffSocket::listen(config, sockets.take("diff")).await?;
    let stopped = signals()?;
    let metrics = serve_metrics(config).await?;
    let credentials = PullCredentials::new();
    let engine = tokio::select! {
        engine = connected(config, metrics.clone(), &credentials) => engine?,
        () = stopped.cancelled() => return Ok(ExitStatus::Done),
    };
    let observer = metrics.map(|metrics| metrics as _);
    let shared = Some(credentials.clone());
    let proxy = connect::proxy(config, engine.clone(), observer, shared);
    let proxy = serving.get_or_init(|| proxy);
    // Before kubelet's socket is there: it may take a while.
    let diff = match diff {
        Some(diff) => diff.open(config, &engine).await?,
        None => None,
    };
    for socket in [&mut cri, &mut api] {
        socket.publish()?;
    }
    tracing::info!(socket = ?config.cri_socket.value, backend = ?config.backend(), "serving");
    systemd::ready();
    let serve_api = api::serve(config, api_listener, engine.clone(), stopped.clone(), GRACE);
    let serve_cri = proxy.serve(listener, stopped.clone(), GRACE);
    // The pulls that the CRI lets end ask for layers.
    let pulls_ended = CancellationToken::new();
    let serve_diff = async {
        match diff {
            Some(diff) => diff.serve(pulls_ended.clone(), LAYER_GRACE).await,
            None => Ok(()),
        }
    };
    let serve_pulls = async {
        let served = tokio::join!(serve_api, serve_cri);
        pulls_ended.cancel();
        served
    };
    let hand_over = async {
        stopped.cancelled().await;
        cri.hand_over();
        api.hand_over();
        std::future::pending::<Infallible>().await
    };
    let ((api_served, cri_served), diff_served) = tokio::select! {
        ended = async { tokio::join!(serve_pulls, serve_diff) } => ended,
        never = prewarm::run(config, &engine) => match never {},
        never = hand_over => match never {},
        never = expire(&credentials) => match never {},
        never = warn_of_sandboxes(proxy) => match never {},
    };
    api_served?;
    cri_served?;
    diff_served?;
    Ok(ExitStatus::Done)
}

/// Serves metrics at the configured address. Returns `None` without an address.
async fn serve_metrics(config: &Config) -> Result<Option<Arc<Metrics>>> {
    let Some(address) = config.metrics_address.value else {
        return Ok(None);
    };
    let metrics = Arc::new(Metrics::new(&config.applier));
    http::serve(address, Arc::clone(&metrics), config.address.value.clone()).await?;
    Ok(Some(metrics))
}

/// Returns a token that is cancelled on the first signal. SIGHUP, for a reload, is one: the service manager starts the
/// daemon again, with the mounts that it needs now.
fn signals() -> Result<CancellationToken> {
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let mut hangup = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = hangup.recv() => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        systemd::stopping();
        stop.cancel();
    });
    Ok(stopped)
}

/// Warns once of a sandbox image that pods cannot start with: before the first pod needs it.
async fn warn_of_sandboxes(proxy: &Proxy) -> Infallible {
    match proxy.unproven_sandbox_image().await {
        Ok(Some((image, snapshotters))) => tracing::warn!(
            image,
            snapshotters = snapshotters.join(", "),
            "the sandbox image is not ready with the proof that layers need; see `resnap check`"
        ),
        Ok(None) => {}
        Err(reason) => tracing::debug!(reason, "the sandbox image was not looked at"),
    }
    std::future::pending().await
}

/// Drops the credentials of pulls when their lifetime is over, also if nobody asks for them.
async fn expire(credentials: &PullCredentials) -> Infallible {
    loop {
        tokio::time::sleep(EXPIRY_PAUSE).await;
        credentials.remove_expired();
    }
}

/// Removes staged layers of a daemon that was killed, in the background.
fn clear(snapshotters: Vec<SnapshotterInfo>) {
    let roots = snapshotters.into_iter().filter_map(|found| found.root);
    for root in roots {
        tokio::task::spawn_blocking(move || {
            if let Err(error) = resnap_applier::clear(Path::new(&root)) {
                tracing::debug!(root, %error, "staged layers could not be removed");
            }
        });
    }
}

/// Returns the engine once containerd answers: at boot it may start later.
async fn connected(
    config: &Config,
    metrics: Option<Arc<Metrics>>,
    credentials: &PullCredentials,
) -> Result<Engine> {
    let mut seconds = 0_u64;
    loop {
        let observer = metrics.clone().map(|metrics| metrics as _);
        let answered = async {
            let engine = connect::observed_engine(config, observer, credentials).await?;
            // The socket exists before containerd answers, and while it hangs.
            clear(engine.snapshotters().await?);
            Ok(engine)
        };
        let error: anyhow::Error = match answered.await {
            Err(error) => error,
            engine => {
                if seconds > 0 {
                    tracing::warn!("containerd answered after {seconds} s");
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
            tracing::warn!("{reason}; retrying every second");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        seconds += 1;
    }
}
