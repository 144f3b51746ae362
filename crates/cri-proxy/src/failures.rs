// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The images of a call that could not be made ready before it was forwarded.

use std::sync::{Mutex, MutexGuard, PoisonError};

use resnap_core::NotReady;

use crate::requirements::RequiredImage;

/// The images of a call that could not be made ready before it was forwarded. If containerd fails as well,
/// the same sources are not asked again for this call: its client repeats it.
#[derive(Debug, Default)]
pub(crate) struct Failures(Mutex<Vec<(RequiredImage, NotReady)>>);

impl Failures {
    pub(crate) fn add(&self, image: &RequiredImage, error: &NotReady) {
        self.lock().push((image.clone(), error.clone()));
    }

    /// Returns the error for an image, if it has failed.
    pub(crate) fn get(&self, image: &RequiredImage) -> Option<NotReady> {
        let failures = self.lock();
        let failure = failures.iter().find(|(failed, _)| failed == image);
        failure.map(|(_, error)| error.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(RequiredImage, NotReady)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
