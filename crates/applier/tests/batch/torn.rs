// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Blobs that are truncated or changed anywhere: an error, another diff ID, or the right files.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use flate2::write::GzEncoder;
use resnap_core::{Applied, Descriptor, Digest, Kind, Result, Scope};

use crate::bed::{Bed, GZIP, TAR, tar};

/// Applies a layer that has this blob in the content store.
async fn apply(bed: &Bed, layer: &Descriptor, blob: &[u8], is_image: bool) -> Result<Applied> {
    bed.put(&layer.digest, blob.to_vec());
    let (snapshot, mounts) = bed.prepare(&[], &[]);
    let dir = bed.fs(snapshot).with_file_name("");
    if is_image {
        fs::write(dir.join(".erofslayer"), "").unwrap();
    }
    let batch = bed.batch(std::slice::from_ref(layer));
    let applied = batch.apply(&Scope::new("default"), 0, &mounts).await;
    batch.end().await;
    assert!(bed.staged().is_empty(), "{:?}", bed.staged());
    let is_written = |dir: &Path| match is_image {
        true => dir.join("layer.erofs").exists(),
        false => dir.join("fs/d/file").exists(),
    };
    match &applied {
        Ok(_) => assert!(is_image || is_written(&dir) || blob.is_empty()),
        Err(_) => assert!(!is_written(&dir), "half a layer is in its snapshot"),
    }
    fs::remove_dir_all(&dir).unwrap();
    applied
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: make test runs it"]
async fn damaged_blobs_are_detected() {
    let noise: Vec<u8> = (0..900u32).flat_map(u32::to_le_bytes).collect();
    let archive = tar(&[("d/file", &noise), ("d/other", b"x"), (".wh.gone", b"")]);
    let diff_id = Digest::sha256(&archive);
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&archive).unwrap();
    let zstd = "application/vnd.oci.image.layer.v1.tar+zstd";
    let blobs = [
        (TAR, archive.clone()),
        (GZIP, encoder.finish().unwrap()),
        (zstd, zstd::encode_all(&archive[..], 1).unwrap()),
    ];
    let bed = Bed::new();
    for (media_type, whole) in blobs {
        for is_image in [false, true] {
            let layer = bed.layer(media_type, whole.clone());
            let applied = apply(&bed, &layer, &whole, is_image).await;
            assert_eq!(
                applied.unwrap().diff_id.as_ref(),
                Some(&diff_id),
                "{media_type}"
            );
            let mut torn: Vec<Vec<u8>> = (0..whole.len())
                .step_by(512)
                .map(|end| whole[..end].to_vec())
                .collect();
            for at in (0..whole.len()).step_by(whole.len() / 20) {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << (at % 8);
                torn.push(flipped);
            }
            for blob in torn {
                match apply(&bed, &layer, &blob, is_image).await {
                    // For example the time in a gzip header.
                    Ok(applied) => {
                        assert!(applied.diff_id.as_ref() != Some(&diff_id) || media_type != TAR)
                    }
                    Err(error) => assert_eq!(error.kind(), Kind::DataLoss, "{error:?}"),
                }
                // The same bytes with their own digest.
                let meant = bed.layer(media_type, blob.clone());
                if let Err(error) = apply(&bed, &meant, &blob, is_image).await {
                    assert_eq!(error.kind(), Kind::InvalidArgument, "{error:?}");
                }
            }
        }
    }
    assert!(bed.left().is_empty());
}
