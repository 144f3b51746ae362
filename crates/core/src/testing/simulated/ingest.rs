// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Writing blobs to a simulated containerd (containerd `core/metadata/content.go`).

use async_trait::async_trait;
use bytes::Bytes;

use super::state::{Namespace, not_found};
use super::{Operation, Simulated};
use crate::{ContentWriter, Descriptor, Error, Ingest, Kind, Labels, Result, Scope};

#[async_trait]
impl ContentWriter for Simulated {
    async fn ingest(
        &self,
        scope: &Scope,
        name: &str,
        descriptor: &Descriptor,
    ) -> Result<Box<dyn Ingest>> {
        let (wanted, ingest) = (scope.clone(), name.to_owned());
        let digest = descriptor.digest.clone();
        let offset = self
            .call(Operation::OpenIngest, name, move |state| {
                let namespace = state.namespace(&wanted.namespace);
                if namespace.blobs.contains_key(&digest) {
                    return Err(Error::new(Kind::AlreadyExists, "open ingest", ingest));
                }
                if let Some(lease) = &wanted.lease {
                    namespace.lease(lease)?.ingests.insert(ingest.clone());
                }
                let entry = namespace.ingests.entry(ingest.clone()).or_default();
                if std::mem::replace(&mut entry.1, true) {
                    let error = Error::new(Kind::Unavailable, "open ingest", ingest);
                    return Err(error.with_source("it is locked"));
                }
                Ok(entry.0.len() as u64)
            })
            .await?;
        Ok(Box::new(OpenIngest {
            simulated: self.clone(),
            scope: scope.clone(),
            name: name.to_owned(),
            descriptor: descriptor.clone(),
            offset,
        }))
    }

    async fn written(&self, scope: &Scope, name: &str) -> Result<u64> {
        let state = &mut self.state();
        let ingest = state.namespace(&scope.namespace).ingests.get(name);
        let (bytes, _) = ingest.ok_or_else(|| not_found("look up ingest", name))?;
        Ok(bytes.len() as u64)
    }

    async fn abort(&self, scope: &Scope, name: &str) -> Result<()> {
        let (scope, ingest) = (scope.clone(), name.to_owned());
        self.call(Operation::AbortIngest, name, move |state| {
            let namespace = state.namespace(&scope.namespace);
            let removed = namespace.ingests.remove(&ingest);
            removed.ok_or_else(|| not_found("abort ingest", &ingest))?;
            release(namespace, &scope, &ingest);
            Ok(())
        })
        .await
    }
}

/// Removes an ingest from the lease of a call.
fn release(namespace: &mut Namespace, scope: &Scope, name: &str) {
    let lease = scope.lease.as_ref();
    if let Some(lease) = lease.and_then(|lease| namespace.leases.get_mut(&lease.0)) {
        lease.ingests.remove(name);
    }
}

struct OpenIngest {
    simulated: Simulated,
    scope: Scope,
    name: String,
    descriptor: Descriptor,
    offset: u64,
}

impl Drop for OpenIngest {
    fn drop(&mut self) {
        let mut state = self.simulated.state();
        let ingests = &mut state.namespace(&self.scope.namespace).ingests;
        if let Some((_, is_locked)) = ingests.get_mut(&self.name) {
            *is_locked = false;
        }
    }
}

#[async_trait]
impl Ingest for OpenIngest {
    fn offset(&self) -> u64 {
        self.offset
    }

    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let (scope, name) = (self.scope.clone(), self.name.clone());
        let length = bytes.len() as u64;
        self.simulated
            .call(Operation::WriteIngest, &self.name, move |state| {
                let ingests = &mut state.namespace(&scope.namespace).ingests;
                let ingest = ingests.get_mut(&name);
                let (written, _) = ingest.ok_or_else(|| not_found("write ingest", name))?;
                written.extend_from_slice(&bytes);
                Ok(())
            })
            .await?;
        self.offset += length;
        Ok(())
    }

    async fn commit(self: Box<Self>, labels: &Labels) -> Result<()> {
        let (scope, name, labels) = (self.scope.clone(), self.name.clone(), labels.clone());
        let descriptor = self.descriptor.clone();
        self.simulated
            .call(Operation::CommitIngest, &self.name, move |state| {
                let namespace = state.namespace(&scope.namespace);
                let ingest = namespace.ingests.get(&name);
                let (bytes, _) = ingest.ok_or_else(|| not_found("commit ingest", &name))?;
                let digest = &descriptor.digest;
                let is_expected = digest.same_algorithm(bytes) == *digest
                    && bytes.len() as u64 == descriptor.size;
                if !is_expected {
                    let error = Error::new(Kind::FailedPrecondition, "commit ingest", &*name);
                    return Err(error.with_source("unexpected digest or size"));
                }
                if let Some(lease) = &scope.lease {
                    namespace.lease(lease)?.content.insert(digest.clone());
                }
                release(namespace, &scope, &name);
                let (bytes, _) = namespace.ingests.remove(&name).unwrap_or_default();
                namespace.blobs.insert(digest.clone(), (bytes, labels));
                Ok(())
            })
            .await
    }
}
