// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Image pulls by containerd. Concurrent requests for one image share a pull.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};

use crate::backend::{Backend, Endpoint};
use crate::grpc::Status;
use crate::messages::{Empty, ImageSpec, PullImageRequest};
use crate::runtime::ServiceRuntime;

/// The running pulls.
#[derive(Debug, Default)]
pub(crate) struct Pulls(Mutex<HashMap<String, Pull>>);

type Pull = Shared<BoxFuture<'static, Result<(), Status>>>;

impl Pulls {
    fn running(&self) -> MutexGuard<'_, HashMap<String, Pull>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes containerd pull `image`, without credentials. The pull runs in `runtime`; dropping the
/// future stops only the waiting.
pub(crate) async fn pull(
    pulls: &Arc<Pulls>,
    endpoint: &Arc<Endpoint>,
    runtime: &ServiceRuntime,
    image: &str,
) -> Result<(), Status> {
    let start = || {
        let (pulls, endpoint) = (Arc::clone(pulls), Arc::clone(endpoint));
        let image = image.to_owned();
        let pull = async move {
            let pulled = pull_image(&Backend::detached(&endpoint), &image).await;
            pulls.running().remove(&image);
            pulled
        };
        let pull = pull.boxed().shared();
        runtime.spawn(pull.clone().map(drop));
        pull
    };
    let pull = {
        let mut running = pulls.running();
        running
            .entry(image.to_owned())
            .or_insert_with(start)
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
    backend.unary::<Empty>(path, &request).await.map(drop)
}
