// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The layers of images on a snapshotter, compared with what proves them.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::SystemTime;

use resnap_core::{ChainId, Error, Kind, LayerToVerify, SnapshotInfo, Verified};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::lease::LeaseKeeper;
use crate::planner::Planner;
use crate::sibling::{Layers, Sibling, committed, within_lease};
use crate::{Plan, Request, UnpackError, Verdict, Verification, VerifiedLayer};

/// Compares the layers of images on one snapshotter with what proves them, each once.
#[derive(Debug)]
pub struct Verifier {
    keeper: Arc<LeaseKeeper>,
    planner: Planner,
    snapshotter: String,
    rate: Option<NonZeroU64>,
    known: HashMap<ChainId, VerifiedLayer>,
}

impl Verifier {
    pub(crate) fn new(keeper: Arc<LeaseKeeper>, planner: Planner, snapshotter: &str) -> Self {
        Self {
            keeper,
            planner,
            snapshotter: snapshotter.to_owned(),
            rate: None,
            known: HashMap::new(),
        }
    }

    /// Sets the most bytes that are read in a second.
    #[must_use]
    pub fn rate(self, rate: Option<NonZeroU64>) -> Self {
        Self { rate, ..self }
    }

    /// Compares the layers of an image, the base first, and calls `done` with each that was not compared
    /// before. Nothing is changed, but for a view under a lease. `stop` ends the work within a moment, with
    /// what is known by then.
    ///
    /// # Errors
    /// As for [`Reader::plan`](crate::Reader::plan), or the backend's error. A layer that cannot be compared is
    /// no error.
    pub async fn verify(
        &mut self,
        request: &Request,
        stop: &CancellationToken,
        mut done: impl FnMut(&Plan, &VerifiedLayer),
    ) -> Result<Verification, UnpackError> {
        let request = request.clone().on(&self.snapshotter);
        let plan = self.planner.plan(&request).await?;
        let mut verification = Verification {
            image: plan.image.name.clone(),
            snapshotter: self.snapshotter.clone(),
            layers: Vec::new(),
            is_stopped: false,
        };
        let snapshots = committed(&self.keeper.backend, &plan, &self.snapshotter).await?;
        for (index, layer) in plan.layers.iter().enumerate() {
            if let Some(known) = self.known.get(&layer.chain_id) {
                verification.layers.push(known.clone());
                continue;
            }
            let started = Instant::now();
            let compared = match stop.is_cancelled() {
                true => None,
                false => self.compare(&plan, &snapshots, index, stop).await?,
            };
            let Some((verdict, created)) = compared else {
                verification.is_stopped = true;
                break;
            };
            let verified = VerifiedLayer {
                digest: layer.descriptor.digest.clone(),
                chain_id: layer.chain_id.clone(),
                verdict,
                seconds: started.elapsed().as_secs_f64(),
                created,
            };
            done(&plan, &verified);
            self.known.insert(layer.chain_id.clone(), verified.clone());
            verification.layers.push(verified);
        }
        Ok(verification)
    }

    /// Forgets the layers with differences of an image, to compare them again.
    pub fn forget(&mut self, verification: &Verification) {
        let is_right = |known: &VerifiedLayer| matches!(known.verdict, Verdict::Right { .. });
        let layers = verification.layers.iter();
        // Those above are made again with the lowest one that is wrong.
        for layer in layers.skip_while(|layer| is_right(layer)) {
            self.known.remove(&layer.chain_id);
        }
    }

    /// Compares one layer. Returns `None` if that was stopped.
    async fn compare(
        &self,
        plan: &Plan,
        snapshots: &[SnapshotInfo],
        index: usize,
        stop: &CancellationToken,
    ) -> Result<Option<(Verdict, Option<SystemTime>)>, UnpackError> {
        let Some(created) = snapshots.get(index).map(|snapshot| snapshot.created) else {
            let missing = Error::new(Kind::NotFound, "find", plan.layers[index].chain_id.as_str());
            let missing = missing.with_source("the layer is not unpacked");
            return Ok(Some((Verdict::unknown(&missing), None)));
        };
        let snapshotter = &self.snapshotter;
        // A lease of its own: one that is renewed would not keep the view.
        let compared = within_lease(&self.keeper, plan, snapshotter, async |layers| {
            let view = Sibling::view(layers, snapshotter.clone(), snapshots.to_vec()).await?;
            let compared = tokio::select! {
                compared = self.compare_in(layers, &view, index) => Some(compared),
                () = stop.cancelled() => None,
            };
            view.end(layers.backend).await;
            compared.transpose()
        });
        let verdict = match compared.await? {
            Ok(None) => return Ok(None),
            Ok(Some(verified)) => Ok(verified).into(),
            Err(error) => Verdict::unknown(&error),
        };
        Ok(Some((verdict, Some(created))))
    }

    async fn compare_in(
        &self,
        layers: Layers<'_>,
        view: &Sibling,
        index: usize,
    ) -> Result<Verified, Error> {
        let Layers { backend, plan, .. } = layers;
        let layer = &plan.layers[index];
        let (descriptor, diff_id) = (layer.descriptor.clone(), layer.diff_id.clone());
        let mut layer = LayerToVerify::new(view.chain().clone(), index, descriptor, diff_id);
        layer.integrity = backend.profiles.get(&self.snapshotter).integrity;
        layer.rate = self.rate;
        backend.ports.applier.verify(&backend.scope, &layer).await
    }
}
