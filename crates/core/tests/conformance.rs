// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The simulated backend keeps the contracts that a real one keeps.

use resnap_core::testing::{Behaviour, Simulated, SimulatedImage, SimulatedLayer, conformance};
use resnap_core::{Container, Image, Labels, Scope, SnapshotKey};

#[tokio::test(start_paused = true)]
async fn the_simulated_backend_conforms() {
    let simulated = Simulated::new();
    simulated.add_snapshotter("overlayfs", Behaviour::Ordinary);
    let image = SimulatedImage::new(["base", "middle", "top"].map(SimulatedLayer::new));
    simulated.add_image("conformance", "docker.io/library/web:1", &image);
    let container = Container {
        id: "web".to_owned(),
        snapshotter: "overlayfs".to_owned(),
        snapshot: SnapshotKey::from("web".to_owned()),
    };
    simulated.add_container("conformance", container.clone());
    let layers = image.layers.iter();
    let given = conformance::Given {
        ports: simulated.ports(),
        scope: Scope::new("conformance"),
        snapshotter: "overlayfs".to_owned(),
        image: Image {
            name: "docker.io/library/web:1".to_owned(),
            target: image.manifest.clone(),
            labels: Labels::new(),
        },
        config: image.config.digest.clone(),
        layers: layers
            .map(|layer| (layer.descriptor.clone(), layer.diff_id.clone()))
            .collect(),
        container,
        collect_garbage: Box::new(move || simulated.collect_garbage()),
    };
    conformance::all(&given).await;
}
