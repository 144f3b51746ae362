// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What of an image is not on the node, and which image to take instead.

use std::collections::HashSet;
use std::sync::Arc;

use resnap_core::{Digest, Error, SnapshotKey, error_chain, media_type};
use resnap_handler_wrapper::layer_urls;

use crate::engine::{Engine, Inner};
use crate::plan::PlannedLayer;
use crate::{Plan, Request, UnpackError, image};

/// Most images of one ID that are looked at, and told of.
const MAX_IMAGES: usize = 8;

/// The error of a layer whose blob is not there and is needed.
pub(crate) async fn blob(
    engine: &Inner,
    plan: &Plan,
    title: &str,
    layer: &PlannedLayer,
    snapshotter: &str,
) -> UnpackError {
    let digest = layer.descriptor.digest.clone();
    let (image, snapshotter) = (title.to_owned(), snapshotter.to_owned());
    if media_type::is_foreign(&layer.descriptor.media_type) {
        let content = engine.ports.content.as_ref();
        let urls = layer_urls(content, &engine.scope, &plan.manifest, &digest).await;
        return UnpackError::MissingForeignBlob {
            image,
            digest,
            snapshotter,
            // What cannot be read does not say where it is.
            urls: urls.unwrap_or_default(),
        };
    }
    UnpackError::MissingBlob {
        image,
        digest,
        snapshotter,
        fetch: plan.image.fetch(plan.manifest.platform.as_ref()),
    }
}

/// What was planned for `request`, if it is complete. An image ID names a config, which images with
/// other manifests may have too: in the place of one that is not complete one that is.
pub(crate) async fn or_another(
    engine: &Engine,
    request: &Request,
    planned: Result<Arc<Plan>, UnpackError>,
) -> Result<Arc<Plan>, UnpackError> {
    let inner = &engine.0;
    let snapshotter = &request.snapshotter;
    let (image, missing) = match &planned {
        Ok(plan) if plan.image.id.is_none() => return planned,
        Ok(plan) => match first_missing(inner, plan, snapshotter).await? {
            None => return planned,
            Some(missing) => (plan.image.clone(), lacks(plan, &missing)),
        },
        Err(UnpackError::Documents { source, .. }) if source.is_not_found() => {
            let image = engine.resolve(&request.image).await?;
            let says = format!("{} ({})", image.name, error_chain(source));
            (image, says)
        }
        Err(_) => return planned,
    };
    let Some(id) = image.id.clone() else {
        return planned;
    };
    let mut seen = HashSet::from([image.target.digest.clone()]);
    let mut incomplete = vec![missing];
    let mut others = inner.ports.images.list(&inner.scope).await?;
    others.sort_by(|left, right| left.name.cmp(&right.name));
    for other in others {
        if incomplete.len() == MAX_IMAGES || seen.contains(&other.target.digest) {
            continue;
        }
        if image::image_id(&inner.ports, &inner.scope, &other).await? != Some(id.clone()) {
            continue;
        }
        seen.insert(other.target.digest.clone());
        let another = Request {
            image: other.name.clone(),
            ..request.clone()
        };
        let Ok(plan) = engine.plan(&another).await else {
            continue;
        };
        match first_missing(inner, &plan, snapshotter).await? {
            None => return Ok(plan),
            Some(missing) => incomplete.push(lacks(&plan, &missing)),
        }
    }
    if incomplete.len() == 1 {
        return planned;
    }
    Err(UnpackError::Incomplete {
        id,
        images: incomplete,
        fetch: image.fetch(request.platform.as_ref()),
    })
}

fn lacks(plan: &Plan, missing: &Digest) -> String {
    let image = &plan.image;
    let name = image.reference.as_ref().unwrap_or(&image.name);
    let manifest = &plan.manifest.digest;
    format!("{name} (manifest {manifest}, lacks layer {missing})")
}

/// The lowest layer that is neither unpacked nor there to be.
async fn first_missing(
    engine: &Inner,
    plan: &Plan,
    snapshotter: &str,
) -> Result<Option<Digest>, UnpackError> {
    let there = |found: Result<_, Error>| match found {
        Ok(()) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(UnpackError::Backend(error)),
    };
    let snapshotter = engine.ports.snapshotters.snapshotter(snapshotter);
    for layer in plan.layers.iter().rev() {
        let key = SnapshotKey::from(&layer.chain_id);
        let unpacked = snapshotter.stat(&engine.scope, &key).await.map(drop);
        if there(unpacked)? {
            // What is below it is unpacked too.
            break;
        }
        let digest = &layer.descriptor.digest;
        let info = engine.ports.content.info(&engine.scope, digest).await;
        if !there(info.map(drop))? {
            return Ok(Some(digest.clone()));
        }
    }
    Ok(None)
}
