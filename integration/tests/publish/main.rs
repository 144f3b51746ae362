// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap convert`, `artifacts` and `cache`, on layouts and directories. No containerd runs.

#![allow(clippy::unwrap_used, reason = "what fails here is a failed test")]

mod bed;
mod caches;
mod hostile;
mod signed;

use std::fs;
use std::path::Path;

use resnap_integration::image::tar_entry::pack;
use resnap_integration::image::{Compression, Entry, Fault, ImageBuilder, Layer, noise};
use serde_json::Value;

use bed::{Bed, ELSEWHERE, HERE, Surroundings, files, image, json, ok, refused, without_lock};

#[test]
fn the_same_image_gives_the_same_bytes_everywhere() {
    let image = image("same");
    let make = |around: &Surroundings| {
        let bed = Bed::new();
        bed.layout(&image, "app");
        let name = format!("oci:{}", bed.path("app").display());
        let run = |arguments: &[&str]| ok(bed.resnap_in(around, arguments));
        run(&["convert", "--verity", &name, "layers"]);
        run(&["convert", "--verity", "--merge", &name, "merged.erofs"]);
        run(&["convert", &name, "oci:native:1"]);
        run(&[
            "convert",
            "--verity",
            "--format",
            "vnd.erofs+zstd",
            "--oldest-containerd",
            "2.3",
            &name,
            "oci:draft:1",
        ]);
        run(&["artifacts", "build", &name, "--to", "oci:artifacts:1"]);
        run(&[
            "artifacts",
            "build",
            &name,
            "--to",
            "oci:notary:1",
            "--set",
            "notary",
        ]);
        run(&["cache", "build", "--verity", &name, "cache"]);
        let mut all = files(bed.0.path());
        all.retain(|path, _| !path.starts_with("app") && !path.starts_with("config.toml"));
        all
    };
    let (here, elsewhere) = (make(&HERE), make(&ELSEWHERE));
    assert!(here.len() > 30, "{here:?}");
    assert_eq!(here, elsewhere);
}

#[test]
fn images_become_files_that_are_complete_or_none() {
    let bed = Bed::new();
    bed.layout(&image("files"), "app");
    let converted = json(bed.resnap(&["convert", "--json", "--verity", "oci:app", "out"]));
    let listed = converted["files"].as_array().unwrap();
    assert_eq!(listed.len(), 3);
    for file in listed {
        let path = Path::new(file["path"].as_str().unwrap());
        assert_eq!(path.metadata().unwrap().len(), file["size"]);
        let sidecar = fs::read(format!("{}.dmverity", path.display())).unwrap();
        let sidecar: Value = serde_json::from_slice(&sidecar).unwrap();
        assert_eq!(sidecar["roothash"], file["verity"]["root_hash"]);
        assert_eq!(sidecar["hashoffset"], file["verity"]["hash_offset"]);
    }
    // The table is that of a device which the kernel's own tool verifies.
    let table = listed[0]["verity"]["table"].as_str().unwrap();
    let parts: Vec<_> = table.split(' ').collect();
    assert_eq!(
        parts[2..7],
        ["verity", "1", "DEVICE", "DEVICE", "4096"],
        "{table}"
    );

    let before = files(bed.0.path());
    refused(
        bed.resnap(&["convert", "oci:app", "out"]),
        &["out", "not empty"],
    );
    refused(
        bed.resnap(&["convert", "oci:app:2", "other"]),
        &["no image 2", "there are: "],
    );
    let foreign = bed.resnap(&["convert", "--platform", "linux/s390x", "oci:app", "other"]);
    refused(foreign, &["no manifest for linux/s390x", "linux/"]);
    let old = bed.resnap(&[
        "convert",
        "--format",
        "vnd.erofs.layer.v1+zstd",
        "oci:app",
        "oci:other:1",
    ]);
    refused(old, &["2.3", "--oldest-containerd"]);
    assert_eq!(files(bed.0.path()), before);

    for (name, fault, reason) in [
        ("wrong", Fault::WrongDiffId(1), "and the config says"),
        ("lost", Fault::MissingBlob(2), "no archive in"),
    ] {
        let layers = (1..=3).map(|seed| {
            let file = Entry::file(format!("file{seed}"), noise(seed, 100_000));
            Layer::new(&pack(&[file]).unwrap(), Compression::Gzip).unwrap()
        });
        let faulty = ImageBuilder::new("docker.io/library/faulty:1")
            .layers(layers)
            .fault(fault);
        let archive = bed.path(&format!("{name}.tar"));
        faulty.write(&archive).unwrap();
        let before = without_lock(&bed);
        let name = format!("oci-archive:{}", archive.display());
        refused(bed.resnap(&["convert", &name, "faulty"]), &[reason]);
        refused(
            bed.resnap(&["convert", "--merge", &name, "faulty.erofs"]),
            &[reason],
        );
        refused(bed.resnap(&["cache", "build", &name, "cache"]), &[reason]);
        assert_eq!(without_lock(&bed), before);
    }
}

#[test]
fn native_layers_stand_behind_the_plain_ones() {
    let bed = Bed::new();
    let image = image("native");
    bed.layout(&image, "app");
    let first = json(bed.resnap(&["convert", "--json", "oci:app", "oci:native:1"]));
    // A second run replaces what the first has made.
    let again = json(bed.resnap(&["convert", "--json", "oci:native:1", "oci:native:1"]));
    assert_eq!(again["index"], first["index"]);
    let blob = |layout: &str, digest: &str| -> Value {
        let path = bed
            .path(layout)
            .join("blobs")
            .join(digest.replace(':', "/"));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    let index = blob("native", first["index"].as_str().unwrap());
    let manifests = index["manifests"].as_array().unwrap();
    assert_eq!(manifests.len(), 2);
    assert_eq!(manifests[0]["digest"], image.manifest.as_str());
    assert_eq!(
        manifests[1]["platform"]["os.features"],
        serde_json::json!(["erofs"])
    );
    let manifest = blob("native", manifests[1]["digest"].as_str().unwrap());
    let config = blob("native", manifest["config"]["digest"].as_str().unwrap());
    assert_eq!(config["os.features"], serde_json::json!(["erofs"]));
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 3);
    for (layer, diff_id) in layers
        .iter()
        .zip(config["rootfs"]["diff_ids"].as_array().unwrap())
    {
        assert_eq!(layer["mediaType"], "application/vnd.erofs.layer.v1");
        assert_eq!(layer["digest"], *diff_id);
    }
    // What is written is what is read: the same trees come out of the native layers.
    let platform = format!("linux(+erofs)/{}", config["architecture"].as_str().unwrap());
    ok(bed.resnap(&["convert", "--merge", "oci:app", "plain.erofs"]));
    ok(bed.resnap(&[
        "convert",
        "--merge",
        "--platform",
        &platform,
        "oci:native:1",
        "native.erofs",
    ]));
    let merged = |name: &str| fs::read(bed.path(name)).unwrap().len();
    assert_eq!(merged("plain.erofs"), merged("native.erofs"));
}
