// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The daemon, `resnap serve`, at the sockets of the configuration.

use std::io;
use std::path::Path;
use std::time::Duration;

use resnap_api::{DaemonClient, Info};
use resnap_containerd::Client;
use resnap_core::error_chain;
use tokio::time::timeout;

use crate::config::Config;
use crate::doctor::process::Process;

/// The time that a daemon has to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The daemon at the socket of the API.
#[derive(Debug)]
pub(crate) enum Daemon {
    /// There is no socket.
    Absent,
    /// There is a socket, and the reason why nothing answers there.
    Silent(String),
    Running {
        info: Info,
        process: io::Result<Process>,
    },
}

impl Daemon {
    pub(crate) async fn look(config: &Config) -> Self {
        let socket = &config.api_socket.value;
        let client = match DaemonClient::connect(socket).await {
            Ok(client) => client,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::Absent,
            Err(error) => return Self::Silent(error.to_string()),
        };
        match timeout(PATIENCE, client.info()).await {
            Ok(Ok(info)) => Self::Running {
                info,
                process: Process::listening_at(socket).await,
            },
            Ok(Err(failure)) => Self::Silent(failure.to_string()),
            Err(_) => Self::Silent(format!("no answer within {PATIENCE:?}")),
        }
    }
}

/// Asks for containerd's version at the socket of the CRI, through the daemon.
pub(crate) async fn ask_cri(socket: &Path) -> Result<String, String> {
    let asked = async {
        let client = Client::connect(&socket.to_string_lossy()).await?;
        client.with_call_timeout(PATIENCE).version().await
    };
    asked.await.map_err(|error| error_chain(&error))
}
