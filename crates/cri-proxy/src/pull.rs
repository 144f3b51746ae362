// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Pulls, each done once for all who wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use tokio::runtime::Handle;

use crate::grpc::Status;
use crate::messages::{ImageSpec, Nothing, PullImageRequest};
use crate::pass::{Backend, ProxyState};

/// The pulls that run.
#[derive(Debug, Default)]
pub(crate) struct Pulls(Mutex<HashMap<String, Pull>>);

type Pull = Shared<BoxFuture<'static, Result<(), Status>>>;

impl Pulls {
    fn running(&self) -> MutexGuard<'_, HashMap<String, Pull>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has containerd pull `image`, without credentials. Dropping the future stops only the waiting.
pub(crate) async fn pull(
    proxy: &Arc<ProxyState>,
    service_runtime: &Handle,
    image: &str,
) -> Result<(), Status> {
    let begin = || {
        let (proxy, image) = (Arc::clone(proxy), image.to_owned());
        let pull = async move {
            let pulled = pull_image(&Backend::detached(&proxy), &image).await;
            proxy.pulls.running().remove(&image);
            pulled
        };
        let pull = pull.boxed().shared();
        service_runtime.spawn(pull.clone());
        pull
    };
    let pull = {
        let mut running = proxy.pulls.running();
        running
            .entry(image.to_owned())
            .or_insert_with(begin)
            .clone()
    };
    pull.await
}

async fn pull_image(backend: &Backend, image: &str) -> Result<(), Status> {
    let image = ImageSpec {
        image: image.to_owned(),
        ..ImageSpec::default()
    };
    let request = PullImageRequest { image: Some(image) };
    let path = "/runtime.v1.ImageService/PullImage";
    backend.unary::<Nothing>(path, &request).await.map(drop)
}
