// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A scripted unpack service.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Barrier, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use resnap_core::{
    EnsureProgress, EnsureRequest, Error, Kind, ManifestPreference, NotReady, UnpackService,
};
use tokio::sync::Notify;

/// A scripted answer to one request.
#[derive(Debug)]
pub(super) enum Answer {
    Ready,
    NotReady(NotReady),
    /// Ready after this time.
    After(Duration),
    /// Denied after this time.
    DeniedAfter(Duration),
    /// Reports progress, and never ends.
    Progress(EnsureProgress),
}

/// A request that the service got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) image: String,
    pub(super) snapshotter: String,
    pub(super) repair: bool,
}

/// The service. Without a script, all requests wait for ever.
#[derive(Debug, Default)]
pub(super) struct Service {
    /// The answers to the next requests. Requests past the end of the script fail.
    pub(super) script: Option<Mutex<VecDeque<Answer>>>,
    pub(super) asked: Mutex<Vec<Asked>>,
    pub(super) changed: Notify,
    /// If set, `ensure` blocks its thread at it, as planning may.
    pub(super) planning: Option<Barrier>,
    /// Whether images are ready on the snapshotters of these names: at the next looks, the last for ever.
    pub(super) ready: Mutex<BTreeMap<&'static str, Vec<bool>>>,
    /// The snapshotters on which all images are still ready.
    pub(super) still_ready: Mutex<Vec<&'static str>>,
    /// Whether the files of all images are in guests only.
    pub(super) is_remote: bool,
}

impl Service {
    pub(super) fn answering(answers: impl IntoIterator<Item = Answer>) -> Self {
        Self {
            script: Some(Mutex::new(answers.into_iter().collect())),
            ..Self::default()
        }
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Waits until the service has got `count` requests.
    pub(super) async fn wait_for(&self, count: usize, timeout: Duration) {
        let all = async {
            loop {
                let changed = self.changed.notified();
                if self.asked.lock().unwrap().len() >= count {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(timeout, all).await.unwrap();
    }
}

#[async_trait]
impl UnpackService for Service {
    async fn ensure(
        &self,
        request: EnsureRequest<'_>,
        on_progress: &(dyn Fn(EnsureProgress) + Send + Sync),
    ) -> Result<(), NotReady> {
        self.asked.lock().unwrap().push(Asked {
            image: request.image.to_owned(),
            snapshotter: request.snapshotter.to_owned(),
            repair: request.repair,
        });
        self.changed.notify_waiters();
        if let Some(planning) = &self.planning {
            planning.wait();
            return Ok(());
        }
        let Some(script) = &self.script else {
            return std::future::pending().await;
        };
        let answer = script.lock().unwrap().pop_front();
        match answer {
            Some(Answer::Ready) => Ok(()),
            Some(Answer::NotReady(error)) => Err(error),
            Some(Answer::After(time)) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
            Some(Answer::DeniedAfter(time)) => {
                tokio::time::sleep(time).await;
                let error = Error::new(Kind::NotFound, "unpack", request.image);
                Err(NotReady::Denied(error))
            }
            Some(Answer::Progress(progress)) => {
                on_progress(progress);
                std::future::pending().await
            }
            None => {
                let error = Error::new(Kind::Internal, "find an answer for", request.image);
                Err(NotReady::Failed(error))
            }
        }
    }

    async fn is_ready(
        &self,
        _image: &str,
        snapshotter: &str,
        _pick: ManifestPreference,
    ) -> Result<bool, NotReady> {
        let mut ready = self.ready.lock().unwrap();
        match ready.get_mut(snapshotter).map(Vec::as_mut_slice) {
            Some([last]) => Ok(*last),
            Some([_, ..]) => Ok(ready.get_mut(snapshotter).unwrap().remove(0)),
            _ => Err(NotReady::Unknown),
        }
    }

    async fn is_still_ready(
        &self,
        _image: &str,
        snapshotter: &str,
        _pick: ManifestPreference,
    ) -> bool {
        self.still_ready.lock().unwrap().contains(&snapshotter)
    }

    async fn is_remote(&self, _image: &str, _snapshotter: &str) -> Result<bool, NotReady> {
        Ok(self.is_remote)
    }
}
