// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The choice of the manifest of an image for a snapshotter.

use std::collections::BTreeSet;

use resnap_core::{
    ChainId, Descriptor, Digest, EROFS_FEATURE, ManifestPreference, Platform, SnapshotKey,
    media_type,
};
use resnap_handler_wrapper::{Choice, ChoiceError, choose_manifest};
use resnap_platforms::Matcher;

use crate::backend::Backend;
use crate::image::host_matcher;
use crate::request::host_with_features;
use crate::{Request, ResolvedImage};

/// A choice, and whether the same manifest is chosen for as long as the image's target stays.
#[derive(Debug)]
pub(crate) struct Selection {
    pub(crate) choice: Choice,
    pub(crate) cacheable: bool,
}

/// Chooses the manifest that `request` asks for.
pub(crate) async fn select(
    backend: &Backend,
    image: &ResolvedImage,
    request: &Request,
) -> Result<Selection, ChoiceError> {
    if let Some(platform) = &request.platform {
        return cacheable(backend, image, &Matcher::only(platform)).await;
    }
    let plain = host_matcher(&image.target);
    let features = backend.features(request);
    match (request.pick, &request.snapshotter) {
        (ManifestPreference::First, _) => first(backend, image, request, plain).await,
        (ManifestPreference::Best, Some(snapshotter))
            if !features.is_empty() && !media_type::is_manifest(&image.target.media_type) =>
        {
            let native = Matcher::only(&host_with_features(features));
            best(backend, image, snapshotter, &native, &plain).await
        }
        (ManifestPreference::Best | ManifestPreference::Plain, _) => {
            cacheable(backend, image, &plain).await
        }
    }
}

/// Chooses as containerd up to 2.2 does, which ignores OS features.
async fn first(
    backend: &Backend,
    image: &ResolvedImage,
    request: &Request,
    plain: Matcher,
) -> Result<Selection, ChoiceError> {
    let first = cacheable(backend, image, &plain.clone().ignoring_features()).await?;
    // An image ID is the config's digest of the manifest that containerd has chosen. It reveals
    // builds whose containerd/platforms is newer than their version says.
    let id = request.image.parse::<Digest>().ok();
    if id.is_some_and(|id| id != first.choice.config_descriptor.digest) {
        return cacheable(backend, image, &plain).await;
    }
    Ok(first)
}

/// Chooses the snapshotter's native format if it is complete on the node, otherwise the plain one.
async fn best(
    backend: &Backend,
    image: &ResolvedImage,
    snapshotter: &str,
    native: &Matcher,
    plain: &Matcher,
) -> Result<Selection, ChoiceError> {
    let native = manifest(backend, image, native).await;
    let is_complete = match &native {
        Ok(choice) if choice.platform().os_features.is_empty() => {
            return native.map(|choice| Selection {
                choice,
                cacheable: true,
            });
        }
        Ok(choice) => is_complete(backend, choice, snapshotter).await,
        Err(ChoiceError::Content(error)) if error.is_not_found() => false,
        Err(_) => true,
    };
    let choice = if is_complete {
        native?
    } else {
        match manifest(backend, image, plain).await {
            // The only format of the image: unpacking it reports what is missing.
            Err(ChoiceError::NoMatch(_)) => native?,
            plain => plain?,
        }
    };
    // The content on the node changes.
    Ok(Selection {
        choice,
        cacheable: false,
    })
}

async fn cacheable(
    backend: &Backend,
    image: &ResolvedImage,
    matcher: &Matcher,
) -> Result<Selection, ChoiceError> {
    let choice = manifest(backend, image, matcher).await?;
    Ok(Selection {
        choice,
        cacheable: true,
    })
}

async fn manifest(
    backend: &Backend,
    image: &ResolvedImage,
    matcher: &Matcher,
) -> Result<Choice, ChoiceError> {
    let content = backend.ports.content.as_ref();
    choose_manifest(content, &backend.scope, &image.target, matcher).await
}

/// Returns whether all layers are on the node, as blobs or unpacked.
async fn is_complete(backend: &Backend, choice: &Choice, snapshotter: &str) -> bool {
    let mut top: Option<ChainId> = None;
    for diff_id in &choice.config.diff_ids {
        top = Some(ChainId::of(top.as_ref(), diff_id));
    }
    if let Some(top) = top {
        let key = SnapshotKey::from(&top);
        let snapshotter = backend.snapshotter(snapshotter);
        if snapshotter.stat(&backend.scope, &key).await.is_ok() {
            return true;
        }
    }
    for layer in &choice.layers {
        let info = backend.ports.content.info(&backend.scope, &layer.digest);
        if info.await.is_err() {
            return false;
        }
    }
    true
}

/// Returns the OS features that a snapshotter must support for an image: those of the config, and
/// `erofs` if layers are EROFS images.
pub(crate) fn os_features(config: &Platform, layers: &[Descriptor]) -> BTreeSet<String> {
    let mut features: BTreeSet<String> = config.os_features.iter().cloned().collect();
    if layers
        .iter()
        .any(|layer| media_type::is_erofs(&layer.media_type))
    {
        features.insert(EROFS_FEATURE.to_owned());
    }
    features
}

#[cfg(test)]
mod tests;
