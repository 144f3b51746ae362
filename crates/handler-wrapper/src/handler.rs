// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Handlers, which return the children of a descriptor (containerd `core/images/handlers.go`).

use std::sync::Arc;

use async_trait::async_trait;
use resnap_core::{ContentReader, Descriptor, Result, Scope, media_type};

use crate::document::Documents;

/// Returns the children of descriptors.
///
/// Cancel-safe: a handler only reads.
#[async_trait]
pub trait Handler: Send + Sync {
    /// Returns the children of `descriptor`, in the order of the image; none for a leaf.
    ///
    /// # Errors
    /// Depends on the handler; [`Children`] fails as [`rootfs`](crate::rootfs) does.
    async fn handle(&self, descriptor: &Descriptor) -> Result<Vec<Descriptor>>;
}

/// Wraps a handler to change its result.
pub type Wrapper = Arc<dyn Fn(Arc<dyn Handler>) -> Arc<dyn Handler> + Send + Sync>;

/// Reads the children from the content store: the manifests of an index, the config and then the
/// layers of a manifest, and nothing for any other descriptor.
#[derive(Clone)]
pub struct Children {
    content: Arc<dyn ContentReader>,
    scope: Scope,
}

impl Children {
    /// Returns a handler that reads from `content` in `scope`.
    pub fn new(content: Arc<dyn ContentReader>, scope: Scope) -> Self {
        Self { content, scope }
    }
}

impl std::fmt::Debug for Children {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Children")
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Handler for Children {
    async fn handle(&self, descriptor: &Descriptor) -> Result<Vec<Descriptor>> {
        let mut documents = Documents::new(self.content.as_ref(), &self.scope);
        if media_type::is_index(&descriptor.media_type) {
            let index = documents.index(descriptor).await?;
            return Ok(index.manifests);
        }
        if media_type::is_manifest(&descriptor.media_type) {
            let manifest = documents.manifest(descriptor).await?;
            return Ok(std::iter::once(manifest.config)
                .chain(manifest.layers)
                .collect());
        }
        Ok(Vec::new())
    }
}
