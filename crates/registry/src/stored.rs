// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The credentials in Docker's config files and helpers.

use resnap_core::{Credential, Kind};

use crate::docker_config::{Found, read_all};
use crate::failure::Failure;
use crate::helper;
use crate::settings::Settings;

/// Returns the credentials for a repository at a host, in the order of the files, and why others could not be read.
pub(crate) async fn stored(
    settings: &Settings,
    host: &str,
    path: &str,
) -> (Vec<Credential>, Vec<Failure>) {
    let paths = settings.docker_configs.clone();
    let read = tokio::task::spawn_blocking(move || read_all(&paths)).await;
    let (configs, mut notes) = read.unwrap_or_default();
    let mut found = Vec::new();
    for place in configs.iter().flat_map(|config| config.find(host, path)) {
        match place {
            Found::Here(credential) => found.push(credential),
            Found::Helper { name, server } => {
                match helper::get(&name, &settings.helper_directories, &server).await {
                    Ok(credential) => found.extend(credential),
                    Err(note) => notes.push(note),
                }
            }
        }
    }
    let failure = |note| Failure::new(Kind::FailedPrecondition, note);
    (found, notes.into_iter().map(failure).collect())
}
