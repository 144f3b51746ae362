// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The names of methods.

/// A gRPC method; those that resnap calls have names here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method(&'static str);

impl Method {
    /// Every method there is.
    pub const ANY: Self = Self("any method");

    /// Lists the plugins, and so the snapshotters.
    pub const PLUGINS: Self =
        Self::new("/containerd.services.introspection.v1.Introspection/Plugins");
    /// Looks up one image record.
    pub const IMAGE_GET: Self = Self::new("/containerd.services.images.v1.Images/Get");
    /// Lists the image records.
    pub const IMAGE_LIST: Self = Self::new("/containerd.services.images.v1.Images/List");
    /// Looks up a blob's size and labels.
    pub const CONTENT_INFO: Self = Self::new("/containerd.services.content.v1.Content/Info");
    /// Reads a blob.
    pub const CONTENT_READ: Self = Self::new("/containerd.services.content.v1.Content/Read");
    /// Sets a blob's labels, such as the one for garbage collection.
    pub const CONTENT_UPDATE: Self = Self::new("/containerd.services.content.v1.Content/Update");
    /// Looks up a snapshot.
    pub const STAT: Self = Self::new("/containerd.services.snapshots.v1.Snapshots/Stat");
    /// Makes an active snapshot.
    pub const PREPARE: Self = Self::new("/containerd.services.snapshots.v1.Snapshots/Prepare");
    /// Makes an active snapshot a committed one.
    pub const COMMIT: Self = Self::new("/containerd.services.snapshots.v1.Snapshots/Commit");
    /// Removes a snapshot.
    pub const REMOVE: Self = Self::new("/containerd.services.snapshots.v1.Snapshots/Remove");
    /// Unpacks a layer.
    pub const APPLY: Self = Self::new("/containerd.services.diff.v1.Diff/Apply");
    /// Makes a lease.
    pub const LEASE_CREATE: Self = Self::new("/containerd.services.leases.v1.Leases/Create");
    /// Puts something on a lease.
    pub const LEASE_ADD: Self = Self::new("/containerd.services.leases.v1.Leases/AddResource");
    /// Ends a lease.
    pub const LEASE_DELETE: Self = Self::new("/containerd.services.leases.v1.Leases/Delete");

    /// Returns the method of this full path: `/package.Service/Method`.
    pub const fn new(path: &'static str) -> Self {
        Self(path)
    }

    /// Returns whether a call of `path` is one of this method.
    pub fn is(self, path: &str) -> bool {
        self == Self::ANY || self.0 == path
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}
