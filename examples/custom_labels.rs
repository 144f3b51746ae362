// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Custom labels on the snapshots of an image: a wrapper annotates the layers, and annotations below
//! `containerd.io/snapshot/` become labels.
//!
//! ```text
//! cargo run -p resnap-examples --bin custom_labels -- SOCKET NAMESPACE IMAGE SNAPSHOTTER
//! ```

// A program that talks to its user.
#![allow(clippy::print_stdout)]

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use async_trait::async_trait;
use resnap_containerd::Client;
use resnap_core::{Descriptor, Scope, SnapshotKey, media_type};
use resnap_handler_wrapper::{Handler, Wrapper};
use resnap_unpacker::{Engine, EngineSettings, Request};

/// The label with the number of a layer in its image; the lowest is 1.
const LAYER_NUMBER: &str = "containerd.io/snapshot/example.com.layer-number";

struct NumberLayers {
    inner: Arc<dyn Handler>,
}

#[async_trait]
impl Handler for NumberLayers {
    async fn handle(&self, descriptor: &Descriptor) -> resnap_core::Result<Vec<Descriptor>> {
        let mut children = self.inner.handle(descriptor).await?;
        let layers = children
            .iter_mut()
            .filter(|child| media_type::is_layer(&child.media_type));
        for (layer, number) in layers.zip(1..) {
            let number: u32 = number;
            layer
                .annotations
                .insert(LAYER_NUMBER.to_owned(), number.to_string());
        }
        Ok(children)
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, namespace, image, snapshotter] = arguments.as_slice() else {
        bail!("usage: custom_labels SOCKET NAMESPACE IMAGE SNAPSHOTTER");
    };
    let ports = Client::connect(socket).await?.ports();
    let engine = Engine::new(ports.clone(), namespace, EngineSettings::default())?;
    let number_layers: Wrapper = Arc::new(|inner| Arc::new(NumberLayers { inner }));
    let mut request = Request::new(image).on(snapshotter);
    request.wrappers.push(number_layers);
    let report = engine.unpack(request).report().await?;

    // A layer that was there before keeps the labels it has.
    let top = report.chain_id.context("the image has no layers")?;
    let snapshotter = ports.snapshotters.snapshotter(snapshotter);
    let info = snapshotter
        .stat(&Scope::new(namespace), &SnapshotKey::from(&top))
        .await?;
    for (key, value) in info.labels {
        println!("{key}={value}");
    }
    Ok(())
}
