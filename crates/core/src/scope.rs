// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The namespace and lease of a call.

use std::sync::Arc;

/// Where and under what a call is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The containerd namespace.
    pub namespace: Arc<str>,
    /// The lease that keeps what the call makes.
    pub lease: Option<LeaseId>,
}

impl Scope {
    /// Calls in `namespace`, under no lease.
    pub fn new(namespace: &str) -> Self {
        Self {
            namespace: namespace.into(),
            lease: None,
        }
    }

    /// The same under `lease`.
    #[must_use]
    pub fn leased(&self, lease: LeaseId) -> Self {
        Self {
            namespace: Arc::clone(&self.namespace),
            lease: Some(lease),
        }
    }
}

/// The name of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LeaseId(pub Arc<str>);
