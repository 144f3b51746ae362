// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The commands.

pub(crate) mod check;
pub(crate) mod generate;
pub(crate) mod images;
pub(crate) mod snapshotters;
pub(crate) mod unpack;

use anyhow::Result;
use resnap_containerd::Client;
use resnap_unpacker::{Engine, UnpackError};

use crate::args::Common;

/// How a command ends, as the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Outcome {
    /// Done, or ready.
    Done = 0,
    /// Asked about, and not ready.
    NotReady = 1,
    /// Something went wrong, and was told.
    Failed = 2,
}

/// The engine on a connection to containerd.
pub(crate) async fn engine(common: &Common) -> Result<Engine> {
    let client = Client::connect(&common.address)
        .await
        .map_err(UnpackError::from)?;
    Ok(Engine::new(client.ports(), &common.namespace))
}

/// The names of the snapshotters that work.
pub(crate) async fn working_snapshotters(engine: &Engine) -> Result<Vec<String>> {
    let all = engine.snapshotters().await?;
    let working = all
        .into_iter()
        .filter(|snapshotter| snapshotter.failure.is_none());
    Ok(working.map(|snapshotter| snapshotter.name).collect())
}
