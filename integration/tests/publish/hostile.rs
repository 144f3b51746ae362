// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Surroundings and images that are in the way.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use resnap_integration::debian::output;
use resnap_integration::image::{digest, host_platform};
use serde_json::Value;

use crate::bed::{Bed, files, image, json, ok, refused};

#[test]
fn what_is_beside_the_result_stays() {
    let bed = Bed::new();
    bed.layout(&image("beside"), "app");
    fs::create_dir(bed.path(".resnap-store")).unwrap();
    fs::write(bed.path(".resnap-store/state.db"), "x").unwrap();
    fs::create_dir_all(bed.path(".resnap-scratch-abcdef/store")).unwrap();
    ok(bed.resnap(&["convert", "--merge", "oci:app", "app.erofs"]));
    assert!(bed.path(".resnap-store/state.db").exists());
    assert!(
        !bed.path(".resnap-scratch-abcdef").exists(),
        "of a killed process"
    );
    // A directory that exists keeps its mode.
    fs::create_dir(bed.path("out")).unwrap();
    fs::set_permissions(bed.path("out"), fs::Permissions::from_mode(0o2770)).unwrap();
    ok(bed.resnap(&["convert", "oci:app", "out"]));
    assert_eq!(
        bed.path("out").metadata().unwrap().permissions().mode() & 0o7777,
        0o2770
    );
    assert_eq!(files(&bed.path("out")).len(), 3);
    refused(
        bed.resnap(&["convert", "--merge", "oci:app", "out"]),
        &["is a directory"],
    );
    for typo in ["oci-archive:x.tar", "docker-archive:x", "docker:/x"] {
        refused(
            bed.resnap(&["convert", "oci:app", typo]),
            &["is no place to write to"],
        );
    }
    refused(
        bed.resnap(&[
            "convert",
            "--platform",
            "linux/s390x",
            "oci:app",
            "oci:new:1",
        ]),
        &["s390x"],
    );
    assert!(!bed.path("new").exists());
}

#[test]
fn files_that_block_hang_nothing() {
    let bed = Bed::new();
    let image = image("blocks");
    bed.layout(&image, "app");
    fs::create_dir(bed.path("cache")).unwrap();
    let fifo = |path: &Path| {
        let _ = fs::remove_file(path);
        output(Command::new("mkfifo").arg(path)).unwrap();
    };
    fifo(&bed.path("cache/.resnap-lock"));
    refused(
        bed.resnap(&["cache", "build", "oci:app", "cache"]),
        &[".resnap-lock"],
    );
    let blob = image.layers[0].digest.replace(':', "/");
    fifo(&bed.path("app/blobs").join(blob));
    refused(
        bed.resnap(&["convert", "oci:app", "out"]),
        &[&image.layers[0].digest],
    );
}

#[test]
fn documents_that_repeat_are_copied_once() {
    let bed = Bed::new();
    bed.layout(&image("bomb"), "app");
    let layout = bed.path("app");
    let mut index: Value =
        serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let plain = index["manifests"][0].clone();
    let mut entries = vec![plain.clone()];
    for _ in 0..6 {
        let nested = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": entries,
        });
        let bytes = nested.to_string();
        let digest = digest(bytes.as_bytes());
        fs::write(layout.join("blobs").join(digest.replace(':', "/")), &bytes).unwrap();
        let entry = serde_json::json!({
            "mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": bytes.len(),
        });
        entries = vec![plain.clone()];
        entries.extend(vec![entry; 60]);
    }
    let mut top = entries[1].clone();
    top["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "bomb" });
    index["manifests"].as_array_mut().unwrap().push(top);
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    let converted = json(bed.resnap(&["convert", "--json", "oci:app:bomb", "oci:copy:1"]));
    assert_eq!(converted["manifests"].as_array().unwrap().len(), 1);
}

#[test]
fn what_is_wrong_or_missing_is_of_the_source() {
    let bed = Bed::new();
    let image = image("source");
    bed.layout(&image, "app");
    let layout = bed.path("app");
    let blob = |digest: &str| layout.join("blobs").join(digest.replace(':', "/"));
    let store = |value: &Value| {
        let bytes = value.to_string();
        let digest = digest(bytes.as_bytes());
        fs::write(blob(&digest), &bytes).unwrap();
        (digest, bytes.len())
    };
    // Another platform has a manifest, and no layer.
    let mut other: Value =
        serde_json::from_slice(&fs::read(blob(&image.manifest)).unwrap()).unwrap();
    other["layers"][0]["digest"] = digest(b"not there").into();
    let (other, size) = store(&other);
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let plain = serde_json::json!({
        "mediaType": kind, "digest": image.manifest, "size": fs::read(blob(&image.manifest)).unwrap().len(),
        "platform": { "os": "linux", "architecture": host_platform().1 },
    });
    let foreign = serde_json::json!({
        "mediaType": kind, "digest": other, "size": size,
        "platform": { "os": "linux", "architecture": "mips" },
    });
    let index = "application/vnd.oci.image.index.v1+json";
    let document = serde_json::json!({
        "schemaVersion": 2, "mediaType": index, "manifests": [plain, foreign],
    });
    let (document, size) = store(&document);
    let entry = serde_json::json!({ "mediaType": index, "digest": document, "size": size });
    let layouts = serde_json::json!({ "schemaVersion": 2, "manifests": [entry] });
    fs::write(layout.join("index.json"), layouts.to_string()).unwrap();
    let converted = json(bed.resnap(&["convert", "--json", "oci:app", "oci:copy:1"]));
    assert_eq!(converted["left_out"], serde_json::json!(["linux/mips"]));

    let layer = blob(&image.layers[1].digest);
    let good = fs::read(&layer).unwrap();
    let mut changed = good.clone();
    changed[20] ^= 1;
    for wrong in [
        &changed[..],
        &good[..good.len() - 1],
        &[&good[..], b"more"].concat(),
    ] {
        fs::write(&layer, wrong).unwrap();
        let parts = ["read from the source", &image.layers[1].digest];
        refused(bed.resnap(&["convert", "oci:app", "oci:damaged:1"]), &parts);
    }
}
