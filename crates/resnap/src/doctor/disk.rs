// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The disk space of images: that of each alone, and that which it shares with others.

use std::collections::{BTreeMap, HashMap};

use futures::StreamExt as _;
use resnap_containerd::Client;
use resnap_core::{Error, Scope, SnapshotKey, SnapshotKind};
use resnap_unpacker::Check;
use serde::Serialize;

use super::look::Look;

/// The snapshots that are asked for at once.
const AT_ONCE: usize = 16;

/// The disk space of a node.
#[derive(Debug, Serialize)]
pub(crate) struct Disk {
    pub(crate) images: Vec<ImageDisk>,
    pub(crate) snapshotters: Vec<SnapshotterDisk>,
    /// The bytes of all blobs of layers.
    pub(crate) blob_bytes: u64,
}

/// The disk space of an image in one place.
#[derive(Debug, Serialize)]
pub(crate) struct ImageDisk {
    pub(crate) image: String,
    /// The snapshotter; `None` for the blobs of its layers.
    pub(crate) snapshotter: Option<String>,
    /// The bytes of layers that no other image has there.
    pub(crate) own_bytes: u64,
    /// The bytes of layers that other images have, too.
    pub(crate) shared_bytes: u64,
}

/// The disk space of a snapshotter.
#[derive(Debug, Serialize)]
pub(crate) struct SnapshotterDisk {
    pub(crate) snapshotter: String,
    /// The bytes of committed snapshots.
    pub(crate) layer_bytes: u64,
    /// The bytes of all others: of containers, and of layers that are being unpacked.
    pub(crate) container_bytes: u64,
}

/// Measures the images and snapshots that were looked at.
///
/// # Errors
/// containerd does not answer. A snapshot that is gone meanwhile has no bytes.
pub(crate) async fn measure(look: &Look<'_>, client: &Client) -> Result<Disk, Error> {
    let mut disk = Disk {
        images: Vec::new(),
        snapshotters: Vec::new(),
        blob_bytes: 0,
    };
    let checks: Vec<(&str, &Check)> = look
        .known_images()
        .map(|(name, _, check)| (name, check))
        .collect();
    let mut blobs = HashMap::new();
    for layer in checks.iter().flat_map(|(_, check)| &check.layers) {
        if layer.blob {
            blobs.insert(layer.digest.as_str(), layer.bytes);
        }
    }
    disk.blob_bytes = blobs.values().sum();
    disk.images
        .extend(shares(None, &checks, &blobs, |layer| layer.digest.as_str()));
    for (name, surveyed) in &look.survey.snapshotters {
        let Ok(surveyed) = surveyed else {
            continue;
        };
        let snapshots = surveyed.snapshots.iter();
        let usages = usages(look, client, name, snapshots.clone().map(|info| &info.key)).await?;
        let bytes_of = |is_layer: bool| {
            let of_kind = snapshots.clone();
            let of_kind = of_kind.filter(|info| (info.kind == SnapshotKind::Committed) == is_layer);
            of_kind
                .filter_map(|info| usages.get(info.key.as_str()))
                .sum()
        };
        disk.snapshotters.push(SnapshotterDisk {
            snapshotter: name.clone(),
            layer_bytes: bytes_of(true),
            container_bytes: bytes_of(false),
        });
        let rows = shares(Some(name), &checks, &usages, |layer| {
            layer.chain_id.as_str()
        });
        disk.images.extend(rows);
    }
    disk.images
        .sort_by(|left, right| left.image.cmp(&right.image));
    Ok(disk)
}

async fn usages<'a>(
    look: &Look<'_>,
    client: &Client,
    snapshotter: &str,
    keys: impl Iterator<Item = &'a SnapshotKey>,
) -> Result<HashMap<&'a str, u64>, Error> {
    let scope = Scope::new(&look.config.namespace.value);
    let snapshotter = client.ports().snapshotters.snapshotter(snapshotter);
    let asked = keys.map(|key| {
        let (scope, snapshotter) = (&scope, &snapshotter);
        async move { (key.as_str(), snapshotter.usage(scope, key).await) }
    });
    let answers: Vec<_> = futures::stream::iter(asked)
        .buffered(AT_ONCE)
        .collect()
        .await;
    let mut usages = HashMap::new();
    for (key, usage) in answers {
        match usage {
            Ok(usage) => _ = usages.insert(key, usage.bytes),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(usages)
}

/// Returns the rows of the images that have layers in one place, by the sizes of what they have there.
fn shares(
    snapshotter: Option<&str>,
    checks: &[(&str, &Check)],
    sizes: &HashMap<&str, u64>,
    key: impl Fn(&resnap_unpacker::LayerCheck) -> &str,
) -> Vec<ImageDisk> {
    // An image may have a layer twice; images of one config are one.
    let mut images: BTreeMap<&str, (&str, BTreeMap<&str, u64>)> = BTreeMap::new();
    for (name, check) in checks {
        let layers = check.layers.iter().map(&key);
        let layers = layers.filter_map(|key| Some((key, *sizes.get(key)?)));
        images
            .entry(check.config.as_str())
            .or_insert_with(|| (name, layers.collect()));
    }
    let mut users: HashMap<&str, usize> = HashMap::new();
    for key in images.values().flat_map(|(_, layers)| layers.keys()) {
        *users.entry(key).or_default() += 1;
    }
    let mut rows = Vec::new();
    for (name, layers) in images.values().filter(|(_, layers)| !layers.is_empty()) {
        let bytes = |is_own: bool| {
            let chosen = layers
                .iter()
                .filter(|(key, _)| (users.get(*key) == Some(&1)) == is_own);
            chosen.map(|(_, bytes)| bytes).sum()
        };
        rows.push(ImageDisk {
            image: (*name).to_owned(),
            snapshotter: snapshotter.map(str::to_owned),
            own_bytes: bytes(true),
            shared_bytes: bytes(false),
        });
    }
    rows
}

#[cfg(test)]
mod tests {
    use resnap_core::{ChainId, DiffId, Digest};
    use resnap_unpacker::LayerCheck;

    use super::*;

    fn image(config: &str, layers: &[&str]) -> Check {
        let digest = |text: &str| Digest::sha256(text.as_bytes());
        let platform = "linux/amd64".to_owned();
        let mut check = Check::new(config.to_owned(), platform, digest("m"), digest(config));
        for layer in layers {
            let (blob, chain) = (digest(layer), ChainId::from_trusted(digest(layer)));
            check
                .layers
                .push(LayerCheck::new(blob, DiffId(digest(layer)), chain));
        }
        check
    }

    #[test]
    fn a_layer_is_shared_by_images_but_not_by_names() {
        let (web, api) = (
            image("web", &["base", "web", "web"]),
            image("api", &["base", "gone"]),
        );
        let checks = [("web:1", &web), ("web:latest", &web), ("api:1", &api)];
        let keys = ["base", "web"].map(|text| Digest::sha256(text.as_bytes()));
        let sizes = HashMap::from([(keys[0].as_str(), 100), (keys[1].as_str(), 7)]);
        let mut rows = shares(Some("erofs"), &checks, &sizes, |layer| {
            layer.chain_id.as_str()
        });
        rows.sort_by(|left, right| left.image.cmp(&right.image));
        let rows: Vec<_> = rows
            .iter()
            .map(|row| (row.image.as_str(), row.own_bytes, row.shared_bytes))
            .collect();
        assert_eq!(rows, [("api:1", 0, 100), ("web:1", 7, 100)]);
    }
}
