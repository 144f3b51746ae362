// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Warnings of lines in containerd's configuration with which no image can be pulled.

use std::time::Duration;

use resnap_containerd::Client;
use resnap_core::{Kind, Result};

use crate::config::Config;

/// The time that a diff plugin has to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Warns of diff plugins of containerd at whose sockets nothing answers, and of a containerd that does not start
/// with one.
pub(crate) async fn warn(config: &Config) {
    if config.local.is_some() {
        return;
    }
    match warnings(config).await {
        Ok(warnings) => warnings
            .into_iter()
            .for_each(|warning| tracing::warn!("{warning}")),
        // The command itself reports a containerd that does not answer.
        Err(error) => tracing::debug!(%error, "the diff plugins of containerd are not known"),
    }
}

/// Returns the warnings.
///
/// # Errors
/// containerd does not answer.
pub(crate) async fn warnings(config: &Config) -> Result<Vec<String>> {
    let client = Client::connect(&config.address.value).await?;
    let mut warnings = Vec::new();
    if config.diff_socket.value.is_some() {
        warnings.extend(unsupported(&client.version().await?));
    }
    for plugin in client.diff_plugins().await? {
        if !answers(&plugin.address).await {
            warnings.push(format!(
                "containerd is configured to unpack by the diff plugin {:?} at {}, where nothing answers: until it \
                 does, or the lines are taken out and containerd is restarted, no image can be pulled",
                plugin.name, plugin.address
            ));
        }
    }
    Ok(warnings)
}

/// Returns a warning of a containerd that ends at its start if a diff plugin is configured.
fn unsupported(version: &str) -> Option<String> {
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next()?, numbers.next()?);
    let version_of_lines = (1, 7);
    ((major.parse().ok()?, minor.parse().ok()?) < version_of_lines).then(|| {
        format!(
            "diff.socket is set, and containerd {version} does not start with a diff plugin in its configuration: \
             1.7 and later do"
        )
    })
}

/// Returns whether a server answers at a socket, if only that it knows no such method.
async fn answers(address: &str) -> bool {
    let asked = async {
        let client = Client::connect(address).await?;
        client.with_call_timeout(PATIENCE).version().await
    };
    match asked.await {
        Ok(_) => true,
        Err(error) => error.kind() == Kind::Unimplemented,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerd_before_1_7_is_warned_of() {
        for (version, is_warned) in [
            ("v1.6.20", true),
            ("1.6.36~ds1", true),
            ("1.7.24", false),
            ("v2.1.9", false),
            ("2.3", false),
            ("unknown", false),
        ] {
            assert_eq!(unsupported(version).is_some(), is_warned, "{version}");
        }
    }
}
