// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The interface between the CRI proxy and the unpack engine.

use async_trait::async_trait;

use crate::{Error, PodId};

/// The preference among manifests of an index that have the same platform and differ in OS features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ManifestPreference {
    /// The manifest in the snapshotter's own format if all of it is on the node, otherwise the plain
    /// one.
    #[default]
    Best,
    /// The plain manifest, which containerd uses for containers since 2.3.
    Plain,
    /// The first manifest, which containerd up to 2.2 uses for containers: it ignores features, unless
    /// it was built with a newer containerd/platforms. If the image is named by its ID, the ID decides.
    First,
}

impl ManifestPreference {
    /// Returns the preference of a containerd of this version (`2.1.9`, `v2.4.0-beta.0`, `1.7.24~ds1`)
    /// for containers: containerd/platforms considers features since 1.0.0-rc.4. An unreadable version
    /// counts as a newer one.
    pub fn by_containerd(version: &str) -> Self {
        match major_minor(version) {
            Some(version) if version < (2, 3) => Self::First,
            _ => Self::Plain,
        }
    }
}

/// Returns major, minor and patch of a containerd version such as `2.1.9`, `v2.4.0-beta.0` or `1.7.24~ds1`;
/// no patch if that is no number.
pub fn version_parts(version: &str) -> Option<(u32, u32, Option<u32>)> {
    let mut parts = version.trim_start_matches('v').split('.');
    let (major, minor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let patch = parts.next().unwrap_or_default();
    let digits = patch.split(|char: char| !char.is_ascii_digit()).next();
    Some((major, minor, digits.and_then(|digits| digits.parse().ok())))
}

/// Returns major and minor of a containerd version.
pub fn major_minor(version: &str) -> Option<(u32, u32)> {
    version_parts(version).map(|(major, minor, _)| (major, minor))
}

/// Returns whether this containerd, from 2.2.2 on, unpacks an image without the parents of its layers
/// for a container on a snapshotter that does not have it (`internal/cri/opts/container.go`).
pub fn unpacks_without_parents(version: &str) -> bool {
    let parts = version_parts(version);
    parts.is_some_and(|(major, minor, patch)| (major, minor, patch.unwrap_or(0)) >= (2, 2, 2))
}

/// A request to make an image ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnsureRequest<'a> {
    /// The reference or image ID of the CRI request.
    pub image: &'a str,
    /// The reference that the user wrote, for an image that is known by its ID only.
    pub reference: Option<&'a str>,
    /// The target snapshotter.
    pub snapshotter: &'a str,
    /// The pod that needs it.
    pub pod: Option<&'a PodId>,
    /// Whether to repair layers that another client unpacked without labels.
    pub repair: bool,
    /// The preference among its manifests.
    pub pick: ManifestPreference,
}

/// The progress of an unpack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EnsureProgress {
    /// Layers that are ready.
    pub done: usize,
    /// Layers of the image.
    pub layers: usize,
    /// The share of the bytes of the layers' blobs that have been read, from 0 to 100.
    pub percent: u8,
}

/// The reason why an image is not ready.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotReady {
    /// There is no such image, and nothing was tried.
    #[error("no such image")]
    Unknown,
    /// All layers exist, some without the labels that the snapshotter needs: another client unpacked
    /// them, and they were not or could not be repaired. Containers can be created from them, with the
    /// same result as without resnap.
    #[error(transparent)]
    Unlabelled(Error),
    /// Layers exist without the proof that the snapshotter's layers need. No container may be created
    /// from them.
    #[error(transparent)]
    Unproven(Error),
    /// Layers are missing, and a registry that was asked for them wants credentials or other ones (401
    /// or 403).
    #[error(transparent)]
    Denied(Error),
    /// The unpack failed for another reason.
    #[error(transparent)]
    Failed(Error),
}

/// Makes images ready.
#[async_trait]
pub trait UnpackService: Send + Sync {
    /// Waits until an image is ready, and passes its progress to `on_progress`. Dropping the future stops only
    /// the waiting.
    ///
    /// # Errors
    /// [`NotReady`].
    async fn ensure(
        &self,
        request: EnsureRequest<'_>,
        on_progress: &(dyn Fn(EnsureProgress) + Send + Sync),
    ) -> Result<(), NotReady>;

    /// Returns whether all layers of `image` are on `snapshotter`, with the labels that it needs.
    ///
    /// # Errors
    /// [`NotReady`].
    async fn is_ready(
        &self,
        image: &str,
        snapshotter: &str,
        pick: ManifestPreference,
    ) -> Result<bool, NotReady>;

    /// Returns whether an image that was found ready on `snapshotter` is ready still, as [`Self::ensure`] would
    /// find it. `false` also stands for what is not known, which only `ensure` tells. Waits for the backend, but
    /// keeps no thread busy, so it may be polled in a thread that others wait for.
    async fn is_still_ready(
        &self,
        _image: &str,
        _snapshotter: &str,
        _pick: ManifestPreference,
    ) -> bool {
        false
    }

    /// Returns whether the files of `image` on `snapshotter` appear in guests only. Mounted on the host
    /// as a volume, such an image is empty.
    ///
    /// # Errors
    /// [`NotReady`].
    async fn is_remote(&self, image: &str, snapshotter: &str) -> Result<bool, NotReady>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_containerd_are_read() {
        for (version, expected) in [
            ("2.1.9", Some((2, 1, Some(9)))),
            ("v2.4.0-beta.0", Some((2, 4, Some(0)))),
            ("1.7.24~ds1", Some((1, 7, Some(24)))),
            ("2.2", Some((2, 2, None))),
            ("2.2.x", Some((2, 2, None))),
            ("2", None),
            ("", None),
        ] {
            assert_eq!(version_parts(version), expected, "{version}");
        }
    }

    #[test]
    fn containerd_unpacks_without_parents_from_2_2_2_on() {
        for (version, expected) in [
            ("1.7.24~ds1", false),
            ("v2.1.9", false),
            ("2.2.1", false),
            ("2.2.2", true),
            ("v2.2.7-rc.1", true),
            ("2.3.0", true),
            ("v2.4.0-beta.0", true),
            ("unknown", false),
        ] {
            assert_eq!(unpacks_without_parents(version), expected, "{version}");
        }
    }
}
