// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The plans of images that were found ready, which most likely still are when they are asked for again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use resnap_core::ManifestPreference;

use crate::Plan;
use crate::image::normalise;

/// The limit on the number of remembered plans. The plans themselves are those of the cache.
const MAX_PLANS: usize = 1024;

/// The arguments of a question.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ReadyKey {
    pub(crate) image: String,
    pub(crate) snapshotter: String,
    pub(crate) pick: ManifestPreference,
}

impl ReadyKey {
    /// Returns whether the name decides on the chain: it is the digest of the config, as kubelet names images of
    /// containers, and no other manifest is preferred to that of the config. What the name's record points to
    /// does not matter then.
    pub(crate) fn decides_on(&self, plan: &Plan) -> bool {
        self.pick != ManifestPreference::Best && self.image == plan.config.digest.as_str()
    }
}

/// The plans of images that were found ready, as long as they are cached.
#[derive(Debug, Default)]
pub(crate) struct FoundReady(Mutex<HashMap<ReadyKey, Weak<Plan>>>);

impl FoundReady {
    /// Remembers the plan of an image that is ready, if the image was not found by a search: its name can be
    /// looked up in one call.
    pub(crate) fn remember(&self, key: ReadyKey, plan: &Arc<Plan>) {
        let name = &plan.image.name;
        if key.image != *name && normalise(&key.image).as_ref() != Some(name) {
            return;
        }
        let mut plans = self.plans();
        if plans.len() >= MAX_PLANS && !plans.contains_key(&key) {
            plans.clear();
        }
        plans.insert(key, Arc::downgrade(plan));
    }

    pub(crate) fn get(&self, key: &ReadyKey) -> Option<Arc<Plan>> {
        self.plans().get(key)?.upgrade()
    }

    fn plans(&self) -> MutexGuard<'_, HashMap<ReadyKey, Weak<Plan>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
