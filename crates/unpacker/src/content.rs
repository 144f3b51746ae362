// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The content store, for documents that a hostile image may make large.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use resnap_core::{
    ByteStream, ContentInfo, ContentReader, Digest, LargeReadPermit, Result, Scope, Work,
};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// The limit on images with large documents that are read, parsed or in use at once. It allows
/// others to proceed beside one slow image. Each may hold a document of 8 MiB and its parsed form.
const LARGE_AT_ONCE: usize = 2;

/// A content store that processes large documents on blocking threads, for a bounded number of
/// images at once. Small documents are not delayed.
#[derive(Clone)]
pub(crate) struct OffLoop {
    inner: Arc<dyn ContentReader>,
    large: Arc<Semaphore>,
}

impl OffLoop {
    pub(crate) fn new(inner: Arc<dyn ContentReader>) -> Self {
        Self {
            inner,
            large: Arc::new(Semaphore::new(LARGE_AT_ONCE)),
        }
    }
}

#[async_trait]
impl ContentReader for OffLoop {
    async fn info(&self, scope: &Scope, digest: &Digest) -> Result<ContentInfo> {
        self.inner.info(scope, digest).await
    }

    async fn open(&self, scope: &Scope, digest: &Digest) -> Result<ByteStream> {
        self.inner.open(scope, digest).await
    }

    async fn existing(&self, scope: &Scope, digests: &[Digest]) -> Result<HashSet<Digest>> {
        self.inner.existing(scope, digests).await
    }

    async fn work(&self, work: Work) {
        // A panic shows as a missing result.
        let _ = spawn_blocking(work).await;
    }

    async fn admit_large_read(&self) -> LargeReadPermit {
        Box::new(Arc::clone(&self.large).acquire_owned().await)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use futures::FutureExt as _;
    use futures::future::join_all;
    use resnap_core::testing::Simulated;
    use resnap_core::work_on;

    use super::*;

    #[tokio::test]
    async fn large_documents_are_worked_on_elsewhere() {
        let content = OffLoop::new(Arc::new(Simulated::new()));
        let here = thread::current().id();
        let small = work_on(&content, vec![0; 100], |_| thread::current().id()).await;
        assert_eq!(small.unwrap(), here);
        let large = work_on(&content, vec![0; 1 << 20], |_| thread::current().id()).await;
        assert_ne!(large.unwrap(), here);
    }

    #[tokio::test]
    async fn few_images_have_large_documents_at_once() {
        let content = OffLoop::new(Arc::new(Simulated::new()));
        let held: Vec<LargeReadPermit> =
            join_all((0..LARGE_AT_ONCE).map(|_| content.admit_large_read())).await;
        assert!(content.admit_large_read().now_or_never().is_none());
        drop(held);
        assert!(content.admit_large_read().now_or_never().is_some());
    }
}
