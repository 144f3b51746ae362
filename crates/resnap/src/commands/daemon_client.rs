// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The connection to the daemon that serves the configured containerd and namespace.

use std::io;
use std::path::Path;
use std::time::Duration;

use resnap_api::{DaemonClient, Failure, Info};
use resnap_core::Kind;

use crate::config::{Config, is_same_file};

/// The time a daemon has to describe itself. One that takes longer counts as hanging.
const INFO_TIMEOUT: Duration = Duration::from_secs(2);

/// Connects to the daemon that serves this containerd and namespace.
///
/// # Errors
/// No daemon can be reached, it does not answer, or it serves another containerd or namespace.
pub(crate) async fn connect(config: &Config) -> Result<DaemonClient, Failure> {
    let socket = &config.api_socket.value;
    let client = DaemonClient::connect(socket)
        .await
        .map_err(|error| unreachable(socket, &error))?;
    let info = tokio::time::timeout(INFO_TIMEOUT, client.info())
        .await
        .map_err(|_| hanging(socket))??;
    if !serves(&info, config) {
        return Err(other_target(socket, &info));
    }
    Ok(client)
}

fn serves(info: &Info, config: &Config) -> bool {
    info.containerd_namespace == config.namespace.value
        && is_same_file(Path::new(&info.containerd_address), config.backend())
}

fn unreachable(socket: &Path, error: &io::Error) -> Failure {
    let (kind, next_step) = match error.kind() {
        io::ErrorKind::PermissionDenied => (Kind::PermissionDenied, "run as root"),
        _ => (
            Kind::Unavailable,
            "start it with `resnap serve`, or name its runtime directory with --runtime-dir or \
             RESNAP_RUNTIME_DIR; without a daemon each `resnap unpack` runs on its own",
        ),
    };
    Failure {
        kind,
        reason: "NO_DAEMON".to_owned(),
        message: format!("no daemon can be reached at {}: {error}", socket.display()),
        next_step: Some(next_step.to_owned()),
    }
}

fn hanging(socket: &Path) -> Failure {
    let socket = socket.display();
    Failure {
        kind: Kind::DeadlineExceeded,
        reason: "NO_DAEMON".to_owned(),
        message: format!("the daemon at {socket} did not answer within {INFO_TIMEOUT:?}"),
        next_step: Some(
            "check that containerd is running, which the daemon waits for; otherwise restart the daemon".to_owned(),
        ),
    }
}

fn other_target(socket: &Path, info: &Info) -> Failure {
    let (address, namespace) = (&info.containerd_address, &info.containerd_namespace);
    Failure {
        kind: Kind::FailedPrecondition,
        reason: "OTHER_DAEMON".to_owned(),
        message: format!(
            "the daemon at {} serves namespace {namespace} of the containerd at {address}",
            socket.display()
        ),
        next_step: Some(format!(
            "name them: `--address {address} --namespace {namespace}`"
        )),
    }
}
