// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Caches of layers.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use resnap_integration::image::{digest, many};

use crate::bed::{Bed, files, image, json, ok, refused};

#[test]
fn caches_have_layers_that_need_no_others() {
    let bed = Bed::new();
    let image = image("cache");
    bed.layout(&image, "app");
    let built = json(bed.resnap(&["cache", "build", "--json", "oci:app", "cache"]));
    let outcomes: Vec<_> = built
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| &layer["outcome"])
        .collect();
    assert_eq!(outcomes, ["written", "written", "needs_parents"]);
    assert_eq!(built[2]["directory"], "/etc");
    let cached = |number: usize| PathBuf::from(built[number]["path"].as_str().unwrap());
    assert!(cached(0).is_file() && cached(1).is_file() && !cached(2).exists());
    let hex = image.layers[0].diff_id.trim_start_matches("sha256:");
    let place = bed
        .path("cache")
        .join("sha256")
        .join(&hex[..2])
        .join(format!("{hex}.erofs"));
    assert_eq!(cached(0), place);
    assert_eq!(
        place.metadata().unwrap().permissions().mode() & 0o777,
        0o644
    );

    let again = json(bed.resnap(&["cache", "build", "--json", "oci:app", "cache"]));
    assert_eq!(again[0]["outcome"], "existed");
    // Without a tree it would not be mounted by those who want one.
    let sealed = json(bed.resnap(&["cache", "build", "--json", "--verity", "oci:app", "cache"]));
    assert_eq!(sealed[0]["outcome"], "written");
    assert!(
        bed.path("cache")
            .join(format!("sha256/{}/{hex}.erofs.dmverity", &hex[..2]))
            .is_file()
    );

    fs::write(bed.path("keep"), format!("# the base\nsha256:{hex}\n")).unwrap();
    let prune = ["cache", "prune", "--json", "cache", "--keep", "keep"];
    let listed = json(bed.resnap(&prune));
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert!(cached(1).is_file());
    ok(bed.resnap(&[&prune[..], &["--remove"]].concat()));
    assert!(cached(0).is_file() && !cached(1).exists());
    assert!(!Path::new(&format!("{}.dmverity", cached(1).display())).exists());
    fs::write(bed.path("keep"), "# nothing\n").unwrap();
    refused(
        bed.resnap(&[&prune[..], &["--remove"]].concat()),
        &["no diff IDs"],
    );
    fs::write(bed.path("keep"), "web:1\n").unwrap();
    refused(bed.resnap(&prune), &["line 1", "web:1"]);
}

#[test]
fn caches_are_built_and_pruned_at_once() {
    let bed = Bed::new();
    let images = [many(3).unwrap(), image("at-once")];
    let names = images.map(|image| format!("oci-archive:{}", image.archive.display()));
    fs::write(bed.path("keep"), digest(b"another")).unwrap();
    ok(bed.resnap(&["cache", "build", &names[0], "whole", "--verity"]));
    ok(bed.resnap(&["cache", "build", &names[1], "whole", "--verity"]));
    let whole = files(&bed.path("whole"));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let builders: Vec<_> = names
            .iter()
            .map(|name| {
                let build = || ok(bed.resnap(&["cache", "build", name, "cache", "--verity"]));
                scope.spawn(move || (0..5).for_each(|_| _ = build()))
            })
            .collect();
        let pruner = scope.spawn(|| {
            let mut removed = 0;
            while !is_over.load(Ordering::Relaxed) {
                let mut prune =
                    bed.resnap(&["cache", "prune", "cache", "--keep", "keep", "--remove"]);
                // It is refused while a builder works.
                removed += i32::from(prune.output().unwrap().status.success());
            }
            removed
        });
        // A reader finds a layer complete, with its sidecar, or does not find it.
        while builders.iter().any(|builder| !builder.is_finished()) {
            let Ok(entries) = fs::read_dir(bed.path("cache").join("sha256")) else {
                continue;
            };
            for shard in entries.flatten() {
                for entry in fs::read_dir(shard.path()).into_iter().flatten().flatten() {
                    let path = entry.path();
                    if path
                        .extension()
                        .is_some_and(|extension| extension == "erofs")
                    {
                        let sidecar = format!("{}.dmverity", path.display());
                        let (read, sidecar) = (fs::read(&path), Path::new(&sidecar).exists());
                        let name = path.strip_prefix(bed.path("cache")).unwrap();
                        if let Ok(bytes) = read {
                            assert_eq!(whole[name], digest(&bytes));
                            assert!(sidecar || !path.exists(), "{path:?} has no sidecar");
                        }
                    }
                }
            }
        }
        builders
            .into_iter()
            .for_each(|builder| builder.join().unwrap());
        is_over.store(true, Ordering::Relaxed);
        pruner.join().unwrap();
    });
    ok(bed.resnap(&["cache", "prune", "cache", "--keep", "keep", "--remove"]));
    for name in &names {
        ok(bed.resnap(&["cache", "build", name, "cache", "--verity"]));
    }
    assert_eq!(files(&bed.path("cache")), whole);
}
