// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Requests for images that are unpacked on a snapshotter, whichever of their manifests that is.

use resnap_core::Platform;
use resnap_handler_wrapper::listed_platforms;

use crate::backend::Backend;
use crate::inventory::UnpackedImage;
use crate::planner::Planner;
use crate::request::Request;

/// Returns a request for the manifest that is unpacked. By its name alone, an index may lead to another one, such as
/// that with native layers of another snapshotter.
pub(crate) async fn request_of(
    backend: &Backend,
    planner: &Planner,
    image: &UnpackedImage,
    snapshotter: &str,
) -> Request {
    for name in &image.names {
        let mut platforms = vec![None];
        if let Ok(resolved) = planner.resolve(name).await {
            let content = &*backend.ports.content;
            let listed = listed_platforms(content, &backend.scope, &resolved.target).await;
            platforms.extend(listed.unwrap_or_default().into_iter().map(Some));
        }
        for platform in platforms {
            let request = request(name, snapshotter, platform);
            let plan = planner.plan(&request).await;
            let top = plan.ok().and_then(|plan| plan.top().cloned());
            if top.is_some_and(|top| top.as_str() == image.chain_id.as_str()) {
                return request;
            }
        }
    }
    // Whoever uses it tells the reason.
    request(image.name(), snapshotter, None)
}

fn request(name: &str, snapshotter: &str, platform: Option<Platform>) -> Request {
    let mut request = Request::new(name).on(snapshotter);
    request.platform = platform;
    request
}
