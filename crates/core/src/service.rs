// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What a proxy asks of an engine.

use async_trait::async_trait;

use crate::Error;

/// Which manifest of an index is meant, where it has several for the same platform that differ in
/// OS features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ManifestPreference {
    /// That in the snapshotter's own format, if all of it is on the node; else the plain one.
    #[default]
    Best,
    /// The plain one, as containerd since 2.3 takes it for containers.
    Plain,
    /// The first, as containerd up to 2.2 takes it for containers: it knows of no features, unless
    /// it was built with a newer containerd/platforms. Where the image is named by its ID, that
    /// tells which it is.
    First,
}

impl ManifestPreference {
    /// What a containerd of this version (`2.1.9`, `v2.4.0-beta.0`, `1.7.24~ds1`) takes for
    /// containers: containerd/platforms considers features since 1.0.0-rc.4. Of one that does not
    /// say the newer is thought.
    pub fn by_containerd(version: &str) -> Self {
        match major_minor(version) {
            Some(version) if version < (2, 3) => Self::First,
            _ => Self::Plain,
        }
    }
}

/// Major and minor of a version of containerd's, such as `2.1.9`, `v2.4.0-beta.0` or `1.7.24~ds1`.
pub fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim_start_matches('v').split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// What is to be ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnsureRequest<'a> {
    /// A reference or an image ID, as the CRI has it.
    pub image: &'a str,
    /// What the user wrote, for an image that is known by its ID only.
    pub reference: Option<&'a str>,
    /// Where.
    pub snapshotter: &'a str,
    /// The pod it is for, as `namespace/name`.
    pub pod: Option<&'a str>,
    /// Whether layers that somebody unpacked without labels are mended.
    pub repair: bool,
    /// Which of its manifests.
    pub pick: ManifestPreference,
}

/// How far an unpack is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EnsureProgress {
    /// Layers that are ready.
    pub done: usize,
    /// Layers of the image.
    pub layers: usize,
    /// Of the bytes of the layers' blobs, those that have been read; 0 to 100.
    pub percent: u8,
}

/// Why an image is not ready.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotReady {
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
    /// [`NotReady`].
    async fn ensure(
        &self,
        want: EnsureRequest<'_>,
        tell: &(dyn Fn(EnsureProgress) + Send + Sync),
    ) -> Result<(), NotReady>;

    /// Whether `image` is on `snapshotter` in the form of which the files come to be in guests
    /// only, so that as a volume, mounted on the host, it would be empty.
    ///
    /// # Errors
    /// [`NotReady`].
    async fn is_remote(&self, image: &str, snapshotter: &str) -> Result<bool, NotReady>;
}
