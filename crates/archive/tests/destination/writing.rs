// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Written layouts are those that readers find, whatever else writes or is killed.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use futures::channel::mpsc;
use futures::future::try_join_all;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use resnap_archive::{ArchiveForm, ArchiveSource, LayoutDestination};
use resnap_core::{
    BlobSource as _, Descriptor, Destination as _, Digest, Error, Kind, MissingBlob, Referrer,
    error_chain, media_type,
};
use serde_json::{Value, json};

use crate::support::{BLOB, EMPTY, files, image, layer, pieces, referrer};

fn missing(descriptor: &Descriptor) -> MissingBlob {
    MissingBlob::new(descriptor.clone(), None)
}

fn index(layout: &Path) -> Value {
    serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap()
}

async fn names(layout: &Path) -> Vec<(String, Digest)> {
    let source = ArchiveSource::new([layout]);
    let images = source.images(layout, ArchiveForm::Oci).await.unwrap();
    let named = images
        .into_iter()
        .filter(|image| !image.names.is_empty())
        .map(|image| (image.names.join(" "), image.target.digest));
    named.collect()
}

async fn referrers(layout: &Path, subject: &Descriptor) -> Vec<Referrer> {
    let source = ArchiveSource::new([layout]);
    source.referrers(&missing(subject), &["a/1"]).await.unwrap()
}

#[tokio::test]
async fn readers_find_what_was_published() {
    let dir = tempfile::tempdir().unwrap();
    let mut written = Vec::new();
    for name in ["new/one", "two"] {
        let path = dir.path().join(name);
        let layout = LayoutDestination::open(&path).await.unwrap();
        let blob = layer(BLOB);
        assert!(!layout.has(&blob).await.unwrap());
        layout.put_blob(&blob, pieces(BLOB)).await.unwrap();
        layout
            .put_blob(&layer(b""), stream::empty().boxed())
            .await
            .unwrap();
        assert!(layout.has(&blob).await.unwrap());
        // What is there is not asked for.
        let broken = stream::iter([Err(Error::new(Kind::Internal, "read", "it"))]).boxed();
        layout.put_blob(&blob, broken).await.unwrap();

        let (mut first, bytes) = image("first");
        first.platform =
            serde_json::from_value(json!({"os": "linux", "architecture": "arm64"})).ok();
        layout
            .put_manifest(&first, bytes.clone(), Some("1"))
            .await
            .unwrap();
        let (child, child_bytes) = image("child");
        layout
            .put_manifest(&child, child_bytes, None)
            .await
            .unwrap();
        let (signature, signature_bytes) = referrer("signature", &first.digest);
        for _ in 0..2 {
            layout
                .put_referrer(&signature, signature_bytes.clone(), &first.digest)
                .await
                .unwrap();
        }
        assert_eq!(names(&path).await, [("1".to_owned(), first.digest.clone())]);
        assert_eq!(
            referrers(&path, &first).await,
            std::slice::from_ref(&signature)
        );
        let source = ArchiveSource::new([&path]);
        for (descriptor, bytes) in [(&blob, BLOB), (&first, &bytes)] {
            let read = source.open(&missing(descriptor), 0).await.unwrap();
            let read: Vec<_> = read.try_collect().await.unwrap();
            assert_eq!(read.concat(), bytes);
        }
        assert_eq!(
            index(&path),
            json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [
                {
                    "mediaType": media_type::OCI_MANIFEST, "digest": first.digest, "size": first.size,
                    "annotations": {"org.opencontainers.image.ref.name": "1"},
                    "platform": {"os": "linux", "architecture": "arm64"},
                },
                {
                    "mediaType": media_type::OCI_MANIFEST, "digest": signature.descriptor.digest,
                    "size": signature.descriptor.size, "artifactType": "a/1",
                },
            ]})
        );
        let marker = fs::read_to_string(path.join("oci-layout")).unwrap();
        assert_eq!(marker, r#"{"imageLayoutVersion":"1.0.0"}"#);
        written.push((fs::read(path.join("index.json")).unwrap(), files(&path)));

        layout
            .remove_referrer(&signature, &first.digest)
            .await
            .unwrap();
        layout
            .remove_referrer(&signature, &first.digest)
            .await
            .unwrap();
        assert!(referrers(&path, &first).await.is_empty());
        assert!(layout.has(&signature.descriptor).await.unwrap());
    }
    assert_eq!(written[0], written[1]);
}

#[tokio::test]
async fn a_tag_moves_and_all_else_stays() {
    let dir = tempfile::tempdir().unwrap();
    let other = json!({"mediaType": "x/y", "digest": "sha512:odd", "size": 1e300, "data": "eA==",
        "annotations": {"org.opencontainers.image.ref.name": "2", "a": "b"}});
    let tagged = json!({"digest": "sha256:old", "urls": ["x"],
        "annotations": {"org.opencontainers.image.ref.name": "1"}});
    let document = json!({"schemaVersion": 2, "annotations": {"k": "v"}, "later": [1, {"x": null}],
        "manifests": [tagged, other, tagged]});
    fs::write(dir.path().join("index.json"), document.to_string()).unwrap();
    fs::write(dir.path().join("oci-layout"), "{ }").unwrap();
    let layout = LayoutDestination::open(dir.path()).await.unwrap();
    for name in ["first", "second"] {
        let (target, bytes) = image(name);
        layout
            .put_manifest(&target, bytes, Some("1"))
            .await
            .unwrap();
        let mut expected = document.clone();
        expected["manifests"] = json!([
            {
                "mediaType": media_type::OCI_MANIFEST, "digest": target.digest, "size": target.size,
                "annotations": {"org.opencontainers.image.ref.name": "1"},
            },
            other,
        ]);
        assert_eq!(index(dir.path()), expected);
    }
    assert_eq!(fs::read(dir.path().join("oci-layout")).unwrap(), b"{ }");

    let null = json!({"schemaVersion": 2, "manifests": null});
    fs::write(dir.path().join("index.json"), null.to_string()).unwrap();
    let (target, bytes) = image("first");
    layout
        .put_manifest(&target, bytes, Some("1"))
        .await
        .unwrap();
    assert_eq!(names(dir.path()).await, [("1".to_owned(), target.digest)]);
}

#[tokio::test]
async fn bytes_that_are_not_the_blob_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let layout = LayoutDestination::open(dir.path()).await.unwrap();
    let failing = pieces(b"01234")
        .chain(stream::iter([Err(Error::new(
            Kind::PermissionDenied,
            "read",
            "it",
        ))]))
        .boxed();
    for (bytes, kind, reason) in [
        (
            pieces(b"0123456789a"),
            Kind::DataLoss,
            "has 10 bytes, and there are more",
        ),
        (
            pieces(b"012345678"),
            Kind::DataLoss,
            "there are 9 bytes with the digest",
        ),
        (
            pieces(b"0123456780"),
            Kind::DataLoss,
            "there are 10 bytes with the digest",
        ),
        (failing, Kind::PermissionDenied, "read it"),
    ] {
        let error = layout.put_blob(&layer(BLOB), bytes).await.unwrap_err();
        let text = error_chain(&error);
        assert_eq!(error.kind(), kind, "{text}");
        assert!(text.contains(reason), "{text}");
        assert_eq!(files(dir.path()), EMPTY);
    }
    let (target, _) = image("first");
    let error = layout
        .put_manifest(&target, Bytes::from_static(b"{}"), Some("1"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::DataLoss);
    assert_eq!(files(dir.path()), EMPTY);

    // A truncated file of another tool is no blob.
    let name = layer(BLOB).digest;
    fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
    fs::write(dir.path().join("blobs/sha256").join(name.encoded()), "01").unwrap();
    assert!(!layout.has(&layer(BLOB)).await.unwrap());
    layout.put_blob(&layer(BLOB), pieces(BLOB)).await.unwrap();
    assert!(layout.has(&layer(BLOB)).await.unwrap());
}

#[tokio::test]
async fn writers_at_once_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layout");
    let (subject, _) = image("subject");
    let write = |number: u32| {
        let (path, subject) = (path.clone(), subject.digest.clone());
        async move {
            let layout = LayoutDestination::open(path).await?;
            layout.put_blob(&layer(BLOB), pieces(BLOB)).await?;
            let tag = number.to_string();
            let (target, bytes) = image(&tag);
            layout.put_manifest(&target, bytes, Some(&tag)).await?;
            let (signature, bytes) = referrer(&tag, &subject);
            layout.put_referrer(&signature, bytes, &subject).await
        }
    };
    let writers = (0..16).map(|number| tokio::spawn(write(number)));
    for written in try_join_all(writers).await.unwrap() {
        written.unwrap();
    }
    let mut expected: Vec<_> = (0..16).map(|number| number.to_string()).collect();
    let mut found: Vec<_> = names(&path)
        .await
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    assert_eq!(referrers(&path, &subject).await.len(), 16);
    // The layer, the images and the signatures.
    assert_eq!(files(&path).len(), EMPTY.len() + 33);
}

#[tokio::test]
async fn what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let layout = LayoutDestination::open(dir.path()).await.unwrap();
    let (mut sender, receiver) = mpsc::channel(0);
    let put = tokio::spawn({
        let layout = layout.clone();
        async move { layout.put_blob(&layer(BLOB), receiver.boxed()).await }
    });
    // It takes the second piece once the first is written.
    for piece in BLOB.chunks(5) {
        let piece = Bytes::copy_from_slice(piece);
        futures::SinkExt::send(&mut sender, Ok(piece))
            .await
            .unwrap();
    }
    let left = [".resnap-7", "blobs/.resnap-70"].map(|name| dir.path().join(name));
    for path in &left {
        fs::write(path, "a part").unwrap();
    }
    fs::write(dir.path().join("blobs/other"), "").unwrap();
    LayoutDestination::open(dir.path()).await.unwrap();
    assert_eq!(
        files(dir.path()),
        [".resnap-0", "index.json", "oci-layout", "other"]
    );
    drop(sender);
    put.await.unwrap().unwrap();
    assert!(layout.has(&layer(BLOB)).await.unwrap());
    let blob = layer(BLOB).digest.encoded().to_owned();
    assert_eq!(
        files(dir.path()),
        [&blob, "index.json", "oci-layout", "other"]
    );

    // A future that is dropped leaves nothing either.
    let endless = stream::once(async { Ok(Bytes::from_static(b"0")) }).chain(stream::pending());
    let other = layer(b"0123");
    let put = layout.put_blob(&other, endless.boxed());
    let limit = std::time::Duration::from_millis(300);
    tokio::time::timeout(limit, put).await.unwrap_err();
    assert_eq!(
        files(dir.path()),
        [&blob, "index.json", "oci-layout", "other"]
    );
}

#[tokio::test]
async fn other_directories_and_indexes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("full")).unwrap();
    fs::write(path("full/notes.txt"), "").unwrap();
    fs::write(path("file"), "").unwrap();
    for (name, reason) in [
        ("full", "no OCI layout, and not empty; name a layout, or"),
        ("file", "not a directory"),
    ] {
        let error = LayoutDestination::open(path(name)).await.unwrap_err();
        let text = error_chain(&error);
        assert_eq!(error.kind(), Kind::InvalidArgument, "{text}");
        assert!(
            text.contains(reason) && text.contains(path(name).to_str().unwrap()),
            "{text}"
        );
    }
    assert_eq!(files(&path("full")), ["notes.txt"]);

    let layout = LayoutDestination::open(path("layout")).await.unwrap();
    let many: Vec<_> = (0..4096).map(|number| json!({"digest": number})).collect();
    for (document, kind, reason) in [
        (
            "<html>".to_owned(),
            Kind::DataLoss,
            "index.json is malformed",
        ),
        (
            r#"{"manifests": {}}"#.to_owned(),
            Kind::DataLoss,
            "index.json is malformed",
        ),
        (
            " ".repeat((4 << 20) + 1),
            Kind::ResourceExhausted,
            "more than 4194304 bytes",
        ),
        (
            json!({"manifests": many}).to_string(),
            Kind::ResourceExhausted,
            "4097 entries",
        ),
    ] {
        fs::write(path("layout/index.json"), &document).unwrap();
        let (target, bytes) = image("first");
        let error = layout
            .put_manifest(&target, bytes, Some("1"))
            .await
            .unwrap_err();
        let text = error_chain(&error);
        assert_eq!(error.kind(), kind, "{text}");
        assert!(text.contains(reason), "{text}");
        let left = fs::read_to_string(path("layout/index.json")).unwrap();
        assert_eq!(left, document);
    }
}
