// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The places that images and artifacts are published to.

use std::sync::Arc;

use anyhow::{Result, bail};
use resnap_archive::{ArchiveForm, LayoutDestination};
use resnap_core::Destination;
use resnap_registry::RegistryDestination;
use resnap_unpacker::UnpackError;

use crate::config::Config;
use crate::connect::registry_settings;
use crate::local_images::{Archived, REGISTRY};

/// The tag of an image that is named without one.
pub(crate) const LATEST: &str = "latest";

/// A place, and the tag that was named in it.
pub(crate) struct Named {
    pub(crate) destination: Arc<dyn Destination>,
    pub(crate) tag: Option<String>,
}

/// Returns whether a name is that of a layout or a registry.
pub(crate) fn is_named(name: &str) -> bool {
    name.starts_with(REGISTRY) || name.starts_with("oci:")
}

/// Opens the layout or the repository of a name: oci:PATH[:TAG] or docker://REFERENCE.
pub(crate) async fn open(config: &Config, name: &str) -> Result<Named> {
    if let Some(reference) = name.strip_prefix(REGISTRY) {
        let opened = RegistryDestination::new(registry_settings(config), reference);
        let registry = opened.map_err(UnpackError::from)?;
        let tag = registry.tag().map(str::to_owned);
        return Ok(Named {
            destination: Arc::new(registry),
            tag,
        });
    }
    match Archived::parse(name)? {
        Some(layout) if layout.form == ArchiveForm::Oci && name.starts_with("oci:") => {
            let opened = LayoutDestination::open(layout.path).await;
            Ok(Named {
                destination: Arc::new(opened.map_err(UnpackError::from)?),
                tag: layout.tag.map(str::to_owned),
            })
        }
        _ => bail!("{name:?} is no place to publish to: want oci:PATH[:TAG] or docker://REFERENCE"),
    }
}
