// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The identity of a pod.

use std::fmt;

/// The identity of a pod. Displays as its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct PodId {
    /// The pod, as `namespace/name`.
    pub name: String,
    /// The identifier that Kubernetes gave it: a pod of the same name that comes later has another.
    pub uid: String,
}

impl PodId {
    /// Returns the identity of a pod. `name` is `namespace/name`.
    pub fn new(name: impl Into<String>, uid: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            uid: uid.into(),
        }
    }
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
