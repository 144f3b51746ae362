// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The places that images and artifacts are published to.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use resnap_archive::{ArchiveForm, LayoutDestination};
use resnap_core::Destination;
use resnap_registry::RegistryDestination;

use crate::config::Config;
use crate::connect::registry_settings;
use crate::local_images::{Archived, REGISTRY};
use crate::publish_step::failure;

/// The tag of an image that is named without one.
pub(crate) const LATEST: &str = "latest";

/// A place, and the tag that was named in it.
pub(crate) struct Named {
    pub(crate) destination: Arc<dyn Destination>,
    pub(crate) tag: Option<String>,
    /// The directory, if it is a layout.
    pub(crate) layout: Option<PathBuf>,
}

/// Returns whether a name is that of a layout or a registry.
pub(crate) fn is_named(name: &str) -> bool {
    name.starts_with(REGISTRY) || name.starts_with("oci:")
}

/// Checks that a name is that of a file or directory, and not of a place that is not published to.
pub(crate) fn require_path(name: &str) -> Result<()> {
    let word = name.split_once(':').map_or("", |(word, _)| word);
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if !word.is_empty() && word.bytes().all(is_word) {
        bail!(
            "{name:?} is no place to write to: want a path, oci:PATH[:TAG] or docker://REFERENCE; a path with a colon is named as ./{name}"
        );
    }
    Ok(())
}

/// Opens the layout or the repository of a name: `oci:PATH`, with a tag behind it or not, or `docker://REFERENCE`.
pub(crate) async fn open(config: &Config, name: &str) -> Result<Named> {
    if let Some(reference) = name.strip_prefix(REGISTRY) {
        let opened = RegistryDestination::new(registry_settings(config), reference);
        let registry = opened.map_err(failure)?;
        let tag = registry.tag().map(str::to_owned);
        return Ok(Named {
            destination: Arc::new(registry),
            tag,
            layout: None,
        });
    }
    match Archived::parse(name)? {
        Some(layout) if layout.form == ArchiveForm::Oci && name.starts_with("oci:") => {
            let opened = LayoutDestination::open(&layout.path).await;
            Ok(Named {
                destination: Arc::new(opened.map_err(failure)?),
                tag: layout.tag.map(str::to_owned),
                layout: Some(layout.path),
            })
        }
        _ => bail!("{name:?} is no place to publish to: want oci:PATH[:TAG] or docker://REFERENCE"),
    }
}
