// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The daemon, `resnap serve`, at the sockets of the configuration.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use resnap_api::{DaemonClient, Info};
use resnap_containerd::Client;
use resnap_core::error_chain;
use tokio::time::timeout;

use crate::config::Config;
use crate::doctor::containerd_config::changed_since;
use crate::doctor::process::Process;

/// The time that a daemon has to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The reason to restart a daemon, about its configuration file.
pub(crate) const CHANGED: &str =
    "it has changed since the daemon was started, which goes by what it was";

/// The way out for a daemon that is not as it should be.
pub(crate) const RESTART: &str = "restart it (`systemctl restart resnap`; pods run on)";

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

/// Returns the configuration file of a daemon: `own` if it was started with no other one.
pub(crate) fn config_file(process: &Process, own: Option<&Path>) -> Option<PathBuf> {
    let named = process.argument(&["--config"]).map(str::to_owned);
    let named = named.or_else(|| process.variable("RESNAP_CONFIG"));
    let named = named.map(|path| process.absolute(&path));
    named.or_else(|| own.map(Path::to_owned))
}

/// Returns a warning if the configuration file of the daemon has changed since the daemon was started. A daemon whose
/// process is not known gets none.
pub(crate) async fn config_warning(config: &Config) -> Option<String> {
    let process = Process::listening_at(&config.api_socket.value).await.ok()?;
    let file = config_file(&process, config.file.value.as_deref())?;
    let warning = || format!("{}: {CHANGED}; {RESTART}", file.display());
    changed_since(&file, process.started).then(warning)
}

/// Asks for containerd's version at the socket of the CRI, through the daemon.
pub(crate) async fn ask_cri(socket: &Path) -> Result<String, String> {
    let asked = async {
        let client = Client::connect(&socket.to_string_lossy()).await?;
        client.with_call_timeout(PATIENCE).version().await
    };
    asked.await.map_err(|error| error_chain(&error))
}
