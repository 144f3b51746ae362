// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What a proxy asks of an engine.

use async_trait::async_trait;

use crate::Error;

/// How far an unpack is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Layers that are ready.
    pub done: usize,
    /// Layers of the image.
    pub layers: usize,
    /// Of the bytes of the layers' blobs, those of layers that are ready; 0 to 100.
    pub percent: u8,
}

/// Why an image is not ready.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unready {
    /// There is no such image: nothing was tried.
    #[error("no such image")]
    Unknown,
    /// It could not be made ready.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// Makes images ready.
#[async_trait]
pub trait UnpackService: Send + Sync {
    /// Waits until `image` (a reference or an image ID, as the CRI has it) is ready on
    /// `snapshotter`; `tell` is told how far it is. `reference` is what the user wrote, for an
    /// image that is known by its ID only. Dropping the future stops only the waiting.
    ///
    /// # Errors
    /// [`Unready`].
    async fn ensure(
        &self,
        image: &str,
        reference: Option<&str>,
        snapshotter: &str,
        tell: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), Unready>;
}
