// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The OCI layout archive, and the cache of built ones.
//!
//! ```text
//! <target>/integration/images/web/
//!   4f0c….tar    the archive; the key is over the recipes' own source text
//!   4f0c….json   its `Built`, written last: what says that the archive is whole
//!   .lock        one builder at a time, over processes
//! ```
//!
//! A new version of a Debian package alone does not rebuild an image: digests stay as they are
//! until a recipe changes or the target directory is removed.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::blobs::Blobs;
use super::built::Built;
use super::layer::digest;
use super::tar_entry::{self, Entry};
use crate::debian;

/// The sources of the images: a change of any line rebuilds all of them.
const RECIPES: &[&str] = &[
    include_str!("archive.rs"),
    include_str!("blobs.rs"),
    include_str!("builder.rs"),
    include_str!("catalog.rs"),
    include_str!("layer.rs"),
    include_str!("native.rs"),
    include_str!("payload.rs"),
    include_str!("tar_entry.rs"),
    include_str!("edge_cases.rs"),
    include_str!("edge_cases/case.rs"),
    include_str!("edge_cases/contents.rs"),
    include_str!("edge_cases/deletions.rs"),
    include_str!("edge_cases/links.rs"),
    include_str!("edge_cases/metadata.rs"),
    include_str!("edge_cases/names.rs"),
    include_str!("edge_cases/replacements.rs"),
];

/// Writes the archive of `blobs`, with references and what they point to.
///
/// It is made under a temporary name, so that `path` is never half an archive.
pub(super) fn write(path: &Path, targets: &[(&str, &Value)], blobs: &Blobs) -> Result<()> {
    let targets = targets.iter().map(|(reference, target)| {
        let mut target = (*target).clone();
        // containerd 1.6 reads the first name, other tools only the second.
        target["annotations"] = json!({
            "io.containerd.image.name": reference,
            "org.opencontainers.image.ref.name": reference,
        });
        target
    });
    let index = json!({ "schemaVersion": 2, "manifests": targets.collect::<Vec<_>>() });
    let layout = json!({ "imageLayoutVersion": "1.0.0" });
    let mut entries = vec![
        Entry::file("oci-layout", layout.to_string()),
        Entry::file("index.json", index.to_string()),
    ];
    for (digest, bytes) in &blobs.0 {
        entries.push(Entry::file(
            format!("blobs/{}", digest.replace(':', "/")),
            &**bytes,
        ));
    }
    let write = |path: &Path| {
        let mut out = BufWriter::new(File::create(path)?);
        entries.iter().try_for_each(|entry| entry.write(&mut out))?;
        tar_entry::end(&mut out)?;
        out.flush()
    };
    let part = path.with_extension(format!("{}.part", std::process::id()));
    write(&part)
        .and_then(|()| fs::rename(&part, path))
        .with_context(|| format!("cannot write the image archive {}", path.display()))
}

/// Returns the image `name` of the cache, built by `build` at the path it is given if it is not there.
pub(super) fn cached(name: &str, build: impl FnOnce(&Path) -> Result<Built>) -> Result<Built> {
    let dir = debian::target_dir().join("images").join(name);
    let _lock = debian::lock(&dir)?;
    let recipes = digest(RECIPES.concat().as_bytes());
    let key = &recipes["sha256:".len()..][..16];
    let (archive, record) = (
        dir.join(format!("{key}.tar")),
        dir.join(format!("{key}.json")),
    );
    if let Some(built) = read(&archive, &record) {
        return Ok(built);
    }
    let built = build(&archive).with_context(|| format!("cannot build the test image {name}"))?;
    fs::write(&record, serde_json::to_vec_pretty(&built)?)
        .with_context(|| format!("cannot write {}", record.display()))?;
    Ok(built)
}

/// A record that cannot be read is as good as none: the image is built again.
fn read(archive: &Path, record: &Path) -> Option<Built> {
    let built: Built = serde_json::from_slice(&fs::read(record).ok()?).ok()?;
    archive.exists().then(|| Built {
        archive: PathBuf::from(archive),
        ..built
    })
}
