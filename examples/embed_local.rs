// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A shim without containerd: makes an image of an OCI layout ready in a directory, prepares a container's root file
//! system on it, and prints how to mount that. No rights are needed.
//!
//! ```text
//! cargo run -p resnap-examples --bin embed_local -- DIRECTORY LAYOUT CONTAINER
//! ```

// A program that talks to its user.
#![allow(clippy::print_stdout)]

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use resnap_applier::ApplierSettings;
use resnap_archive::{ArchiveForm, ArchiveSource};
use resnap_core::{Image, Labels, Scope, SnapshotKey};
use resnap_local::Local;
use resnap_unpacker::{Engine, EngineSettings, Request, Source};

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, layout, container] = arguments.as_slice() else {
        bail!("usage: embed_local DIRECTORY LAYOUT CONTAINER");
    };
    let store = Local::open(directory).await?;
    let source = ArchiveSource::new([layout]);
    let images = source.images(Path::new(layout), ArchiveForm::Oci).await?;
    let found = images.into_iter().next().context("no image is there")?;
    let image = Image {
        name: format!("oci:{layout}"),
        target: found.target,
        labels: Labels::new(),
    };
    store.set_image(&image).await?;

    let ports = store.ports(ApplierSettings::default());
    let mut settings = EngineSettings::default();
    // Processes with the same directory do nothing twice.
    settings.runtime_dir = Some(Local::runtime_dir(Path::new(directory)));
    settings.sources = vec![Source::Blobs(Arc::new(source))];
    let engine = Engine::new(ports.clone(), Local::NAMESPACE, settings)?;
    let report = engine.unpack(Request::new(image.name).on("erofs")).await?;
    println!("{} layers are ready", report.layers.len());

    // It is kept, with the layers, until it is removed.
    let top = report.chain_id.context("the image has no layers")?;
    let (scope, key) = (
        Scope::new(Local::NAMESPACE),
        SnapshotKey::from(container.clone()),
    );
    let erofs = ports.snapshotters.snapshotter("erofs");
    let none = Labels::new();
    let mounts = erofs.prepare(&scope, &key, Some(&top), &none).await?;
    for mount in mounts {
        let options = mount.options.join(",");
        println!("{} {} ({options})", mount.kind, mount.source);
    }
    Ok(())
}
