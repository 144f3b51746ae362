// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Handlers: what answers with the children of a descriptor
//! (containerd `core/images/handlers.go`).

use std::sync::Arc;

use async_trait::async_trait;
use resnap_core::{ContentReader, Descriptor, Result, Scope, media_type};

use crate::document::Documents;

/// Answers with what a descriptor points at.
///
/// Cancel-safe: a handler only reads.
#[async_trait]
pub trait Handler: Send + Sync {
    /// The children of `descriptor`, in the order the image gives them; none for a leaf.
    ///
    /// # Errors
    /// As the handler says; those of [`Children`] are [`rootfs`](crate::rootfs)'s.
    async fn handle(&self, descriptor: &Descriptor) -> Result<Vec<Descriptor>>;
}

/// Puts a handler around another, to change what it answers.
pub type Wrapper = Arc<dyn Fn(Arc<dyn Handler>) -> Arc<dyn Handler> + Send + Sync>;

/// Reads the children from the content store: of an index its manifests, of a manifest its config
/// and then its layers, of anything else none.
#[derive(Clone)]
pub struct Children {
    content: Arc<dyn ContentReader>,
    scope: Scope,
}

impl Children {
    /// Children read from `content` in `scope`.
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
