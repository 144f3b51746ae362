// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The images of archives and layouts.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::path::Path;

use futures::TryStreamExt as _;
use resnap_archive::{ArchiveForm, ArchiveSource};
use resnap_core::{BlobSource as _, Descriptor, Digest, Kind, MissingBlob, media_type};
use serde_json::{Value, json};

fn archive(path: &Path, files: &[(&str, &[u8])]) {
    let mut archive = tar::Builder::new(File::create(path).unwrap());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, *bytes).unwrap();
    }
    archive.finish().unwrap();
}

async fn read(source: &ArchiveSource, descriptor: &Descriptor) -> Vec<u8> {
    let blob = MissingBlob::new(descriptor.clone(), None);
    let mut bytes = Vec::new();
    let mut stream = source.open(&blob, 0).await.unwrap();
    while let Some(piece) = stream.try_next().await.unwrap() {
        bytes.extend_from_slice(&piece);
    }
    bytes
}

#[tokio::test]
async fn saved_images_get_a_manifest_of_their_config_and_layers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved.tar");
    let diff_id = Digest::sha256(b"layer");
    let config = json!({"rootfs": {"diff_ids": [diff_id]}}).to_string();
    let saved = json!([
        {"Config": "c.json", "RepoTags": ["web:1", "web:2"], "Layers": ["a/layer.tar"]},
        {"Config": "c.json", "RepoTags": null, "Layers": ["not/there.tar"]},
    ]);
    archive(
        &path,
        &[
            ("a/layer.tar", b"layer"),
            ("c.json", config.as_bytes()),
            ("manifest.json", saved.to_string().as_bytes()),
        ],
    );
    let source = ArchiveSource::new([&path]);
    let images = source.images(&path, ArchiveForm::Docker).await.unwrap();
    let [image] = images.as_slice() else {
        panic!("{images:?}");
    };
    assert_eq!(image.names, ["web:1", "web:2"]);
    let manifest = read(&source, &image.target).await;
    assert_eq!(manifest.len() as u64, image.target.size);
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let found: Descriptor = serde_json::from_value(manifest["config"].clone()).unwrap();
    assert_eq!(read(&source, &found).await, config.as_bytes());
    let layer: Descriptor = serde_json::from_value(manifest["layers"][0].clone()).unwrap();
    assert_eq!((&layer.digest, layer.size), (&diff_id, 5));
    let error = source.images(&path, ArchiveForm::Oci).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
}

#[tokio::test]
async fn the_images_of_a_layout_have_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let entry = |media_type: &str, names: Value| {
        json!({
            "mediaType": media_type, "digest": Digest::sha256(b"x"), "size": 1,
            "annotations": names,
        })
    };
    let index = json!({"schemaVersion": 2, "manifests": [
        entry(
            media_type::OCI_INDEX,
            json!({
                "org.opencontainers.image.ref.name": "1",
                "io.containerd.image.name": "docker.io/library/web:1",
            }),
        ),
        entry(media_type::OCI_MANIFEST, Value::Null),
        entry("application/octet-stream", Value::Null),
    ]});
    fs::write(dir.path().join("oci-layout"), "{}").unwrap();
    fs::write(dir.path().join("index.json"), index.to_string()).unwrap();
    let source = ArchiveSource::new([dir.path()]);
    let images = source.images(dir.path(), ArchiveForm::Oci).await.unwrap();
    let names: Vec<_> = images.iter().map(|image| image.names.join(" ")).collect();
    assert_eq!(names, ["1 docker.io/library/web:1", ""]);
    let nowhere = source.images(&dir.path().join("a"), ArchiveForm::Oci).await;
    assert_eq!(nowhere.unwrap_err().kind(), Kind::NotFound);
}
