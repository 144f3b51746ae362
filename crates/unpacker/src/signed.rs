// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Signatures of layers that exist, verified again before each container.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use resnap_core::{ChainId, ChainView, Error, Kind, error_chain};

use crate::lease::LeaseKeeper;
use crate::sibling::viewed;
use crate::{Plan, UnpackError};

/// The limit on the chains that are remembered.
const MAX_CHAINS: usize = 4096;

/// The chains whose files are known: the files of a committed snapshot stay where they are.
#[derive(Debug, Default)]
pub(crate) struct Views(Mutex<HashMap<Key, Known>>);

/// The snapshotter and the top layer of a chain.
type Key = (String, ChainId);

/// A chain, and the time when its top layer was made.
#[derive(Debug)]
struct Known {
    made: SystemTime,
    view: Arc<ChainView>,
}

impl Views {
    fn get(&self, key: &Key, made: SystemTime) -> Option<Arc<ChainView>> {
        let views = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = views.get(key).filter(|known| known.made == made)?;
        Some(Arc::clone(&known.view))
    }

    fn insert(&self, key: Key, made: SystemTime, view: Arc<ChainView>) {
        let mut views = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if views.len() >= MAX_CHAINS {
            views.clear();
        }
        views.insert(key, Known { made, view });
    }
}

/// Verifies the signatures of all layers.
pub(crate) async fn verify_signed(
    keeper: &Arc<LeaseKeeper>,
    views: &Views,
    plan: &Plan,
    snapshotter: &str,
) -> Result<(), UnpackError> {
    let Some(top) = plan.top() else {
        return Ok(());
    };
    let backend = &keeper.backend;
    let unsigned = |error: &Error| UnpackError::Unsigned {
        image: plan.image.name.clone(),
        snapshotter: snapshotter.to_owned(),
        digest: None,
        root_hash: None,
        why: error_chain(error),
    };
    let found = backend
        .committed(&*backend.snapshotter(snapshotter), top)
        .await?;
    let gone = || Error::new(Kind::NotFound, "find", top.as_str());
    let made = found.ok_or_else(gone)?.created;
    let key = (snapshotter.to_owned(), top.clone());
    let view = match views.get(&key, made) {
        Some(view) => view,
        None => {
            let view = Arc::new(viewed(keeper, plan, snapshotter).await?);
            views.insert(key, made, Arc::clone(&view));
            view
        }
    };
    let verified = backend.ports.applier.verify_signed(&view).await;
    verified.map_err(|error| unsigned(&error))
}
