// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The test images are what they say, before any daemon sees them.

#![allow(clippy::unwrap_used, reason = "what fails here is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use resnap_integration::image::{
    self, Built, Compression, EDGE_CASES, Entry, Fault, ImageBuilder, Index, Layer, MANY_MAX,
    REFUSED, digest,
};
use serde_json::Value;
use tempfile::TempDir;

#[test]
fn ready_made_images_are_whole() {
    let (left, right) = image::shared_pair().unwrap();
    assert_eq!(left.layers[..2], right.layers[..2]);
    assert_ne!(left.layers[2], right.layers[2]);
    let images = [
        (image::hello().unwrap(), 3),
        (image::pause().unwrap(), 1),
        (image::many(2).unwrap(), 2),
        (image::many(MANY_MAX).unwrap(), MANY_MAX),
        (
            image::edge_cases().unwrap(),
            2 + EDGE_CASES.iter().map(|cases| cases.len()).sum::<usize>(),
        ),
        (left, 3),
        (right, 3),
    ];
    for (built, layers) in images {
        assert_eq!(built.layers.len(), layers, "{}", built.reference);
        check(&built);
    }
    for layers in [0, MANY_MAX + 1] {
        let error = image::many(layers).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("an image of {layers} layers: take 1 to {MANY_MAX}")
        );
    }
}

#[test]
fn web_is_large_and_real() {
    let built = image::web().unwrap();
    let blobs = check(&built);
    assert!(built.layers.len() >= 6);
    let (mut bytes, mut entries) = (0, 0);
    for layer in &built.layers {
        let mut tar = Vec::new();
        MultiGzDecoder::new(&blobs[&layer.digest][..])
            .read_to_end(&mut tar)
            .unwrap();
        assert_eq!(digest(&tar), layer.diff_id);
        bytes += tar.len();
        entries += tar::Archive::new(&tar[..]).entries().unwrap().count();
    }
    assert!(bytes >= 60 << 20, "{bytes} bytes");
    assert!(entries >= 5000, "{entries} entries");
}

/// The lookups that paths of entries take are bounded by [`resnap_layer::resolve::LookupBudget`]; real
/// images take little of it.
#[test]
fn paths_of_real_images_take_few_lookups() {
    let (shared, other) = image::shared_pair().unwrap();
    let mut most = (0.0, String::new());
    for built in [
        image::web().unwrap(),
        shared,
        other,
        image::small_files().unwrap(),
    ] {
        let blobs = check(&built);
        for layer in &built.layers {
            let stream = MultiGzDecoder::new(&blobs[&layer.digest][..]);
            let mut layer = resnap_layer::Layer::new(stream, Default::default());
            let memory = Box::new(resnap_erofs::Memory::new(1 << 30));
            let target = tempfile::tempfile().unwrap();
            let mut writer = resnap_erofs::Writer::new(target, memory).unwrap();
            writer.add(&mut layer).unwrap();
            let lookups = writer.lookups();
            let share = lookups.used() as f64 / lookups.limit() as f64;
            if share > most.0 {
                let text = format!(
                    "{} of {} lookups in {}",
                    lookups.used(),
                    lookups.limit(),
                    built.reference
                );
                most = (share, text);
            }
        }
    }
    println!("{}", most.1);
    assert!(most.0 < 0.05, "{}", most.1);
}

#[test]
fn edge_cases_are_many_and_have_unique_names() {
    let cases: Vec<_> = EDGE_CASES
        .iter()
        .copied()
        .flatten()
        .chain(REFUSED)
        .collect();
    let names: BTreeSet<_> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases.len());
    assert!(cases.len() - REFUSED.len() >= 60);
    assert!(cases.len() - REFUSED.len() + 2 <= MANY_MAX);
    for case in cases {
        case.layer(Compression::None).unwrap();
    }
}

#[test]
fn equal_images_are_equal_bytes() {
    let dir = TempDir::new().unwrap();
    let [one, two] =
        ["one.tar", "two.tar"].map(|name| sample().write(&dir.path().join(name)).unwrap());
    assert_eq!(one.manifest, two.manifest);
    assert_eq!(
        fs::read(&one.archive).unwrap(),
        fs::read(&two.archive).unwrap()
    );
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        2,
        "a temporary file is left"
    );
}

#[test]
fn manifests_have_the_settings_of_the_builder() {
    let (built, blobs, _dir) = written(
        sample()
            .cmd(["/bin/a", "b"])
            .env("KEY", "value")
            .annotate_layer(1, "key", "value")
            .docker(),
    );
    let manifest = json(&blobs[&built.manifest]);
    let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    assert_eq!(manifest["layers"][1]["mediaType"], docker);
    assert_eq!(manifest["layers"][1]["annotations"]["key"], "value");
    assert_eq!(manifest["layers"][0].get("annotations"), None);
    let config = json(&blobs[&built.config]);
    assert_eq!(config["config"]["Cmd"][1], "b");
    assert_eq!(config["config"]["Env"][1], "KEY=value");
    assert_eq!(config["os"], "linux");
    assert_eq!(built.target(), built.manifest);
    assert_eq!(built.chain_id(), built.layers[2].chain_id);
    let chain =
        digest(format!("{} {}", built.layers[0].diff_id, built.layers[1].diff_id).as_bytes());
    assert_eq!(built.layers[1].chain_id, chain);
}

#[test]
fn an_index_has_a_manifest_for_each_platform() {
    let dir = TempDir::new().unwrap();
    let built = Index::new("docker.io/library/index:1")
        .image(sample().platform("linux", "arm64").variant("v8"))
        .image(sample().platform("linux", "amd64").os_features(["erofs"]))
        .write(&dir.path().join("index.tar"))
        .unwrap();
    let blobs = check(&built);
    let manifests = &json(&blobs[built.target()])["manifests"];
    assert_eq!(manifests[0]["digest"], built.manifest);
    assert_eq!(manifests[0]["platform"]["variant"], "v8");
    assert_eq!(manifests[1]["digest"], built.others[0].digest);
    assert_eq!(manifests[1]["platform"]["os.features"][0], "erofs");
    let empty = Index::new("docker.io/library/empty:1").write(&dir.path().join("empty.tar"));
    assert_eq!(
        empty.unwrap_err().to_string(),
        "the index docker.io/library/empty:1 has no image: add one"
    );
}

#[test]
fn faults_are_where_they_were_asked_for() {
    let (good, ..) = written(sample());
    let diff_ids = |built: &Built, blobs: &Blobs| {
        json(&blobs[&built.config])["rootfs"]["diff_ids"]
            .as_array()
            .unwrap()
            .len()
    };
    let (built, blobs, _dir) = written(sample().fault(Fault::WrongDiffId(1)));
    assert_ne!(built.layers[1].diff_id, good.layers[1].diff_id);
    assert_eq!(built.layers[1].digest, good.layers[1].digest);
    assert_eq!(diff_ids(&built, &blobs), 3);
    let (built, blobs, _dir) = written(sample().fault(Fault::MissingBlob(1)));
    let there = built
        .layers
        .iter()
        .map(|layer| blobs.contains_key(&layer.digest));
    assert_eq!(there.collect::<Vec<_>>(), [true, false, true]);
    for (fault, count) in [(Fault::MissingDiffId, 2), (Fault::ExtraDiffId, 4)] {
        let (built, blobs, _dir) = written(sample().fault(fault));
        assert_eq!(diff_ids(&built, &blobs), count);
    }
}

/// The blobs of an archive by digest.
type Blobs = BTreeMap<String, Vec<u8>>;

/// Three layers.
fn sample() -> ImageBuilder {
    let layer = |name: &str| Layer::of(&[Entry::file(name, name)]).unwrap();
    ImageBuilder::new("docker.io/library/sample:1").layers(["a", "b", "c"].map(layer))
}

fn written(image: ImageBuilder) -> (Built, Blobs, TempDir) {
    let dir = TempDir::new().unwrap();
    let built = image.write(&dir.path().join("image.tar")).unwrap();
    let blobs = blobs(&built.archive);
    (built, blobs, dir)
}

/// Reads the archive of an image without faults; everything it names must be there.
fn check(built: &Built) -> Blobs {
    let blobs = blobs(&built.archive);
    let index = json(&blobs["index.json"]);
    assert_eq!(index["manifests"][0]["digest"], built.target());
    for key in [
        "io.containerd.image.name",
        "org.opencontainers.image.ref.name",
    ] {
        assert_eq!(index["manifests"][0]["annotations"][key], built.reference);
    }
    let manifest = json(&blobs[&built.manifest]);
    assert_eq!(manifest["config"]["digest"], built.config);
    let config = json(&blobs[&built.config]);
    for (index, layer) in built.layers.iter().enumerate() {
        assert_eq!(manifest["layers"][index]["digest"], layer.digest);
        assert_eq!(blobs[&layer.digest].len() as u64, layer.size);
        assert_eq!(config["rootfs"]["diff_ids"][index], layer.diff_id);
    }
    blobs
}

/// Returns the files of an archive, those below `blobs/` by the digest that their content has.
fn blobs(archive: &Path) -> Blobs {
    let mut found = Blobs::new();
    for entry in tar::Archive::new(File::open(archive).unwrap())
        .entries()
        .unwrap()
    {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        let name = match path.strip_prefix("blobs/") {
            Some(name) => {
                assert_eq!(
                    name.replace('/', ":"),
                    digest(&bytes),
                    "{}",
                    archive.display()
                );
                digest(&bytes)
            }
            None => path,
        };
        found.insert(name, bytes);
    }
    found
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}
