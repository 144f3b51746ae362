// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images of the local engine that are being made ready. Each gets its record when it is: until then its name leads
//! to what it led to before, for everybody else.

use std::sync::Arc;

use async_trait::async_trait;
use resnap_core::{Image, Images, Ports, Result, Scope};
use resnap_local::Local;

/// The images of a command, in the store that is to have them.
#[derive(Debug, Clone)]
pub(crate) struct PendingImages {
    store: Local,
    images: Arc<[Image]>,
}

impl PendingImages {
    /// Keeps the content of images, which are not recorded.
    pub(crate) async fn new(store: Local, images: Vec<Image>) -> Result<Self> {
        let this = Self {
            store,
            images: images.into(),
        };
        this.keep().await?;
        Ok(this)
    }

    async fn keep(&self) -> Result<()> {
        for image in &*self.images {
            self.store.keep_image(image).await?;
        }
        Ok(())
    }

    pub(crate) fn store(&self) -> &Local {
        &self.store
    }

    /// Records an image that is ready, if it is one of these.
    pub(crate) async fn record(&self, name: &str) -> Result<()> {
        match self.find(name) {
            Some(image) => self.store.set_image(image).await,
            None => Ok(()),
        }
    }

    /// Adds the images to the ports of their store.
    pub(crate) fn add_to(&self, ports: &mut Ports) {
        ports.images = Arc::new(WithPending {
            recorded: Arc::clone(&ports.images),
            pending: self.clone(),
        });
    }

    fn find(&self, name: &str) -> Option<&Image> {
        self.images.iter().find(|image| image.name == name)
    }
}

/// Does work, and keeps the content of images that are pending meanwhile.
pub(crate) async fn keep_during<T>(
    pending: Option<&PendingImages>,
    work: impl Future<Output = T>,
) -> T {
    let Some(pending) = pending else {
        return work.await;
    };
    let keep = async {
        loop {
            tokio::time::sleep(Local::KEPT / 4).await;
            if let Err(error) = pending.keep().await {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "what is fetched may expire");
            }
        }
    };
    tokio::select! {
        done = work => done,
        never = keep => never,
    }
}

/// The images of a store as they will be.
struct WithPending {
    recorded: Arc<dyn Images>,
    pending: PendingImages,
}

#[async_trait]
impl Images for WithPending {
    async fn get(&self, scope: &Scope, name: &str) -> Result<Image> {
        match self.pending.find(name) {
            Some(image) => Ok(image.clone()),
            None => self.recorded.get(scope, name).await,
        }
    }

    async fn list(&self, scope: &Scope) -> Result<Vec<Image>> {
        let mut images = self.recorded.list(scope).await?;
        images.retain(|image| self.pending.find(&image.name).is_none());
        images.extend(self.pending.images.iter().cloned());
        Ok(images)
    }
}
