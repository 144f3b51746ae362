// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The chain of an image's snapshots: what is there is kept, the rest is made, in order
//! (containerd `core/unpack/unpacker.go` does the same for a pull).

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use resnap_core::{
    Error, Kind, Mount, Ports, Scope, SnapshotInfo, SnapshotKey, SnapshotKind, Snapshotter, labels,
};
use tracing::Instrument as _;

use crate::event::{LayerReport, Outcome, Phase};
use crate::job::Teller;
use crate::lease::{Lease, unique};
use crate::plan::PlannedLayer;
use crate::{Plan, UnpackError};

/// Prepares that are tried when a snapshotter says a layer is there and containerd knows nothing.
const PREPARE_TRIES: usize = 3;

/// How long undoing may take: its own time, as the caller's may be over.
const CLEANUP_TIME: Duration = Duration::from_secs(10);

/// One image on one snapshotter.
pub(crate) struct Chain<'a> {
    ports: &'a Ports,
    scope: &'a Scope,
    plan: &'a Plan,
    name: &'a str,
    snapshotter: Arc<dyn Snapshotter>,
    teller: &'a Teller<'a>,
    needs_labels: bool,
    /// Whether this job made a layer.
    made: AtomicBool,
}

impl<'a> Chain<'a> {
    pub(crate) fn new(
        ports: &'a Ports,
        scope: &'a Scope,
        plan: &'a Plan,
        snapshotter: &'a str,
        teller: &'a Teller<'a>,
    ) -> Self {
        Self {
            ports,
            scope,
            plan,
            name: snapshotter,
            snapshotter: ports.snapshotters.snapshotter(snapshotter),
            teller,
            needs_labels: labels::why_needed(snapshotter).is_some(),
            made: AtomicBool::new(false),
        }
    }

    /// Makes the chain, roots it at the config blob, and tells what was done.
    pub(crate) async fn make(&self) -> Result<Vec<LayerReport>, UnpackError> {
        let Some(top) = self.plan.layers.last() else {
            return Ok(Vec::new());
        };
        if self.is_rooted().await? && self.find(self.scope, top).await?.is_some() {
            let count = self.plan.layers.len();
            self.check_labels(count).await?;
            return Ok(self.existed(count));
        }

        let target = &self.plan.image.target.digest;
        let lease = Lease::create(self.ports, self.scope, &self.plan.image.name, target);
        let lease = lease.await.map_err(|error| self.failed(error))?;
        let result = self.make_under(&lease).await;
        if result.is_err() && self.made.load(Ordering::Relaxed) {
            // The layers that were made stay, until the lease expires, for the next try.
            return result;
        }
        match (result, in_time(lease.delete(self.ports)).await) {
            (Ok(_), Err(error)) => Err(self.failed(error)),
            (Err(error), Err(left)) => {
                tracing::warn!(error = %left, "a failed job's lease stays until it expires");
                Err(error)
            }
            (result, Ok(())) => result,
        }
    }

    async fn make_under(&self, lease: &Lease) -> Result<Vec<LayerReport>, UnpackError> {
        let present = self.keep_present(lease).await?;
        self.check_labels(present).await?;
        let mut reports = self.existed(present);
        for (index, layer) in self.plan.layers.iter().enumerate().skip(present) {
            let started = Instant::now();
            let span = tracing::info_span!("layer", index, chain_id = %layer.chain_id);
            let outcome = self.layer(lease, index, layer).instrument(span).await;
            let outcome = outcome.inspect_err(|_| self.teller.tell(index, Phase::Failed))?;
            self.made.store(true, Ordering::Relaxed);
            reports.push(report(layer, outcome, started));
        }
        self.root().await?;
        Ok(reports)
    }

    /// Looks from the top down for the first layer that is there and puts it on the lease; answers
    /// with the number of layers that need not be made. A committed snapshot's parents are there.
    async fn keep_present(&self, lease: &Lease) -> Result<usize, UnpackError> {
        for (index, layer) in self.plan.layers.iter().enumerate().rev() {
            if self.find(self.scope, layer).await?.is_none() {
                continue;
            }
            let added = lease.add(self.ports, self.name, &layer.chain_id).await;
            added.map_err(|error| self.failed_layer(index, error))?;
            if self.find(self.scope, layer).await?.is_some() {
                return Ok(index + 1);
            }
        }
        Ok(0)
    }

    /// Makes one layer on its committed parent.
    async fn layer(
        &self,
        lease: &Lease,
        index: usize,
        layer: &PlannedLayer,
    ) -> Result<Outcome, UnpackError> {
        for _ in 0..PREPARE_TRIES {
            let key = SnapshotKey::extraction(&unique(), &layer.chain_id);
            let parent = layer.parent.as_ref();
            let prepared = self
                .snapshotter
                .prepare(&lease.scope, &key, parent, &layer.labels)
                .await;
            match prepared {
                Ok(mounts) => {
                    self.teller.tell(index, Phase::Prepared);
                    return self.fill(lease, index, layer, &key, &mounts).await;
                }
                Err(error) if error.is_already_exists() => {
                    if self.adopt(lease, index, layer).await? {
                        self.teller.tell(index, Phase::Remote);
                        return Ok(Outcome::Remote);
                    }
                }
                Err(error) => {
                    // Whether it was made is unknown: the answer may have been lost.
                    return Err(self
                        .undo(&lease.scope, key, self.failed_layer(index, error))
                        .await);
                }
            }
        }
        Err(UnpackError::Disagreement {
            image: self.plan.image.name.clone(),
            chain_id: layer.chain_id.clone(),
            snapshotter: self.name.to_owned(),
        })
    }

    /// Fills and commits the active snapshot `key`; it is gone afterwards, whatever happens.
    async fn fill(
        &self,
        lease: &Lease,
        index: usize,
        layer: &PlannedLayer,
        key: &SnapshotKey,
        mounts: &[Mount],
    ) -> Result<Outcome, UnpackError> {
        let staged = mounts.last().is_some_and(Mount::is_read_only);
        if !staged {
            self.teller.tell(index, Phase::Applying);
            if let Err(error) = self.apply(&lease.scope, index, layer, mounts).await {
                return Err(self.undo(&lease.scope, key.clone(), error).await);
            }
        }
        let committed = self
            .snapshotter
            .commit(&lease.scope, &layer.chain_id, key, &layer.labels)
            .await;
        let error = match committed {
            Ok(()) if staged => {
                self.teller.tell(index, Phase::Staged);
                return Ok(Outcome::Staged);
            }
            Ok(()) => {
                self.teller.tell(index, Phase::Committed);
                return Ok(Outcome::Applied);
            }
            Err(error) => error,
        };
        let joined = error.is_already_exists();
        let error = self.failed_layer(index, error);
        if !joined {
            return Err(self.undo(&lease.scope, key.clone(), error).await);
        }
        // Somebody was faster: theirs counts, ours goes.
        self.remove(&lease.scope, key)
            .await
            .map_err(|error| self.failed_layer(index, error))?;
        if self.adopt(lease, index, layer).await? {
            self.teller.tell(index, Phase::Joined);
            return Ok(Outcome::Joined);
        }
        Err(error)
    }

    async fn apply(
        &self,
        scope: &Scope,
        index: usize,
        layer: &PlannedLayer,
        mounts: &[Mount],
    ) -> Result<(), UnpackError> {
        let digest = &layer.descriptor.digest;
        let applied = match self
            .ports
            .applier
            .apply(scope, &layer.descriptor, mounts)
            .await
        {
            Ok(applied) => applied,
            Err(error) => {
                let info = self.ports.content.info(scope, digest).await;
                if info.is_err_and(|error| error.is_not_found()) {
                    return Err(UnpackError::MissingBlob {
                        image: self.plan.image.name.clone(),
                        digest: digest.clone(),
                        snapshotter: self.name.to_owned(),
                    });
                }
                return Err(self.failed_layer(index, error));
            }
        };
        if applied.diff_id == layer.diff_id.0 {
            return Ok(());
        }
        Err(UnpackError::WrongDiffId {
            image: self.plan.image.name.clone(),
            digest: digest.clone(),
            expected: layer.diff_id.0.clone(),
            computed: applied.diff_id,
        })
    }

    /// Puts a committed layer that somebody else made on the lease; false if there is none.
    async fn adopt(
        &self,
        lease: &Lease,
        index: usize,
        layer: &PlannedLayer,
    ) -> Result<bool, UnpackError> {
        let added = lease.add(self.ports, self.name, &layer.chain_id).await;
        added.map_err(|error| self.failed_layer(index, error))?;
        match self.find(&lease.scope, layer).await? {
            None => Ok(false),
            Some(info) => self.require_labels(layer, &info).map(|()| true),
        }
    }

    /// The committed snapshot of a layer, if it is there.
    async fn find(
        &self,
        scope: &Scope,
        layer: &PlannedLayer,
    ) -> Result<Option<SnapshotInfo>, UnpackError> {
        match self
            .snapshotter
            .stat(scope, &SnapshotKey::from(&layer.chain_id))
            .await
        {
            Ok(info) => Ok(Some(info).filter(|info| info.kind == SnapshotKind::Committed)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Where the snapshotter needs labels, the lowest `count` layers must have them.
    async fn check_labels(&self, count: usize) -> Result<(), UnpackError> {
        if !self.needs_labels {
            return Ok(());
        }
        for layer in &self.plan.layers[..count] {
            if let Some(info) = self.find(self.scope, layer).await? {
                self.require_labels(layer, &info)?;
            }
        }
        Ok(())
    }

    fn require_labels(&self, layer: &PlannedLayer, info: &SnapshotInfo) -> Result<(), UnpackError> {
        let missing = labels::missing(&info.labels);
        if !self.needs_labels || missing.is_empty() {
            return Ok(());
        }
        Err(UnpackError::Unlabelled {
            image: self.plan.image.name.clone(),
            chain_id: layer.chain_id.clone(),
            snapshotter: self.name.to_owned(),
            missing,
        })
    }

    fn gc_label(&self) -> String {
        format!("{}{}", labels::GC_SNAPSHOT_PREFIX, self.name)
    }

    /// Whether garbage collection already keeps the whole chain for the image's sake.
    async fn is_rooted(&self) -> Result<bool, UnpackError> {
        let info = self
            .ports
            .content
            .info(self.scope, &self.plan.config.digest)
            .await;
        let info = info.map_err(|error| self.failed(error))?;
        let root = info.labels.get(&self.gc_label()).map(String::as_str);
        Ok(root.is_some() && root == self.plan.top().map(|top| top.as_str()))
    }

    async fn root(&self) -> Result<(), UnpackError> {
        let Some(top) = self.plan.top() else {
            return Ok(());
        };
        let (labeler, config) = (&self.ports.labeler, &self.plan.config.digest);
        let labelled = labeler
            .set_label(self.scope, config, &self.gc_label(), top.as_str())
            .await;
        labelled.map_err(|error| self.failed(error))
    }

    fn existed(&self, count: usize) -> Vec<LayerReport> {
        let started = Instant::now();
        let layers = self.plan.layers[..count].iter().enumerate();
        layers
            .map(|(index, layer)| {
                self.teller.tell(index, Phase::Existed);
                report(layer, Outcome::Existed, started)
            })
            .collect()
    }

    /// Removes an active snapshot; one that is not there is fine.
    async fn remove(&self, scope: &Scope, key: &SnapshotKey) -> Result<(), Error> {
        match in_time(self.snapshotter.remove(scope, key)).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes an active snapshot after `cause`, and answers with what to report.
    async fn undo(&self, scope: &Scope, key: SnapshotKey, cause: UnpackError) -> UnpackError {
        match self.remove(scope, &key).await {
            Ok(()) => cause,
            Err(cleanup) => UnpackError::Unclean {
                cause: Box::new(cause),
                left: key,
                cleanup,
            },
        }
    }

    fn failed(&self, source: Error) -> UnpackError {
        UnpackError::Image {
            image: self.plan.image.name.clone(),
            source,
        }
    }

    fn failed_layer(&self, index: usize, source: Error) -> UnpackError {
        UnpackError::Layer {
            image: self.plan.image.name.clone(),
            number: index + 1,
            of: self.plan.layers.len(),
            digest: self.plan.layers[index].descriptor.digest.clone(),
            snapshotter: self.name.to_owned(),
            source,
        }
    }
}

fn report(layer: &PlannedLayer, outcome: Outcome, started: Instant) -> LayerReport {
    LayerReport {
        digest: layer.descriptor.digest.clone(),
        diff_id: layer.diff_id.clone(),
        chain_id: layer.chain_id.clone(),
        bytes: layer.descriptor.size,
        outcome,
        seconds: started.elapsed().as_secs_f64(),
    }
}

/// Undoing that takes too long is given up; the lease's expiry does it then.
async fn in_time(work: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    tokio::time::timeout(CLEANUP_TIME, work)
        .await
        .unwrap_or_else(|_| {
            Err(Error::new(
                Kind::DeadlineExceeded,
                "clean up in",
                format!("{CLEANUP_TIME:?}"),
            ))
        })
}
