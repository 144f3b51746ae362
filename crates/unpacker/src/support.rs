// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The checks that a snapshotter can hold a planned image.

use std::collections::BTreeSet;

use resnap_core::{Descriptor, Platform};
use resnap_handler_wrapper::{ChoiceError, choose_manifest};
use resnap_platforms::Matcher;

use crate::backend::Backend;
use crate::{Plan, Request, UnpackError};

/// Checks that the snapshotter supports the OS features of the image and of the requested platform
/// (containerd `client/image.go`, `checkSnapshotterSupport`, asks the snapshotter's plugin; none
/// exports its features up to 2.4).
pub(crate) async fn require_support(
    backend: &Backend,
    plan: &Plan,
    request: &Request,
) -> Result<(), UnpackError> {
    let Some(snapshotter) = &request.snapshotter else {
        return Ok(());
    };
    let profiles = &backend.profiles;
    let requested = request.platform.iter();
    let requested = requested.flat_map(|platform| &platform.os_features);
    let needed: BTreeSet<String> = plan.os_features.iter().chain(requested).cloned().collect();
    if profiles.not_taken(snapshotter, &needed).is_empty() {
        return Ok(());
    }
    let supports = |name: &&str| profiles.not_taken(name, &needed).is_empty();
    let known = profiles.iter().map(|(name, _)| name);
    let takers: Vec<String> = known.filter(supports).map(str::to_owned).collect();
    let is_unknown = |feature: &&String| {
        let mut profiles = profiles.iter();
        !profiles.any(|(_, profile)| profile.os_features.contains(*feature))
    };
    let unknown = needed.iter().filter(is_unknown).cloned().collect();
    let mut others = platforms(backend, &plan.image.target).await;
    others.retain(|other| {
        let not_taken = profiles.not_taken(snapshotter, &other.os_features);
        not_taken.is_empty()
    });
    others.sort();
    others.dedup();
    let mut platform = plan.platform.clone();
    platform.os_features = needed.into_iter().collect();
    Err(UnpackError::Unsupported {
        image: plan.image.name.clone(),
        config: plan.config.digest.clone(),
        platform: platform.to_string(),
        snapshotter: snapshotter.clone(),
        unknown,
        takers,
        others,
    })
}

/// Checks that the image has a reference if the snapshotter pulls by it.
pub(crate) fn require_reference(
    backend: &Backend,
    plan: &Plan,
    snapshotter: &str,
) -> Result<(), UnpackError> {
    if plan.image.reference.is_some() || backend.profiles.need(snapshotter).is_none() {
        return Ok(());
    }
    Err(UnpackError::NoReference {
        image: plan.image.name.clone(),
        snapshotter: snapshotter.to_owned(),
    })
}

/// Returns the platforms that an index names; none if it cannot be read.
async fn platforms(backend: &Backend, target: &Descriptor) -> Vec<Platform> {
    let (content, nothing) = (backend.ports.content.as_ref(), Matcher::ordered(&[]));
    match choose_manifest(content, &backend.scope, target, &nothing).await {
        Err(ChoiceError::NoMatch(platforms)) => platforms,
        _ => Vec::new(),
    }
}
