// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Pulls, each done once for all who wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};

use crate::grpc::Status;
use crate::messages::{ImageSpec, Nothing, PullImageRequest};
use crate::pass::Backend;

/// The pulls that run.
#[derive(Debug, Default)]
pub(crate) struct Pulls(Mutex<HashMap<String, Pull>>);

type Pull = Shared<BoxFuture<'static, Result<(), Status>>>;

/// Has containerd pull `image`, without credentials. Dropping the future stops only the waiting.
pub(crate) async fn pull(backend: &Arc<Backend>, image: &str) -> Result<(), Status> {
    let pull = {
        let mut pulls = backend
            .pulls()
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let begin = || {
            let (backend, image) = (Arc::clone(backend), image.to_owned());
            let pull = async move {
                let pulled = ask(&backend, &image).await;
                let mut pulls = backend
                    .pulls()
                    .0
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                pulls.remove(&image);
                pulled
            };
            let pull = pull.boxed().shared();
            tokio::spawn(pull.clone());
            pull
        };
        pulls.entry(image.to_owned()).or_insert_with(begin).clone()
    };
    pull.await
}

async fn ask(backend: &Backend, image: &str) -> Result<(), Status> {
    let image = ImageSpec {
        image: image.to_owned(),
        ..ImageSpec::default()
    };
    let request = PullImageRequest { image: Some(image) };
    let path = "/runtime.v1.ImageService/PullImage";
    backend.ask::<Nothing>(path, &request).await.map(drop)
}
