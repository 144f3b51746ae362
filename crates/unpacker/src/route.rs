// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The choice of the snapshotter for a request that names none.

use resnap_core::{Error, Kind, media_type};

use crate::backend::Backend;
use crate::choose::{os_features, select};
use crate::{Configuration, Request, ResolvedImage, UnpackError, image};

/// A request completed by one of the unpack configurations.
struct Candidate {
    request: Request,
    snapshotter: String,
    optional: bool,
    /// Whether the snapshotter is loaded.
    works: bool,
    /// Whether the snapshotter supports the platform.
    supports: bool,
}

/// Completes `request` with a snapshotter and a platform if it names no snapshotter: those of the
/// first configuration that the image and this containerd support. Returns the snapshotter.
pub(crate) async fn pick_target(
    backend: &Backend,
    configurations: &[Configuration],
    request: &mut Request,
) -> Result<String, UnpackError> {
    if let Some(snapshotter) = &request.snapshotter {
        return Ok(snapshotter.clone());
    }
    let candidates = candidates(backend, configurations, request).await?;
    let image = image::resolve(&backend.ports, &backend.scope, &request.image).await?;
    let is_platform_named = request.platform.is_some();
    for candidate in candidates.iter().filter(|candidate| candidate.supports) {
        let (target, snapshotter) = (&candidate.request, &candidate.snapshotter);
        if !candidate.works {
            if !candidate.optional {
                backend.require_snapshotter(snapshotter).await?;
            }
        } else if is_platform_named || has_platform(backend, &image, target).await {
            *request = target.clone();
            return Ok(snapshotter.clone());
        }
    }
    let mut skipped = candidates.iter();
    let skipped = skipped.find(|candidate| candidate.supports && !candidate.works);
    if let (true, Some(skipped)) = (is_platform_named, skipped) {
        backend.require_snapshotter(&skipped.snapshotter).await?;
    }
    let first = candidates.into_iter().find(|candidate| candidate.works);
    let Some(first) = first else {
        return Err(no_candidate(request));
    };
    // Planning reports why the image does not fit.
    let platform = request.platform.take();
    *request = first.request;
    if media_type::is_manifest(&image.target.media_type) {
        // The platform was chosen when the image was pulled.
        request.platform = platform;
    }
    Ok(first.snapshotter)
}

async fn candidates(
    backend: &Backend,
    configurations: &[Configuration],
    request: &Request,
) -> Result<Vec<Candidate>, UnpackError> {
    let loaded = backend.ports.introspection.snapshotters().await?;
    let candidates = configurations.iter().map(|configuration| {
        let (name, profiles) = (&configuration.snapshotter, &backend.profiles);
        let platform = request.platform.as_ref();
        let platform = platform.unwrap_or(&configuration.platform);
        Candidate {
            request: Request {
                platform: Some(platform.clone()),
                ..request.clone().on(name)
            },
            snapshotter: name.clone(),
            optional: configuration.optional,
            works: loaded
                .iter()
                .any(|info| info.name == *name && info.failure.is_none()),
            supports: profiles.not_taken(name, &platform.os_features).is_empty(),
        }
    });
    Ok(candidates.collect())
}

/// Returns whether the image has a manifest of exactly the requested platform.
async fn has_platform(backend: &Backend, image: &ResolvedImage, request: &Request) -> bool {
    let Ok(selection) = select(backend, image, request).await else {
        return false;
    };
    let choice = &selection.choice;
    let has = os_features(&choice.platform(), &choice.layers);
    let wanted = request.platform_or_host().os_features;
    wanted.iter().all(|feature| has.contains(feature))
}

fn no_candidate(request: &Request) -> UnpackError {
    let platform = request.platform_or_host().to_string();
    UnpackError::Backend(
        Error::new(
            Kind::FailedPrecondition,
            "choose a snapshotter for",
            platform,
        )
        .with_source("no unpack configuration is for it; name a snapshotter"),
    )
}
