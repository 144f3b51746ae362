// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Recent pulls and decisions, which others depend on for a while.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use resnap_core::{ManifestPreference, PodId};
use tokio::sync::watch;

use crate::expiring::ExpiringMap;

/// The longest name of an image that is looked at. Image names have at most 255 bytes, and a digest.
pub(crate) const MAX_NAME: usize = 1024;

/// The time for which a pull counts as recent. kubelet asks for the size of the image right after it, and
/// tries to create the container at once, after a second and after 15 seconds.
const RECENT: Duration = Duration::from_secs(120);

/// The time for which no pull is steered to a handler that containerd did not follow, or of an image for
/// which that failed.
const UNSTEERED: Duration = Duration::from_secs(600);

/// The time for which the answer to a question holds.
const DECISION: Duration = Duration::from_secs(30);

/// The question whether an image is to be reported as absent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct AbsenceQuestion {
    pub(crate) image: String,
    pub(crate) snapshotter: String,
    pub(crate) pod: Option<PodId>,
    pub(crate) pick: ManifestPreference,
}

/// The recent pulls and decisions.
#[derive(Debug)]
pub(crate) struct PullMemory {
    /// By the names of the images in the requests, and the pods; `None` stands for any pod.
    pulled: ExpiringMap<(String, Option<PodId>), ()>,
    ignored_handlers: ExpiringMap<String, ()>,
    /// By the names of the images and of the handlers.
    failed: ExpiringMap<(String, String), ()>,
    decisions: ExpiringMap<AbsenceQuestion, bool>,
    /// The questions that are being answered. The answer is `None` before.
    asked: Mutex<HashMap<AbsenceQuestion, watch::Receiver<Option<bool>>>>,
}

impl Default for PullMemory {
    fn default() -> Self {
        Self {
            pulled: ExpiringMap::new(RECENT),
            ignored_handlers: ExpiringMap::new(UNSTEERED),
            failed: ExpiringMap::new(UNSTEERED),
            decisions: ExpiringMap::new(DECISION),
            asked: Mutex::default(),
        }
    }
}

impl PullMemory {
    /// Records that a client has pulled an image for a pod.
    pub(crate) fn record_pull(&self, image: &str, pod: Option<&PodId>) {
        if image.len() <= MAX_NAME {
            self.pulled.insert((image.to_owned(), None), ());
            if let Some(pod) = pod.filter(|pod| pod.name.len() + pod.uid.len() <= MAX_NAME) {
                let pull = (image.to_owned(), Some(pod.clone()));
                self.pulled.insert(pull, ());
            }
        }
    }

    /// Returns whether a client has pulled an image for this pod recently, or for any if it is unknown.
    pub(crate) fn is_pulled(&self, image: &str, pod: Option<&PodId>) -> bool {
        let pull = (image.to_owned(), pod.cloned());
        self.pulled.get(&pull).is_some()
    }

    /// Records that containerd has not unpacked a steered pull for this handler.
    pub(crate) fn record_ignored(&self, handler: &str) {
        self.ignored_handlers.insert(handler.to_owned(), ());
    }

    /// Records that a pull of an image failed that was steered to this handler.
    pub(crate) fn record_failure(&self, image: &str, handler: &str) {
        let pull = (image.to_owned(), handler.to_owned());
        self.failed.insert(pull, ());
    }

    /// Returns whether a pull of an image can be steered to this handler, as far as is known.
    pub(crate) fn is_steerable(&self, image: &str, handler: &str) -> bool {
        let pull = (image.to_owned(), handler.to_owned());
        self.ignored_handlers.get(handler).is_none() && self.failed.get(&pull).is_none()
    }

    /// Returns where the answer to a question will be, if it is being answered.
    ///
    /// # Errors
    /// The sender of the answer, which the caller has to find, if it is not.
    pub(crate) fn ask(
        &self,
        question: &AbsenceQuestion,
    ) -> Result<watch::Receiver<Option<bool>>, watch::Sender<Option<bool>>> {
        let mut asked = self.asked();
        if let Some(answer) = asked.get(question) {
            return Ok(answer.clone());
        }
        let (sender, answer) = watch::channel(None);
        asked.insert(question.clone(), answer);
        Err(sender)
    }

    /// Records that a question is not being answered any more.
    pub(crate) fn end(&self, question: &AbsenceQuestion) {
        self.asked().remove(question);
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<AbsenceQuestion, watch::Receiver<Option<bool>>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the answer to a question.
    pub(crate) fn record_decision(&self, question: AbsenceQuestion, is_absent: bool) {
        self.decisions.insert(question, is_absent);
    }

    /// Returns the recent answer to a question.
    pub(crate) fn decision(&self, question: &AbsenceQuestion) -> Option<bool> {
        self.decisions.get(question)
    }
}
