// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The images that commands make something of: in an archive or layout, a registry, or the engine's store.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use resnap_archive::ArchiveSource;
use resnap_core::{PullCredentials, Scope};
use resnap_publish::SourceImage;
use resnap_unpacker::UnpackError;

use crate::config::Config;
use crate::connect::{engine, ports, registry};
use crate::local_images::{Archived, REGISTRY};
use crate::local_step::{not_in_archive, not_in_registry};

/// Finds an image by where it is, or by its name in the store of the engine.
pub(crate) async fn source_image(config: &Config, name: &str) -> Result<SourceImage> {
    if let Some(archived) = Archived::parse(name)? {
        let source = ArchiveSource::new([&archived.path]);
        let listed = source.images(&archived.path, archived.form).await;
        let image = archived.choose(listed.map_err(|error| not_in_archive(name, &error))?)?;
        let layout = archived.path.is_dir().then_some(archived.path);
        let source = Arc::new(source);
        return Ok(SourceImage::in_source(
            name,
            image.target,
            source,
            None,
            layout,
        ));
    }
    if let Some(reference) = name.strip_prefix(REGISTRY) {
        let source = registry(config, PullCredentials::new());
        let image = source.resolve(reference).await;
        let image = image.map_err(|error| not_in_registry(name, &error))?;
        let (target, reference) = (image.target, Some(image.name));
        return Ok(SourceImage::in_source(
            name,
            target,
            Arc::new(source),
            reference,
            None,
        ));
    }
    let image = engine(config).await?.resolve(name).await?;
    let ports = ports(config).await.map_err(UnpackError::from)?;
    let root = ports.introspection.content_root().await;
    let root = root.map_err(UnpackError::from)?.map(PathBuf::from);
    let scope = Scope::new(&config.namespace.value);
    Ok(SourceImage::in_store(
        name,
        image.target,
        ports.content,
        scope,
        root,
    ))
}
