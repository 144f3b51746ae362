// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The locks under which chains are unpacked, shared by all processes of the machine.

use std::sync::Arc;

use resnap_core::{Digest, Error};
use tokio::sync::OnceCell;

use crate::backend::Backend;
use crate::locks::Locks;

/// The chain locks of one backend.
#[derive(Debug)]
pub(crate) struct ChainLocks {
    pub(crate) locks: Locks,
    backend: Arc<Backend>,
    identity: OnceCell<String>,
}

impl ChainLocks {
    pub(crate) fn new(locks: Locks, backend: Arc<Backend>) -> Self {
        Self {
            locks,
            backend,
            identity: OnceCell::new(),
        }
    }

    /// Returns the name of the lock under which the snapshot `key` is made.
    pub(crate) async fn name(&self, snapshotter: &str, key: &str) -> Result<String, Error> {
        let mut backend = "";
        if self.locks.are_shared() {
            let identity = || self.backend.ports.introspection.identity();
            backend = self.identity.get_or_try_init(identity).await?;
        }
        let namespace = &self.backend.scope.namespace;
        let subject = format!("{backend}\n{namespace}\n{snapshotter}\n{key}");
        let digest = Digest::sha256(subject.as_bytes());
        Ok(format!("chain-{}", digest.encoded()))
    }
}
