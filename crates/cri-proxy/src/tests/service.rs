// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! An unpack service that does as it is told.

use std::collections::VecDeque;
use std::sync::{Barrier, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use resnap_core::{EnsureProgress, EnsureRequest, NotReady, UnpackService};
use tokio::sync::Notify;

/// What the service does for a request.
#[derive(Debug)]
pub(super) enum Answer {
    Ready,
    NotReady(NotReady),
    /// Ready after this time.
    After(Duration),
    /// Reports progress, and never ends.
    Progress(EnsureProgress),
}

/// What the service was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) image: String,
    pub(super) snapshotter: String,
    pub(super) repair: bool,
}

/// The service. Without an answer it never ends.
#[derive(Debug, Default)]
pub(super) struct Service {
    pub(super) answers: Mutex<VecDeque<Answer>>,
    pub(super) asked: Mutex<Vec<Asked>>,
    pub(super) changed: Notify,
    /// If any, the thread that asks waits at it, and does nothing else meanwhile.
    pub(super) planning: Option<Barrier>,
    /// Whether the files of all images are in guests only.
    pub(super) is_remote: bool,
}

impl Service {
    pub(super) fn answering(answers: impl IntoIterator<Item = Answer>) -> Self {
        Self {
            answers: Mutex::new(answers.into_iter().collect()),
            ..Self::default()
        }
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Waits until so many images have been asked for.
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
        let answer = self.answers.lock().unwrap().pop_front();
        match answer {
            Some(Answer::Ready) => Ok(()),
            Some(Answer::NotReady(error)) => Err(error),
            Some(Answer::After(time)) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
            Some(Answer::Progress(progress)) => {
                on_progress(progress);
                std::future::pending().await
            }
            None => std::future::pending().await,
        }
    }

    async fn is_remote(&self, _image: &str, _snapshotter: &str) -> Result<bool, NotReady> {
        Ok(self.is_remote)
    }
}
