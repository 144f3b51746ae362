// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The ports of a simulated containerd.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;

use super::garbage;
use super::snapshots::{self, Commit, Prepare};
use super::state::State;
use super::{Operation, Simulated};
use crate::{
    Applied, Applier, ByteStream, ChainId, Container, Containers, ContentInfo, ContentLabeler,
    ContentReader, Descriptor, DiffId, Digest, Image, Images, Introspection, Labels, LeaseId,
    LeaseInfo, Leases, Mount, Platform, Resource, Result, Scope, SnapshotInfo, SnapshotKey,
    Snapshotter, SnapshotterInfo, Snapshotters, Usage,
};

/// The size of the pieces of content, small enough that there are several.
const PIECE_BYTES: usize = 64;

#[async_trait]
impl Images for Simulated {
    async fn get(&self, scope: &Scope, name: &str) -> Result<Image> {
        let (scope, wanted) = (scope.clone(), name.to_owned());
        self.call(Operation::GetImage, name, move |state| {
            state.namespace(&scope.namespace).image(&wanted)
        })
        .await
    }

    async fn list(&self, scope: &Scope) -> Result<Vec<Image>> {
        let namespace = Arc::clone(&scope.namespace);
        self.call(Operation::ListImages, &scope.namespace, move |state| {
            let namespace = state.namespace(&namespace);
            let names = namespace.images.keys();
            names.map(|name| namespace.image(name)).collect()
        })
        .await
    }
}

#[async_trait]
impl ContentReader for Simulated {
    async fn info(&self, scope: &Scope, digest: &Digest) -> Result<ContentInfo> {
        let (scope, wanted) = (scope.clone(), digest.clone());
        self.call(Operation::ContentInfo, digest.as_str(), move |state| {
            state.namespace(&scope.namespace).content_info(&wanted)
        })
        .await
    }

    async fn open(&self, scope: &Scope, digest: &Digest) -> Result<ByteStream> {
        let (scope, wanted) = (scope.clone(), digest.clone());
        let bytes = self
            .call(Operation::OpenContent, digest.as_str(), move |state| {
                let (bytes, _) = state.namespace(&scope.namespace).blob(&wanted)?;
                Ok(bytes.clone())
            })
            .await?;
        let pieces: Vec<_> = bytes
            .chunks(PIECE_BYTES)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        Ok(futures::stream::iter(pieces).boxed())
    }
}

#[async_trait]
impl ContentLabeler for Simulated {
    async fn set_label(
        &self,
        scope: &Scope,
        digest: &Digest,
        key: &str,
        value: &str,
    ) -> Result<()> {
        let (scope, wanted) = (scope.clone(), digest.clone());
        let (key, value) = (key.to_owned(), value.to_owned());
        self.call(Operation::SetLabel, digest.as_str(), move |state| {
            let namespace = state.namespace(&scope.namespace);
            namespace.set_label(&wanted, key, value)
        })
        .await
    }

    async fn remove_label(&self, scope: &Scope, digest: &Digest, key: &str) -> Result<()> {
        let (scope, wanted, key) = (scope.clone(), digest.clone(), key.to_owned());
        self.call(Operation::RemoveLabel, digest.as_str(), move |state| {
            let namespace = state.namespace(&scope.namespace);
            namespace.remove_label(&wanted, &key)
        })
        .await
    }

    async fn list(&self, scope: &Scope) -> Result<BTreeMap<Digest, ContentInfo>> {
        let namespace = Arc::clone(&scope.namespace);
        self.call(Operation::ListContent, &scope.namespace, move |state| {
            let namespace = state.namespace(&namespace);
            let digests = namespace.blobs.keys();
            digests
                .map(|digest| Ok((digest.clone(), namespace.content_info(digest)?)))
                .collect()
        })
        .await
    }
}

impl Snapshotters for Simulated {
    fn snapshotter(&self, name: &str) -> Arc<dyn Snapshotter> {
        Arc::new(SimulatedSnapshotter {
            simulated: self.clone(),
            name: name.to_owned(),
        })
    }
}

struct SimulatedSnapshotter {
    simulated: Simulated,
    name: String,
}

#[async_trait]
impl Snapshotter for SimulatedSnapshotter {
    async fn stat(&self, scope: &Scope, key: &SnapshotKey) -> Result<SnapshotInfo> {
        let (scope, name, wanted) = (scope.clone(), self.name.clone(), key.clone());
        self.simulated
            .call(Operation::Stat, key.as_str(), move |state| {
                snapshots::stat(state, &scope, &name, &wanted)
            })
            .await
    }

    async fn prepare(
        &self,
        scope: &Scope,
        key: &SnapshotKey,
        parent: Option<&ChainId>,
        labels: &Labels,
    ) -> Result<Vec<Mount>> {
        let prepare = Prepare {
            scope: scope.clone(),
            snapshotter: self.name.clone(),
            key: key.clone(),
            parent: parent.map(SnapshotKey::from),
            labels: labels.clone(),
        };
        self.simulated
            .call(Operation::Prepare, key.as_str(), move |state| {
                snapshots::prepare(state, prepare)
            })
            .await
    }

    async fn view(&self, scope: &Scope, key: &SnapshotKey, parent: &ChainId) -> Result<Vec<Mount>> {
        let (scope, name, wanted) = (scope.clone(), self.name.clone(), key.clone());
        let parent = SnapshotKey::from(parent);
        self.simulated
            .call(Operation::View, key.as_str(), move |state| {
                snapshots::view(state, &scope, &name, &wanted, &parent)
            })
            .await
    }

    async fn commit(
        &self,
        scope: &Scope,
        name: &ChainId,
        key: &SnapshotKey,
        labels: &Labels,
    ) -> Result<()> {
        let commit = Commit {
            scope: scope.clone(),
            snapshotter: self.name.clone(),
            name: name.into(),
            key: key.clone(),
            labels: labels.clone(),
        };
        self.simulated
            .call(Operation::Commit, key.as_str(), move |state| {
                snapshots::commit(state, commit)
            })
            .await
    }

    async fn remove(&self, scope: &Scope, key: &SnapshotKey) -> Result<()> {
        let (scope, name, wanted) = (scope.clone(), self.name.clone(), key.clone());
        self.simulated
            .call(Operation::Remove, key.as_str(), move |state| {
                snapshots::remove(state, &scope, &name, &wanted)
            })
            .await
    }

    async fn set_labels(&self, scope: &Scope, key: &SnapshotKey, labels: &Labels) -> Result<()> {
        let (scope, name, wanted) = (scope.clone(), self.name.clone(), key.clone());
        let labels = labels.clone();
        self.simulated
            .call(Operation::LabelSnapshot, key.as_str(), move |state| {
                snapshots::set_labels(state, &scope, &name, &wanted, labels)
            })
            .await
    }

    async fn children(&self, scope: &Scope, parent: &SnapshotKey) -> Result<Vec<SnapshotInfo>> {
        let (scope, name, wanted) = (scope.clone(), self.name.clone(), parent.clone());
        self.simulated
            .call(Operation::Children, parent.as_str(), move |state| {
                snapshots::children(state, &scope, &name, &wanted)
            })
            .await
    }

    async fn list(&self, scope: &Scope) -> Result<Vec<SnapshotInfo>> {
        let (scope, name) = (scope.clone(), self.name.clone());
        self.simulated
            .call(Operation::ListSnapshots, &self.name, move |state| {
                snapshots::list(state, &scope, &name)
            })
            .await
    }

    async fn usage(&self, scope: &Scope, key: &SnapshotKey) -> Result<Usage> {
        let (scope, name, wanted) = (scope.clone(), self.name.clone(), key.clone());
        self.simulated
            .call(Operation::SnapshotUsage, key.as_str(), move |state| {
                snapshots::usage(state, &scope, &name, &wanted)
            })
            .await
    }
}

#[async_trait]
impl Applier for Simulated {
    async fn apply(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        _sync_fs: bool,
    ) -> Result<Applied> {
        let digest = &layer.digest;
        let work = {
            let (scope, digest, mounts) = (scope.clone(), digest.clone(), mounts.to_vec());
            move |state: &mut State| snapshots::apply(state, &scope, &digest, &mounts)
        };
        let applied = self.call(Operation::Apply, digest.as_str(), work).await;
        if applied.is_err() {
            let torn = DiffId(Digest::sha256(b"a part of a layer"));
            // The snapshot may have been removed.
            let _ = snapshots::write(&mut self.state(), scope, mounts, torn);
        }
        applied
    }
}

#[async_trait]
impl Leases for Simulated {
    async fn create(&self, scope: &Scope, lease: &LeaseId, labels: &Labels) -> Result<()> {
        let (scope, id, labels) = (scope.clone(), lease.clone(), labels.clone());
        let now = self.now();
        self.call(Operation::CreateLease, &lease.0, move |state| {
            let namespace = state.namespace(&scope.namespace);
            namespace.create_lease(&id, labels, now)
        })
        .await
    }

    async fn delete(&self, scope: &Scope, lease: &LeaseId) -> Result<()> {
        let (scope, id) = (scope.clone(), lease.clone());
        self.call(Operation::DeleteLease, &lease.0, move |state| {
            state.namespace(&scope.namespace).delete_lease(&id)
        })
        .await
    }

    async fn add_resource(
        &self,
        scope: &Scope,
        lease: &LeaseId,
        resource: &Resource,
    ) -> Result<()> {
        let (scope, id, resource) = (scope.clone(), lease.clone(), resource.clone());
        self.call(Operation::AddResource, &lease.0, move |state| {
            state.namespace(&scope.namespace).lease(&id)?.add(resource);
            Ok(())
        })
        .await
    }

    async fn list(&self, scope: &Scope, label: Option<&str>) -> Result<Vec<LeaseInfo>> {
        let (namespace, wanted) = (Arc::clone(&scope.namespace), label.map(str::to_owned));
        self.call(Operation::ListLeases, &scope.namespace, move |state| {
            Ok(state.namespace(&namespace).leases(wanted.as_deref()))
        })
        .await
    }

    async fn resources(&self, scope: &Scope, lease: &LeaseId) -> Result<Vec<Resource>> {
        let (scope, id) = (scope.clone(), lease.clone());
        self.call(Operation::LeaseResources, &lease.0, move |state| {
            Ok(state.namespace(&scope.namespace).lease(&id)?.resources())
        })
        .await
    }

    async fn collect_garbage(&self, scope: &Scope) -> Result<()> {
        let now = self.now();
        self.call(Operation::CollectGarbage, &scope.namespace, move |state| {
            garbage::collect(state, now);
            Ok(())
        })
        .await
    }
}

#[async_trait]
impl Containers for Simulated {
    async fn list(&self, scope: &Scope) -> Result<Vec<Container>> {
        let namespace = Arc::clone(&scope.namespace);
        self.call(Operation::ListContainers, &scope.namespace, move |state| {
            Ok(state.namespace(&namespace).containers.clone())
        })
        .await
    }
}

#[async_trait]
impl Introspection for Simulated {
    async fn content_root(&self) -> Result<Option<String>> {
        Ok(None)
    }

    async fn identity(&self) -> Result<String> {
        self.call(Operation::Introspect, "identity", |_| {
            Ok("simulated".to_owned())
        })
        .await
    }

    async fn snapshotters(&self) -> Result<Vec<SnapshotterInfo>> {
        self.call(Operation::Introspect, "snapshotters", |state| {
            let names = state.snapshotters.keys();
            Ok(names
                .map(|name| SnapshotterInfo {
                    name: name.clone(),
                    capabilities: Vec::new(),
                    platforms: vec![Platform::host()],
                    root: None,
                    failure: None,
                })
                .collect())
        })
        .await
    }
}
