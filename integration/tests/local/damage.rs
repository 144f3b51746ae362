// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Files of a store that somebody else has damaged or deleted.

use std::fs;
use std::path::PathBuf;

use crate::store::{Store, archive, blob, damage, failed, image, layout, ok, says};

/// Returns the directories of the layers of the only image, the lowest first.
fn layers(store: &Store) -> Vec<PathBuf> {
    let snapshots = fs::read_dir(store.root().join("erofs/snapshots")).unwrap();
    let mut layers: Vec<_> = snapshots.map(|entry| entry.unwrap().path()).collect();
    layers.sort_by_key(|path| {
        path.file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .parse::<u32>()
            .unwrap()
    });
    layers
}

#[test]
fn layers_that_are_gone_are_made_again() {
    let store = Store::new();
    let name = archive(&image(&store.beside("image.tar"), "a", 3));
    ok(store.unpack(&name));
    for (lost, file) in [(2, ""), (0, "layer.erofs"), (1, "fs"), (1, "layer.erofs")] {
        let path = layers(&store)[lost].join(file);
        match path.is_dir() {
            true => fs::remove_dir_all(&path).unwrap(),
            false => fs::remove_file(&path).unwrap(),
        }
        store.is_not_ready(&name);
        ok(store.unpack(&name));
        store.is_ready(&name);
        store.has_only(3);
    }
}

#[test]
fn damaged_content_is_fetched_again() {
    let store = Store::new();
    let built = image(&store.beside("image.tar"), "a", 3);
    let (name, root) = (archive(&built), store.root());
    ok(store.unpack(&name));
    for document in [&built.config, &built.manifest] {
        damage(&blob(&root, document));
        let check = store
            .resnap(&["check", "--snapshotter", "erofs", &name])
            .output()
            .unwrap();
        assert!(!check.status.success(), "{check:?}");
        ok(store.unpack(&name));
        store.is_ready(&name);
        store.has_only(3);
    }
}

#[test]
fn a_damaged_layer_is_fetched_again() {
    let store = Store::new();
    let built = image(&store.beside("image.tar"), "a", 3);
    let (name, root, good) = (archive(&built), store.root(), store.beside("layout"));
    layout(&built, &good);
    let read = |index: usize| fs::read(blob(&good, &built.layers[index].digest)).unwrap();
    let (layer, other) = (read(1), read(0));
    let mut flipped = layer.clone();
    flipped[layer.len() / 2] ^= 0x55;
    ok(store.unpack(&name));
    for wrong in [&flipped, &layer[..layer.len() / 2], &other] {
        let put = || {
            let path = blob(&root, &built.layers[1].digest);
            // It is there if it was kept.
            let _ = fs::remove_file(&path);
            fs::write(path, wrong).unwrap();
            for layer in layers(&store) {
                fs::remove_dir_all(layer).unwrap();
            }
        };
        put();
        // By its ID, which says of no place that has it.
        let error = failed(store.unpack(&built.config));
        says(&error, &[&built.layers[1].digest, "damaged"]);
        put();
        ok(store.unpack(&name));
        store.is_ready(&name);
        store.has_only(3);
    }
}

#[test]
fn a_bad_copy_hides_no_good_one() {
    let store = Store::new();
    let built = image(&store.beside("image.tar"), "a", 3);
    let (bad, good) = (store.beside("bad"), store.beside("good"));
    layout(&built, &bad);
    layout(&built, &good);
    for digest in [&built.manifest, &built.config, &built.layers[0].digest] {
        damage(&blob(&bad, digest));
    }
    let short = blob(&bad, &built.layers[1].digest);
    let bytes = fs::read(&short).unwrap();
    fs::write(&short, &bytes[..bytes.len() / 2]).unwrap();
    let name = format!("oci:{}", good.display());
    let from = bad.to_str().unwrap();
    ok(store.resnap(&[
        "unpack",
        "--json",
        "--snapshotter",
        "erofs",
        "--from",
        from,
        &name,
    ]));
    store.is_ready(&name);
    store.has_only(3);
}
