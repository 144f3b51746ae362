// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Referrers in layouts and archives.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use resnap_archive::ArchiveSource;
use resnap_core::{BlobSource, Descriptor, Digest, MissingBlob, Referrer, media_type};
use serde_json::{Value, json};

/// The files of a layout.
struct Layout(Vec<(String, Vec<u8>)>);

impl Layout {
    fn new() -> Self {
        Self(vec![("oci-layout".to_owned(), b"{}".to_vec())])
    }

    /// Adds a blob and returns its descriptor.
    fn blob(&mut self, document: &Value) -> Value {
        let bytes = document.to_string().into_bytes();
        let digest = Digest::sha256(&bytes);
        let descriptor = json!({
            "mediaType": document["mediaType"], "digest": digest.as_str(), "size": bytes.len(),
        });
        let name = format!("blobs/sha256/{}", digest.encoded());
        self.0.push((name, bytes));
        descriptor
    }

    fn index(&mut self, manifests: &[Value]) -> &mut Self {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        self.0
            .push(("index.json".to_owned(), index.to_string().into_bytes()));
        self
    }

    fn write(&self, path: &Path) {
        for (name, bytes) in &self.0 {
            let path = path.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }

    fn archive(&self, path: &Path) {
        let mut archive = tar::Builder::new(fs::File::create(path).unwrap());
        for (name, bytes) in &self.0 {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            let bytes: &[u8] = bytes;
            archive.append_data(&mut header, name, bytes).unwrap();
        }
        archive.finish().unwrap();
    }
}

fn image() -> Digest {
    Digest::sha256(b"image")
}

fn artifact(name: &str, artifact_type: &str, subject: &Digest) -> Value {
    json!({
        "mediaType": media_type::OCI_MANIFEST,
        "artifactType": artifact_type,
        "subject": {"mediaType": media_type::OCI_MANIFEST, "digest": subject.as_str(), "size": 1},
        "annotations": {"name": name},
    })
}

fn nested(manifests: &[Value]) -> Value {
    json!({"mediaType": media_type::OCI_INDEX, "manifests": manifests})
}

fn referrer(descriptor: &Value) -> Referrer {
    let digest = descriptor["digest"].as_str().unwrap().parse().unwrap();
    Referrer::new("a/1", digest, descriptor["size"].as_u64().unwrap())
}

async fn referrers(path: &Path) -> Vec<Referrer> {
    let subject = Descriptor::new(media_type::OCI_MANIFEST, image(), 1);
    let subject = MissingBlob::new(subject, None);
    let source = ArchiveSource::new([path]);
    source.referrers(&subject, &["a/1"]).await.unwrap()
}

#[tokio::test]
async fn manifests_are_found_by_their_subject() {
    let mut layout = Layout::new();
    let direct = layout.blob(&artifact("direct", "a/1", &image()));
    let other_type = layout.blob(&artifact("type", "b/1", &image()));
    let other_image = layout.blob(&artifact("image", "a/1", &Digest::sha256(b"other")));
    let plain = layout.blob(&json!({"mediaType": media_type::OCI_MANIFEST, "config": {}}));
    let under_tag = layout.blob(&artifact("tagged", "a/1", &image()));
    let mut tagged = layout.blob(&nested(&[under_tag.clone(), direct.clone()]));
    tagged["annotations"] = json!({
        "org.opencontainers.image.ref.name": format!("sha256-{}", image().encoded()),
    });
    let mut absent = direct.clone();
    absent["digest"] = Digest::sha256(b"absent").as_str().into();
    let mut malformed = direct.clone();
    malformed["digest"] = "sha256:../../index.json".into();
    let all = [
        other_type,
        other_image,
        plain,
        absent,
        malformed,
        direct.clone(),
        tagged,
    ];
    layout.index(&all);
    let expected = [referrer(&direct), referrer(&under_tag)];
    let dir = tempfile::tempdir().unwrap();
    layout.write(&dir.path().join("layout"));
    assert_eq!(referrers(dir.path()).await, expected);
    // The same are in the archive.
    layout.archive(&dir.path().join("oci.tar"));
    assert_eq!(referrers(dir.path()).await, expected);
    assert_eq!(referrers(&dir.path().join("oci.tar")).await, expected);
    assert!(referrers(&dir.path().join("nowhere")).await.is_empty());
}

#[tokio::test]
async fn one_bad_layout_hides_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut good = Layout::new();
    let direct = good.blob(&artifact("direct", "a/1", &image()));
    good.index(std::slice::from_ref(&direct))
        .write(&dir.path().join("z-good"));

    let many: Vec<_> = (0..4097)
        .map(|number: u32| {
            let digest = Digest::sha256(&number.to_be_bytes());
            json!({"mediaType": media_type::OCI_MANIFEST, "digest": digest.as_str(), "size": 1})
        })
        .chain([direct.clone()])
        .collect();
    for (number, index) in [
        json!({"manifests": many}).to_string(),
        "<html>".to_owned(),
        json!({"manifests": [direct]}).to_string() + &" ".repeat(4 << 20),
    ]
    .into_iter()
    .enumerate()
    {
        let mut bad = Layout::new();
        bad.blob(&artifact("direct", "a/1", &image()));
        bad.0.push(("index.json".to_owned(), index.into_bytes()));
        bad.write(&dir.path().join("alone").join(number.to_string()));
        assert!(
            referrers(&dir.path().join("alone")).await.is_empty(),
            "{number}"
        );
        bad.write(&dir.path().join(number.to_string()));
    }
    assert_eq!(referrers(dir.path()).await, [referrer(&direct)]);
}

#[tokio::test]
async fn bad_manifests_hide_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut layout = Layout::new();
    let padding = "x".repeat(4 << 20);
    let large = layout.blob(&artifact(&padding, "a/1", &image()));
    let broken = json!({"mediaType": media_type::OCI_MANIFEST, "artifactType": 1});
    let broken = layout.blob(&broken);
    let good = layout.blob(&artifact("good", "a/1", &image()));
    layout.index(&[large, broken, good.clone()]);
    layout.write(&dir.path().join("layout"));
    assert_eq!(referrers(dir.path()).await, [referrer(&good)]);
}

#[tokio::test]
async fn so_much_is_read() {
    for (count, expected) in [(20, 1), (40, 0)] {
        let dir = tempfile::tempdir().unwrap();
        let mut layout = Layout::new();
        let large = (0..count).map(|number| {
            let name = format!("{number}{}", "x".repeat(2 << 20));
            layout.blob(&artifact(&name, "b/1", &image()))
        });
        let large: Vec<_> = large.collect();
        // What is listed twice is read once.
        let again = layout.blob(&nested(&large));
        let good = layout.blob(&artifact("good", "a/1", &image()));
        layout.index(&[&large[..], &[again, good]].concat());
        layout.write(&dir.path().join("layout"));
        assert_eq!(referrers(dir.path()).await.len(), expected, "{count}");
    }
}
