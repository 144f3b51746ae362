// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Who does the work: the daemon that serves this containerd, or else this process.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use resnap_api::{DaemonClient, Failure, Info};
use resnap_core::Kind;
use resnap_unpacker::Engine;

use crate::config::Config;

/// How long a daemon may take to say what it is; one that hangs is none.
const PATIENCE: Duration = Duration::from_secs(2);

/// Who does the work.
#[derive(Clone)]
pub(crate) enum Worker {
    Daemon(DaemonClient),
    Here(Engine),
}

impl Worker {
    /// The daemon if there is one, else what `here` is.
    pub(crate) async fn find(
        config: &Config,
        here: impl Future<Output = Result<Engine>>,
    ) -> Result<Self> {
        match daemon(config).await {
            Ok(client) => Ok(Self::Daemon(client)),
            Err(why) => {
                tracing::debug!(%why, "working in this process");
                Ok(Self::Here(here.await?))
            }
        }
    }
}

/// The daemon that serves this containerd and namespace.
pub(crate) async fn daemon(config: &Config) -> Result<DaemonClient, Failure> {
    let socket = &config.api_socket.value;
    let client = DaemonClient::connect(socket)
        .await
        .map_err(|error| nobody(socket, &error))?;
    let info = tokio::time::timeout(PATIENCE, client.info())
        .await
        .map_err(|_| hangs(socket))??;
    if !serves(&info, config) {
        return Err(serves_others(socket, &info));
    }
    Ok(client)
}

fn serves(info: &Info, config: &Config) -> bool {
    info.containerd_namespace == config.namespace.value
        && real(Path::new(&info.containerd_address)) == real(config.backend())
}

/// The same for all names of a file.
fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn nobody(socket: &Path, error: &io::Error) -> Failure {
    let (kind, next_step) = match error.kind() {
        io::ErrorKind::PermissionDenied => (Kind::PermissionDenied, "run as root"),
        _ => (
            Kind::Unavailable,
            "start it with `resnap serve`, or name its runtime directory by --runtime-dir or \
             RESNAP_RUNTIME_DIR; without it each `resnap unpack` works by itself",
        ),
    };
    Failure {
        kind,
        reason: "NO_DAEMON".to_owned(),
        message: format!(
            "no daemon is to be reached at {}: {error}",
            socket.display()
        ),
        next_step: Some(next_step.to_owned()),
    }
}

fn hangs(socket: &Path) -> Failure {
    let socket = socket.display();
    Failure {
        kind: Kind::DeadlineExceeded,
        reason: "NO_DAEMON".to_owned(),
        message: format!("the daemon at {socket} did not answer within {PATIENCE:?}"),
        next_step: Some(
            "it waits for containerd when that does not run; else restart it".to_owned(),
        ),
    }
}

fn serves_others(socket: &Path, info: &Info) -> Failure {
    let (address, namespace) = (&info.containerd_address, &info.containerd_namespace);
    Failure {
        kind: Kind::FailedPrecondition,
        reason: "OTHER_DAEMON".to_owned(),
        message: format!(
            "the daemon at {} serves namespace {namespace} of the containerd at {address}",
            socket.display()
        ),
        next_step: Some(format!(
            "ask for that: `--address {address} --namespace {namespace}`"
        )),
    }
}
