// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Another image in place of an incomplete one with the same image ID.

use std::collections::HashSet;
use std::sync::Arc;

use resnap_core::{Digest, error_chain};

use crate::backend::Backend;
use crate::missing::first_missing;
use crate::planner::Planner;
use crate::{Plan, Request, ResolvedImage, UnpackError, image};

/// The limit on the images of one ID that are examined.
const MAX_IMAGES: usize = 8;

/// Returns the plan for `request` if it is complete. An image ID names a config, which several
/// images with different manifests may share: instead of an incomplete one, a complete one is
/// planned.
pub(crate) async fn complete_plan(
    backend: &Backend,
    planner: &Planner,
    request: &Request,
    snapshotter: &str,
    planned: Result<Arc<Plan>, UnpackError>,
) -> Result<Arc<Plan>, UnpackError> {
    let (image, missing) = match &planned {
        Ok(plan) if plan.image.id.is_none() => return planned,
        Ok(plan) => match first_missing(backend, plan, snapshotter).await? {
            None => return planned,
            Some(missing) => (plan.image.clone(), describe(plan, &missing)),
        },
        Err(UnpackError::Documents { source, .. }) if source.is_not_found() => {
            let image = planner.resolve(&request.image).await?;
            let missing = format!("{} ({})", image.name, error_chain(source));
            (image, missing)
        }
        Err(_) => return planned,
    };
    let Some(id) = image.id.clone() else {
        return planned;
    };
    match another(backend, planner, request, snapshotter, &image, missing).await? {
        Ok(plan) => Ok(plan),
        // One of the sources may have the rest.
        Err(_) if !backend.sources.is_empty() => planned,
        Err(incomplete) if incomplete.len() == 1 => planned,
        Err(incomplete) => Err(UnpackError::Incomplete {
            id,
            images: incomplete,
            fetch: image.fetch(request.platform.as_ref()),
        }),
    }
}

/// Returns the plan of a complete image with the same ID as `image`, or the descriptions of the incomplete ones,
/// of which `image` is the first.
async fn another(
    backend: &Backend,
    planner: &Planner,
    request: &Request,
    snapshotter: &str,
    image: &ResolvedImage,
    missing: String,
) -> Result<Result<Arc<Plan>, Vec<String>>, UnpackError> {
    let mut seen = HashSet::from([image.target.digest.clone()]);
    let mut incomplete = vec![missing];
    let (ports, scope) = (&backend.ports, &backend.scope);
    let mut others = ports.images.list(scope).await?;
    others.sort_by(|left, right| left.name.cmp(&right.name));
    for other in others {
        if incomplete.len() == MAX_IMAGES || seen.contains(&other.target.digest) {
            continue;
        }
        if image::image_id(ports, scope, &other).await? != image.id {
            continue;
        }
        seen.insert(other.target.digest.clone());
        let another = Request {
            image: other.name.clone(),
            ..request.clone()
        };
        let Ok(plan) = planner.plan(&another).await else {
            continue;
        };
        match first_missing(backend, &plan, snapshotter).await? {
            None => return Ok(Ok(plan)),
            Some(missing) => incomplete.push(describe(&plan, &missing)),
        }
    }
    Ok(Err(incomplete))
}

fn describe(plan: &Plan, missing: &Digest) -> String {
    let image = &plan.image;
    let name = image.reference.as_ref().unwrap_or(&image.name);
    let manifest = &plan.manifest.digest;
    format!("{name} (manifest {manifest}, lacks layer {missing})")
}
