// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The content store, for documents that a hostile image may make large.

use std::sync::Arc;

use async_trait::async_trait;
use resnap_core::{ByteStream, ContentInfo, ContentReader, Digest, Result, Scope, Work};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// How many large documents are hashed or parsed at once: one more than one that takes long.
const AT_ONCE: usize = 2;

/// A content store, of which large documents are worked on in threads where nobody else waits.
#[derive(Clone)]
pub(crate) struct OffLoop {
    inner: Arc<dyn ContentReader>,
    slots: Arc<Semaphore>,
}

impl OffLoop {
    pub(crate) fn new(inner: Arc<dyn ContentReader>) -> Self {
        Self {
            inner,
            slots: Arc::new(Semaphore::new(AT_ONCE)),
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

    async fn work(&self, work: Work) {
        let slot = Arc::clone(&self.slots).acquire_owned().await;
        let working = spawn_blocking(move || {
            // With it, as who waits may go.
            let _slot = slot;
            work();
        });
        // A panic is told by the work's having no result.
        let _ = working.await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    use futures::future::join_all;
    use resnap_core::testing::Simulated;
    use resnap_core::work_on;

    use super::*;

    #[tokio::test]
    async fn large_documents_are_worked_on_elsewhere_and_few_at_once() {
        let content = OffLoop::new(Arc::new(Simulated::new()));
        let here = thread::current().id();
        let small = work_on(&content, vec![0; 100], |_| thread::current().id()).await;
        assert_eq!(small.unwrap(), here);
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let works = (0..8).map(|_| {
            let (now, most, content) = (Arc::clone(&now), Arc::clone(&most), &content);
            work_on(content, vec![0; 1 << 20], move |_| {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(20));
                now.fetch_sub(1, Ordering::SeqCst);
                thread::current().id()
            })
        });
        for thread in join_all(works).await {
            assert_ne!(thread.unwrap(), here);
        }
        assert_eq!(most.load(Ordering::SeqCst), AT_ONCE);
    }
}
