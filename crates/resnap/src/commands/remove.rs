// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap remove`.

use std::path::Path;

use anyhow::Result;
use resnap_local::Local;
use resnap_unpacker::{Engine, UnpackError};
use serde::Serialize;

use crate::args::RemoveArguments;
use crate::exit_status::ExitStatus;
use crate::output::Output;

/// An image that was removed.
#[derive(Serialize)]
struct Removed {
    image: String,
}

pub(crate) async fn run(
    engine: &Engine,
    root: &Path,
    arguments: RemoveArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    let mut found = Vec::new();
    for image in &arguments.images {
        let name = engine.resolve(image).await?.name;
        if !found.contains(&name) {
            found.push(name);
        }
    }
    let store = Local::open_existing(root).await;
    let store = store.map_err(UnpackError::from)?;
    let mut removed = Vec::new();
    for image in found {
        store
            .remove_image(&image)
            .await
            .map_err(UnpackError::from)?;
        removed.push(Removed { image });
    }
    output.document(&removed, |table| {
        for Removed { image } in &removed {
            table.line(format!(
                "{image} is removed, with what no other image or container needs"
            ));
        }
    })?;
    Ok(ExitStatus::Done)
}
