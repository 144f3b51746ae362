// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! containerd keeps the contracts that the engine and its simulated backend rely on.

use std::sync::Arc;

use anyhow::Result;
use resnap_containerd::Client;
use resnap_core::testing::conformance::{self, Given};
use resnap_core::{Container, Image, Scope, SnapshotKey};
use resnap_integration::image::hello;
use resnap_unpacker::{Engine, Request, Settings};

use crate::suite::{Needs, Node, Test, unique};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "conformance_of_overlayfs",
        needs: Needs::Containerd,
        run: |node| conforms(node, "overlayfs"),
    },
    Test {
        name: "conformance_of_native",
        needs: Needs::Containerd,
        run: |node| conforms(node, "native"),
    },
    Test {
        name: "conformance_of_erofs",
        needs: Needs::Erofs,
        run: |node| conforms(node, "erofs"),
    },
];

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
        let engine = Engine::new(ports.clone(), &node.namespace, Settings::default())?;
        let plan = engine.plan(&Request::new(&image.reference, "")).await?;
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
