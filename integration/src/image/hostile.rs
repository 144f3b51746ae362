// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images that are small to send and dear to unpack, for what they take from others on a node.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::archive;
use super::blobs::Blobs;
use super::builder::host_platform;
use super::built::{Built, BuiltLayer};
use super::layer::{Compression, Format, Layer, digest};
use super::tar_entry::{self, Entry};

/// Links on each way of [`long_ways`]. containerd follows 255.
const LINKS: usize = 254;

/// Steps into a directory and out again before each link. With them a way has fewer than 8192 names,
/// which is as many as resnap follows.
const DETOURS: usize = 15;

/// The size of a document that resnap still reads.
const DOCUMENT_BYTES: usize = 8 << 20;

/// Returns a layer whose `entries` are headers only, each of them behind a way of 7900 names: a chain of
/// symbolic links with detours. It has two such ways in turns, so that no entry is in the directory
/// of the one before. Layers with other names have other bytes.
pub fn long_ways(name: &str, entries: usize) -> Result<Layer> {
    let detours = "a/../".repeat(DETOURS);
    let links = (0..LINKS).map(|link| {
        let next = match link + 1 {
            LINKS => "end".to_owned(),
            next => format!("{name}{next}"),
        };
        Entry::symlink(format!("{name}{link}"), format!("{detours}{next}"))
    });
    let ways = (0..entries).map(|entry| Entry::dir(format!("{name}{}/x", entry % 2)));
    let dirs = ["a", "end"].map(Entry::dir);
    packed(dirs.into_iter().chain(links).chain(ways))
}

/// Returns a layer of directories with an extended attribute `key` of `bytes` bytes each. All values differ.
pub fn attributes(key: &str, bytes: usize, directories: usize) -> Result<Layer> {
    packed((0..directories).map(|number| {
        let number = number.to_string();
        let value = "0".repeat(bytes.saturating_sub(number.len())) + &number;
        Entry::dir(number).xattr(key, value)
    }))
}

/// Writes an image whose config is as large as resnap reads and consists of nested arrays. It states
/// more layers than there are, so it cannot be unpacked. Images with other names have other configs.
pub fn nested_config(reference: &str, path: &Path) -> Result<Built> {
    let layer = Layer::of(&[Entry::dir("./")])?;
    let (os, architecture) = host_platform();
    let diff_ids = [&layer.diff_id, &layer.diff_id];
    let config = json!({
        "os": os,
        "architecture": architecture,
        "author": reference,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let mut config = config.to_string();
    config.pop();
    config.push_str(r#","x":[[0]"#);
    while config.len() + ",[0]]}".len() <= DOCUMENT_BYTES {
        config.push_str(",[0]");
    }
    config.push_str("]}");

    let mut blobs = Blobs::default();
    let mut add = |media_type: &str, bytes: Vec<u8>| -> Value {
        let (digest, size) = (digest(&bytes), bytes.len());
        blobs.0.insert(digest.clone(), Arc::new(bytes));
        json!({ "mediaType": media_type, "digest": digest, "size": size })
    };
    let config_type = "application/vnd.oci.image.config.v1+json";
    let config = add(config_type, config.into_bytes());
    let layers = [add(&layer.media_type(false), layer.blob.to_vec())];
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let target = add(manifest_type, manifest.to_string().into_bytes());
    archive::write(path, &[(reference, &target)], &blobs)?;
    let digest_of = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str();
        digest.unwrap_or_default().to_owned()
    };
    Ok(Built {
        reference: reference.to_owned(),
        index: None,
        manifest: digest_of(&target),
        config: digest_of(&config),
        layers: vec![BuiltLayer {
            chain_id: layer.diff_id.clone(),
            digest: layer.digest,
            diff_id: layer.diff_id,
            size: layer.size,
        }],
        others: Vec::new(),
        archive: path.to_owned(),
    })
}

/// Returns the layer of these entries, as small as gzip makes it. Its tar is never in memory as a whole.
fn packed(entries: impl Iterator<Item = Entry>) -> Result<Layer> {
    let mut hash = Sha256::new();
    let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::best());
    let mut bytes = Vec::new();
    for entry in entries {
        bytes.clear();
        entry.write(&mut bytes)?;
        hash.update(&bytes);
        gzip.write_all(&bytes)?;
    }
    bytes.clear();
    tar_entry::end(&mut bytes)?;
    hash.update(&bytes);
    gzip.write_all(&bytes)?;
    let blob = gzip.finish()?;
    let hash = hash.finalize();
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Layer {
        digest: digest(&blob),
        diff_id: format!("sha256:{hex}"),
        size: blob.len() as u64,
        compression: Compression::Gzip,
        format: Format::Tar,
        blob: Arc::new(blob),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    fn tar(layer: &Layer) -> Vec<u8> {
        let mut tar = Vec::new();
        GzDecoder::new(&**layer.blob).read_to_end(&mut tar).unwrap();
        assert_eq!(layer.diff_id, digest(&tar));
        tar
    }

    #[test]
    fn long_ways_are_small_and_of_as_many_names_as_are_followed() {
        let layer = long_ways("L", 12_800).unwrap();
        assert!(layer.size < 40 << 10, "{} bytes", layer.size);
        let tar = tar(&layer);
        let mut archive = tar::Archive::new(&tar[..]);
        let (mut links, mut names, mut last) = (0, 0, String::new());
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            if let Some(target) = entry.link_name().unwrap() {
                links += 1;
                names += target.to_str().unwrap().split('/').count();
            }
            last = entry.path().unwrap().display().to_string();
        }
        assert_eq!((links, last.as_str()), (254, "L1/x"));
        assert!((7800..8192).contains(&names), "{names} names");
        assert_ne!(long_ways("M", 12_800).unwrap().digest, layer.digest);
    }

    #[test]
    fn attributes_are_small_and_all_differ() {
        let layer = attributes("trusted.x", 1000, 50).unwrap();
        assert!(layer.size < 4 << 10, "{} bytes", layer.size);
        let tar = tar(&layer);
        assert!(tar.len() > 50 * 1000);
        let text = String::from_utf8_lossy(&tar);
        for value in ["0000\n", "00001\n", "00049\n"] {
            assert!(text.contains(value), "no {value:?}");
        }
    }

    #[test]
    fn a_nested_config_is_as_large_as_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let built = nested_config("docker.io/library/nested:1", &dir.path().join("a")).unwrap();
        let config = built.blob(&built.config).unwrap();
        assert!((DOCUMENT_BYTES - 4..=DOCUMENT_BYTES).contains(&config.len()));
        let config: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
        assert!(config["x"].as_array().unwrap().len() > 2_000_000);
        let other = nested_config("docker.io/library/nested:2", &dir.path().join("b")).unwrap();
        assert_ne!(built.config, other.config);
    }
}
