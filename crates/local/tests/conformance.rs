// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The store keeps the contracts that the engine relies on, as containerd does.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use futures::executor::block_on;
use resnap_applier::ApplierSettings;
use resnap_core::testing::conformance::{self, Given};
use resnap_core::{
    Container, Descriptor, DiffId, Digest, Image, Labels, Leases as _, Scope, SnapshotKey,
    media_type,
};
use resnap_local::Local;

/// Writes a blob, as other tools do that write to a layout.
fn put(root: &Path, media_type: &str, bytes: &[u8]) -> Descriptor {
    let digest = Digest::sha256(bytes);
    let directory = root.join("blobs").join(digest.algorithm());
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join(digest.encoded()), bytes).unwrap();
    Descriptor {
        media_type: media_type.to_owned(),
        size: bytes.len() as u64,
        digest,
        annotations: Default::default(),
        platform: None,
    }
}

/// Returns a layer with one file.
fn layer(name: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(name.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, name.as_bytes()).unwrap();
    tar.into_inner().unwrap()
}

/// Returns an image of two layers in a store at `root`, and its config.
async fn image(root: &Path) -> (Local, Image, Descriptor, Vec<(Descriptor, DiffId)>) {
    let store = Local::open(root).await.unwrap();
    let layers = ["lower", "upper"].map(|name| {
        let tar = layer(name);
        let diff_id = DiffId(Digest::sha256(&tar));
        let blob = put(root, "application/vnd.oci.image.layer.v1.tar", &tar);
        (blob, diff_id)
    });
    let diff_ids: Vec<_> = layers.iter().map(|(_, diff_id)| diff_id).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = put(root, media_type::OCI_CONFIG, config.to_string().as_bytes());
    let blobs: Vec<_> = layers.iter().map(|(blob, _)| blob).collect();
    let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": blobs});
    let target = put(
        root,
        media_type::OCI_MANIFEST,
        manifest.to_string().as_bytes(),
    );
    let image = Image {
        name: "docker.io/library/web:1".to_owned(),
        target,
        labels: Labels::new(),
    };
    store.set_image(&image).await.unwrap();
    // What a pull sets.
    let ports = store.ports(ApplierSettings::default());
    let scope = Scope::new(Local::NAMESPACE);
    let children = [
        ("config", &config),
        ("l.0", &layers[0].0),
        ("l.1", &layers[1].0),
    ];
    for (name, child) in children {
        let key = format!("containerd.io/gc.ref.content.{name}");
        let digest = &image.target.digest;
        let set = ports
            .labeler
            .set_label(&scope, digest, &key, child.digest.as_str());
        set.await.unwrap();
    }
    (store, image, config, layers.to_vec())
}

async fn conforms(snapshotter: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (store, image, config, layers) = image(dir.path()).await;
    let ports = store.ports(ApplierSettings::default());
    let scope = Scope::new(Local::NAMESPACE);
    let key = SnapshotKey::from("web".to_owned());
    let prepared = ports.snapshotters.snapshotter(snapshotter);
    let prepared = prepared.prepare(&scope, &key, None, &Labels::new()).await;
    prepared.unwrap();
    let given = Given {
        ports,
        scope: scope.clone(),
        snapshotter: snapshotter.to_owned(),
        image,
        config: config.digest,
        layers,
        container: Container {
            id: "web".to_owned(),
            snapshotter: snapshotter.to_owned(),
            snapshot: key,
        },
        collect_garbage: Box::new(move || {
            tokio::task::block_in_place(|| block_on(store.collect_garbage(&scope))).unwrap();
        }),
    };
    conformance::all(&given).await;
    let left = std::fs::read_dir(dir.path().join(snapshotter).join("snapshots"));
    assert_eq!(left.unwrap().count(), 1, "only the container's is left");
    for directory in ["ingest", &format!("{snapshotter}/removed")] {
        let left = std::fs::read_dir(dir.path().join(directory)).unwrap();
        assert_eq!(left.count(), 0, "{directory}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_as_layers_conform() {
    conforms("erofs").await;
}

// The directories of layers need the rights of root.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: make test runs it"]
async fn directories_as_layers_conform() {
    conforms("overlayfs").await;
}
