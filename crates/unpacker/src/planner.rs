// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Planning: from a request to a plan, cached.

use std::collections::BTreeSet;
use std::sync::Arc;

use resnap_core::ManifestPreference;

use crate::backend::Backend;
use crate::plan::make_plan;
use crate::plans::{PlanCache, PlanKey};
use crate::support::require_support;
use crate::{Plan, Request, ResolvedImage, UnpackError, image};

/// The planner of an engine. Clones share the cache.
#[derive(Debug, Clone)]
pub(crate) struct Planner {
    backend: Arc<Backend>,
    cache: PlanCache,
}

impl Planner {
    pub(crate) fn new(backend: Arc<Backend>) -> Self {
        Self {
            backend,
            cache: PlanCache::default(),
        }
    }

    /// Finds an image record by an exact name, a Docker name or an image ID.
    pub(crate) async fn resolve(&self, image: &str) -> Result<ResolvedImage, UnpackError> {
        image::resolve(&self.backend.ports, &self.backend.scope, image).await
    }

    /// Finds the image of a request, with the reference that the user wrote if it has no other.
    pub(crate) async fn resolve_for(
        &self,
        request: &Request,
    ) -> Result<ResolvedImage, UnpackError> {
        let mut image = self.resolve(&request.image).await?;
        let written = request.user_reference.as_deref();
        image.reference = image
            .reference
            .or_else(|| written.and_then(image::normalise));
        Ok(image)
    }

    /// Returns the plan for `request`. The name is looked up each time; the documents behind it
    /// cannot change and are read once.
    pub(crate) async fn plan(&self, request: &Request) -> Result<Arc<Plan>, UnpackError> {
        let image = self.resolve_for(request).await?;
        let key = self.key(&image, request);
        let name = image.name.clone();
        let (backend, asked) = (Arc::clone(&self.backend), request.clone());
        let make = async move { make_plan(&backend, image, &asked).await };
        let plan = self.cache.get_or_make(&name, key, make).await?;
        require_support(&self.backend, &plan, request).await?;
        Ok(plan)
    }

    /// Returns the key of a plan; `None` if it depends on wrappers, whose effect is unknown.
    fn key(&self, image: &ResolvedImage, request: &Request) -> Option<PlanKey> {
        if !request.wrappers.is_empty() {
            return None;
        }
        Some(PlanKey {
            name: image.name.clone(),
            reference: image.reference.clone(),
            target: image.target.digest.clone(),
            platform: request.platform.clone(),
            pick: request.pick,
            features: match request.pick {
                ManifestPreference::Best => self.backend.features(request),
                ManifestPreference::Plain | ManifestPreference::First => BTreeSet::new(),
            },
            asked_by: (request.pick == ManifestPreference::First).then(|| request.image.clone()),
        })
    }

    #[cfg(test)]
    pub(crate) fn cache(&self) -> &PlanCache {
        &self.cache
    }
}
