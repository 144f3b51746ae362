// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What a proxy asks of an engine.

use async_trait::async_trait;

use crate::Error;

/// What is to be ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want<'a> {
    /// A reference or an image ID, as the CRI has it.
    pub image: &'a str,
    /// What the user wrote, for an image that is known by its ID only.
    pub reference: Option<&'a str>,
    /// Where.
    pub snapshotter: &'a str,
    /// Whether layers that somebody unpacked without labels are mended.
    pub repair: bool,
}

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
    /// All layers are there, some without the labels that the snapshotter needs, as somebody else
    /// unpacked them; they were not, or could not be, mended. Containers can be made of them, as
    /// well or badly as without us.
    #[error(transparent)]
    Unlabelled(Error),
    /// It could not be made ready.
    #[error(transparent)]
    Failed(Error),
}

/// Makes images ready.
#[async_trait]
pub trait UnpackService: Send + Sync {
    /// Waits until an image is ready; `tell` is told how far it is. Dropping the future stops only
    /// the waiting.
    ///
    /// # Errors
    /// [`Unready`].
    async fn ensure(
        &self,
        want: Want<'_>,
        tell: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), Unready>;

    /// Whether `image` is on `snapshotter` in the form of which the files come to be in guests
    /// only, so that as a volume, mounted on the host, it would be empty.
    ///
    /// # Errors
    /// [`Unready`].
    async fn is_remote(&self, image: &str, snapshotter: &str) -> Result<bool, Unready>;
}
