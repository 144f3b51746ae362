// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap serve`.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use async_trait::async_trait;
use resnap_core::{Error, Kind, Progress, UnpackService, Unready, in_full, labels};
use resnap_cri_proxy::Proxy;
use resnap_unpacker::{Engine, Phase, Request, UnpackError};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::{Outcome, working_engine};
use crate::args::{Common, ServeArguments, Work};

/// How long calls may take to end after the signal to stop.
const GRACE: Duration = Duration::from_secs(30);

pub(crate) async fn run(common: &Common, arguments: ServeArguments) -> Result<Outcome> {
    let backend = common.address.trim_start_matches("unix://");
    let socket = &arguments.cri_socket;
    let listener = listen(socket).await?;
    let engine = connected(common, &arguments.work).await?;
    let proxy = Proxy::new(Path::new(backend), Arc::new(Service(engine)));
    let (stop, stopped) = watch::channel(false);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        // The proxy listens for as long as it serves.
        let _ = stop.send(true);
    });
    tracing::info!(?socket, backend, "serving");
    proxy.serve(listener, stopped, GRACE).await;
    fs::remove_file(socket).with_context(|| format!("remove {socket:?}"))?;
    Ok(Outcome::Done)
}

/// The engine, once containerd is there: at boot it may come later.
async fn connected(common: &Common, work: &Work) -> Result<Engine> {
    loop {
        let error = match working_engine(common, work).await {
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

/// Listens at `socket`; what a dead one left there is removed, a living one's is not.
async fn listen(socket: &Path) -> Result<UnixListener> {
    if let Some(dir) = socket.parent() {
        fs::create_dir_all(dir).with_context(|| format!("create {dir:?}"))?;
    }
    match fs::symlink_metadata(socket) {
        Ok(there) if !there.file_type().is_socket() => bail!("{socket:?} is there, and no socket"),
        Ok(_) => {
            if UnixStream::connect(socket).await.is_ok() {
                bail!("another process serves at {socket:?}");
            }
            fs::remove_file(socket).with_context(|| format!("remove {socket:?}"))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("look at {socket:?}")),
    }
    let listener = UnixListener::bind(socket).with_context(|| format!("listen at {socket:?}"))?;
    // As containerd's own: who can use it is root on the node.
    let mode = fs::Permissions::from_mode(0o660);
    fs::set_permissions(socket, mode).with_context(|| format!("protect {socket:?}"))?;
    Ok(listener)
}

/// The engine, as the proxy asks for it.
struct Service(Engine);

impl Service {
    async fn is_ready(&self, request: &Request) -> Result<bool, UnpackError> {
        let plan = self.0.plan(request).await?;
        self.0.is_ready(&plan, &request.snapshotter).await
    }
}

#[async_trait]
impl UnpackService for Service {
    async fn ensure(
        &self,
        image: &str,
        reference: Option<&str>,
        snapshotter: &str,
        tell: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), Unready> {
        let request = Request {
            // What stood there unlabelled before must stop no pod.
            repair: labels::need(snapshotter).is_some_and(|need| need.mended_by.is_some()),
            user_reference: reference.map(str::to_owned),
            ..Request::new(image, snapshotter)
        };
        match self.is_ready(&request).await {
            Ok(true) => return Ok(()),
            Err(UnpackError::NoSuchImage { .. }) => return Err(Unready::Unknown),
            // The job finds out better, and mends what can be.
            Ok(false) | Err(_) => {}
        }
        let mut job = self.0.unpack(request);
        let (mut done, mut bytes, mut total) = (0, 0, 0);
        while let Some(event) = job.next_event().await {
            match event.phase {
                Phase::Planned => total += event.bytes,
                Phase::Existed
                | Phase::Committed
                | Phase::Staged
                | Phase::Remote
                | Phase::Joined => {
                    done += 1;
                    bytes += event.bytes;
                }
                _ => {}
            }
            tell(Progress {
                done,
                layers: event.layers,
                percent: u8::try_from(bytes * 100 / total.max(1)).unwrap_or(100),
            });
        }
        match job.report().await {
            Ok(_) => Ok(()),
            Err(UnpackError::NoSuchImage { .. }) => Err(Unready::Unknown),
            Err(error) => {
                let failed = Error::new(error.kind(), "make ready", image);
                Err(Unready::Failed(failed.because(in_full(&error))))
            }
        }
    }
}
