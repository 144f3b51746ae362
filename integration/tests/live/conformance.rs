// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! containerd keeps the contracts that the engine and its simulated backend rely on.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures::StreamExt as _;
use resnap_containerd::Client;
use resnap_core::testing::conformance::{self, Given};
use resnap_core::{Container, Digest, Image, Labels, Scope, SnapshotKey};
use resnap_integration::image::{digest, hello};
use resnap_unpacker::{Engine, EngineSettings, Request};

use crate::blob::ingest;
use crate::node::{Node, unique};
use crate::suite::live_tests;

live_tests! {
    Containerd: conformance_of_overlayfs,
    Containerd: conformance_of_native,
    Erofs: conformance_of_erofs,
    Containerd: stalled_reads_do_not_block_others,
}

fn conformance_of_overlayfs(node: &Node) -> Result<()> {
    conforms(node, "overlayfs")
}

fn conformance_of_native(node: &Node) -> Result<()> {
    conforms(node, "native")
}

fn conformance_of_erofs(node: &Node) -> Result<()> {
    conforms(node, "erofs")
}

/// More than HTTP/2 implementations let one connection have under way by default.
const WAITING: usize = 16;

/// Keeps streams of a large blob open without reading them, as layers do that wait for memory, and
/// reads another blob over the same connection.
fn stalled_reads_do_not_block_others(node: &Node) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    let ctr = || node.containerd.ctr(&node.namespace);
    let large = ingest(node, ctr, &vec![7; 8 << 20])?.parse::<Digest>()?;
    let small = image.target().parse::<Digest>()?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let socket = node.containerd.socket().to_string_lossy();
        let content = Client::connect(&socket).await?.ports().content;
        let scope = Scope::new(&node.namespace);
        let mut waiting = Vec::new();
        for _ in 0..WAITING {
            waiting.push(content.open(&scope, &large).await?);
        }
        // So that the pieces that are sent ahead have come.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let read = async {
            let mut stream = content.open(&scope, &small).await?;
            let mut bytes = Vec::new();
            while let Some(piece) = stream.next().await {
                bytes.extend_from_slice(&piece?);
            }
            anyhow::Ok(bytes)
        };
        let bytes = tokio::time::timeout(Duration::from_secs(10), read).await??;
        ensure!(digest(&bytes) == small.as_str(), "another blob");
        Ok(())
    })
}

fn conforms(node: &Node, snapshotter: &str) -> Result<()> {
    let image = hello()?;
    node.import(&image)?;
    let id = unique("conformance");
    let create = ["containers", "create", "--snapshotter", snapshotter];
    node.ctr(&[&create[..], &[&image.reference, &id]].concat())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let socket = node.containerd.socket().to_string_lossy();
        let ports = Client::connect(&socket).await?.ports();
        let engine = Engine::new(ports.clone(), &node.namespace, EngineSettings::default())?;
        let plan = engine.plan(&Request::new(&image.reference)).await?;
        let layers = plan.layers.clone().into_iter();
        let collector = Node {
            containerd: Arc::clone(&node.containerd),
            namespace: node.namespace.clone(),
        };
        let given = Given {
            ports,
            scope: Scope::new(&node.namespace),
            snapshotter: snapshotter.to_owned(),
            image: Image {
                name: plan.image.name.clone(),
                target: plan.image.target.clone(),
                labels: Labels::new(),
            },
            config: plan.config.digest.clone(),
            layers: layers
                .map(|layer| (layer.descriptor, layer.diff_id))
                .collect(),
            // ctr names the snapshot like the container.
            container: Container {
                id: id.clone(),
                snapshotter: snapshotter.to_owned(),
                snapshot: SnapshotKey::from(id),
            },
            collect_garbage: Box::new(move || {
                let collected = tokio::task::block_in_place(|| collector.collect_garbage());
                assert!(collected.is_ok(), "{collected:?}");
            }),
        };
        conformance::all(&given).await;
        Ok(())
    })
}
