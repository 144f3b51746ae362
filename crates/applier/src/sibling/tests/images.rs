// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Chains of erofs.

use std::fs;
use std::os::unix::fs::symlink;

use resnap_core::{ChainView, Kind, Mount};

use super::edges::tar;
use crate::copy_fault::CopyFault;
use crate::sibling::chain::{self, Layers};
use crate::testing::copies::Chain;

fn chain() -> Chain {
    let mut chain = Chain::new(&std::env::temp_dir());
    for name in ["a", "b", "c"] {
        assert!(chain.add(&tar().file(name, "x").bytes));
    }
    chain
}

/// Returns the names of the files that are opened, as far as they show the order.
fn opened(bed: &Chain, view: &ChainView) -> Result<Vec<String>, CopyFault> {
    let Layers::Images(layers) = chain::open(view, bed.root())? else {
        panic!("directories");
    };
    let path = |file: &fs::File| {
        use std::os::fd::AsRawFd as _;
        fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
    };
    let name = |path: std::path::PathBuf| {
        let snapshot = path.parent().unwrap().file_name().unwrap();
        snapshot.to_str().unwrap().to_owned()
    };
    let names = layers.iter().map(|layer| name(path(&layer.file)));
    Ok(names.collect())
}

fn mount(kind: &str, source: &str, options: &[String]) -> Mount {
    Mount {
        kind: kind.to_owned(),
        source: source.to_owned(),
        options: options.to_vec(),
        ..Mount::default()
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn views_of_all_versions_are_read() {
    let bed = chain();
    let base_first = ["1", "2", "3"];
    let view = bed.view_of_images();
    assert_eq!(opened(&bed, &view).unwrap(), base_first);
    let file = |number: &str, name: &str| {
        let path = bed.root().join("snapshots").join(number).join(name);
        path.display().to_string()
    };
    // containerd 2.1.
    let mut older = view.clone();
    older.mounts = bed.view().mounts;
    assert_eq!(opened(&bed, &older).unwrap(), base_first);
    // Merged images.
    let devices = |numbers: &[&str]| -> Vec<String> {
        let device = |number: &&str| format!("device={}", file(number, "layer.erofs"));
        ["ro".to_owned()]
            .into_iter()
            .chain(numbers.iter().map(device))
            .collect()
    };
    let merged = file("3", "fsmeta.erofs");
    let mut all = view.clone();
    all.mounts = vec![mount("erofs", &merged, &devices(&base_first))];
    assert_eq!(opened(&bed, &all).unwrap(), base_first);
    let mut lower = view.clone();
    lower.mounts = vec![
        view.mounts[0].clone(),
        mount("erofs", &merged, &devices(&["1", "2"])),
        view.mounts[3].clone(),
    ];
    assert_eq!(opened(&bed, &lower).unwrap(), base_first);
    // One layer.
    let mut one = view.clone();
    one.snapshots.truncate(1);
    one.mounts = vec![view.mounts[2].clone()];
    assert_eq!(opened(&bed, &one).unwrap(), ["1"]);
    one.mounts = vec![mount("bind", &file("1", "fs"), &["ro".to_owned()])];
    assert_eq!(opened(&bed, &one).unwrap(), ["1"]);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn images_of_others_and_views_of_other_forms_are_refused() {
    let bed = chain();
    let view = bed.view_of_images();
    let refused = |view: &ChainView| {
        let error = chain::open(view, bed.root()).unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
        error.to_string()
    };
    let mut foreign = view.clone();
    foreign.snapshots[1].labels.clear();
    let said = refused(&foreign);
    assert!(
        said.contains("layer 1 (snapshot snapshot 1) was not written by resnap"),
        "{said}"
    );
    let mut fewer = view.clone();
    fewer.mounts.remove(0);
    let mut unknown = view.clone();
    unknown.mounts[0].options.push("dax".to_owned());
    let mut twice = view.clone();
    twice.mounts[0] = twice.mounts[1].clone();
    let mut elsewhere = view.clone();
    elsewhere.mounts[0].source = "/etc/layer.erofs".to_owned();
    let mut other = view.clone();
    other.mounts[0].source = bed.layers[2].display().to_string();
    let mut kind = view.clone();
    kind.mounts[1].kind = "ext4".to_owned();
    for (view, says) in [
        (fewer, "2 layers"),
        (unknown, "\"dax\""),
        (twice, "twice"),
        (elsewhere, "is not a snapshot"),
        (other, "is not a snapshot"),
        (kind, "\"ext4\""),
    ] {
        let said = refused(&view);
        assert!(said.contains(says), "{said}");
    }
    // Nothing in a snapshot is followed.
    let image = bed.layers[2].with_file_name("layer.erofs");
    let moved = bed.root().join("moved");
    fs::rename(&image, &moved).unwrap();
    symlink(&moved, &image).unwrap();
    refused(&view);
    fs::remove_file(&image).unwrap();
    fs::create_dir(&image).unwrap();
    assert!(refused(&view).contains("not a regular file"));
    fs::remove_dir(&image).unwrap();
    fs::write(&image, [0; 8192]).unwrap();
    let said = bed.copy_from(view, 2, |_| Ok(())).unwrap_err().to_string();
    assert!(said.contains("snapshot 2"), "{said}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn directories_named_as_markers_are_copied() {
    let mut bed = Chain::new(&std::env::temp_dir());
    assert!(bed.add(&tar().file(".wh..wh.plnk/1.2", "x").bytes));
    bed.check();
}
