// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Leftovers of killed processes, several processes at once, and files that others have changed.

#![allow(clippy::unwrap_used)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use bytes::Bytes;
use resnap_applier::ApplierSettings;
use resnap_core::{
    ChainId, Descriptor, DiffId, Digest, Image, Kind, Labels, LeaseId, Ports, Scope, SnapshotKey,
    error_chain,
};
use resnap_local::Local;

fn scope() -> Scope {
    Scope::new(Local::NAMESPACE)
}

async fn ports(root: &Path) -> Ports {
    let store = Local::open(root).await.unwrap();
    store.ports(ApplierSettings::default())
}

fn count(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().count()
}

fn image(bytes: &[u8], name: &str) -> Image {
    Image {
        name: name.to_owned(),
        target: Descriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            digest: Digest::sha256(bytes),
            size: bytes.len() as u64,
            annotations: Default::default(),
            platform: None,
        },
        labels: Labels::new(),
    }
}

#[tokio::test]
async fn files_without_a_record_go_and_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    let ports = ports(dir.path()).await;
    let erofs = ports.snapshotters.snapshotter("erofs");
    let key = SnapshotKey::from("web".to_owned());
    let prepare = || async { erofs.prepare(&scope(), &key, None, &Labels::new()).await };
    let snapshots = dir.path().join("erofs/snapshots");
    // Of a transaction that was not committed: its number is given again.
    fs::create_dir_all(snapshots.join("1/fs/deep")).unwrap();
    let mounts = prepare().await.unwrap();
    assert_eq!(mounts[0].source, snapshots.join("1/fs").to_str().unwrap());
    assert!(!snapshots.join("1/fs/deep").exists());

    fs::create_dir_all(snapshots.join("7/fs/deep")).unwrap();
    fs::create_dir_all(dir.path().join("erofs/removed/5-1/deep")).unwrap();
    fs::write(dir.path().join("ingest/abandoned"), "half").unwrap();
    ports.leases.collect_garbage(&scope()).await.unwrap();
    assert_eq!(count(&snapshots), 1, "the container's stays");
    for empty in ["erofs/removed", "ingest"] {
        assert_eq!(count(&dir.path().join(empty)), 0, "{empty}");
    }
    erofs.remove(&scope(), &key).await.unwrap();
    assert_eq!(count(&snapshots), 0);
    let again = prepare().await.unwrap();
    assert!(
        again[0].source.ends_with("/2/fs"),
        "no number is given again"
    );
}

#[tokio::test]
async fn an_ingest_ends_with_its_lease_also_while_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let ports = ports(dir.path()).await;
    let lease = LeaseId("short".into());
    let (scope, none) = (scope(), Labels::new());
    ports.leases.create(&scope, &lease, &none).await.unwrap();
    let leased = scope.leased(lease.clone());
    let target = image(b"bytes", "").target;
    let ingest = ports.writer.ingest(&leased, "manifest-1", &target).await;
    let mut ingest = ingest.unwrap();
    ports.leases.delete(&scope, &lease).await.unwrap();
    ingest.write(Bytes::from_static(b"bytes")).await.unwrap();
    let error = ingest.commit(&Labels::new()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error:?}");
    assert!(ports.content.info(&scope, &target.digest).await.is_err());
}

#[tokio::test]
async fn other_entries_of_the_index_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = Local::open(dir.path()).await.unwrap();
    let index = dir.path().join("index.json");
    let foreign = r#"{"schemaVersion":2,"x":1,"manifests":[{"mediaType":"y","data":"z"}]}"#;
    fs::write(&index, foreign).unwrap();
    let (one, two) = (image(b"1", "web:1"), image(b"2", "web:2"));
    for image in [&one, &two, &image(b"3", "web:1")] {
        store.set_image(image).await.unwrap();
    }
    store.remove_image("web:2").await.unwrap();
    let missing = store.remove_image("web:2").await.unwrap_err();
    assert_eq!(missing.kind(), Kind::NotFound);
    let ports = store.ports(ApplierSettings::default());
    let images = ports.images.list(&scope()).await.unwrap();
    assert_eq!(images, [image(b"3", "web:1")]);
    let text = fs::read_to_string(&index).unwrap();
    for kept in [r#""x":1"#, r#""data":"z""#] {
        assert!(text.contains(kept), "{text}");
    }
    fs::write(&index, "{").unwrap();
    let error = ports.images.list(&scope()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DataLoss);
    // Nothing is collected of an index that cannot be read.
    assert!(ports.leases.collect_garbage(&scope()).await.is_err());
}

/// As many connections as processes have.
#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_commit_a_layer_one_does() {
    let dir = tempfile::tempdir().unwrap();
    let layer = ChainId::of(None, &DiffId(Digest::sha256(b"layer")));
    let commits = (0..16).map(|number| {
        let (root, layer) = (dir.path().to_owned(), layer.clone());
        tokio::spawn(async move {
            let erofs = ports(&root).await.snapshotters.snapshotter("erofs");
            let key = SnapshotKey::extraction(&number.to_string(), &layer);
            let prepared = erofs.prepare(&scope(), &key, None, &Labels::new()).await;
            prepared.unwrap();
            let committed = erofs.commit(&scope(), &layer, &key, &Labels::new()).await;
            committed.map_err(|error| error.kind())
        })
    });
    let commits: Vec<_> = commits.collect();
    let mut committed = 0;
    for commit in commits {
        match commit.await.unwrap() {
            Ok(()) => committed += 1,
            Err(kind) => assert_eq!(kind, Kind::AlreadyExists),
        }
    }
    assert_eq!(committed, 1);
}

#[tokio::test]
async fn a_store_is_closed_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("a/store");
    Local::open(&root).await.unwrap();
    let mode = |bits| fs::set_permissions(&root, Permissions::from_mode(bits)).unwrap();
    assert_eq!(root.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    mode(0o777);
    let error = Local::open(&root).await.unwrap_err();
    assert_eq!(error.kind(), Kind::PermissionDenied);
    let text = error_chain(&error);
    assert!(text.contains("chmod go-w"), "{text}");
    mode(0o700);
    fs::write(root.join("state.db"), "no database").unwrap();
    let error = Local::open(&root).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DataLoss, "{error:?}");
}

#[tokio::test]
async fn a_directory_with_other_files_is_not_taken() {
    let refusal = async |name: &str, file: &str| {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join(name);
        let file = root.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::set_permissions(&root, Permissions::from_mode(0o700)).unwrap();
        fs::write(&file, "theirs").unwrap();
        let error = Local::open(&root).await.unwrap_err();
        assert_eq!(fs::read(&file).unwrap(), b"theirs");
        error_chain(&error)
    };
    for file in ["index.json", "notes.txt"] {
        let text = refusal("root", file).await;
        assert!(text.contains("name an empty directory"), "{text}");
    }
    let blob = format!("blobs/sha256/{}", "a".repeat(64));
    for file in [&*blob, "erofs/snapshots/1/layer.erofs"] {
        let text = refusal("root", file).await;
        assert!(text.contains("no state.db"), "{text}");
    }
    for name in ["a:b", "a\\b", "a{b"] {
        let text = refusal(name, "state.db").await;
        assert!(text.contains("name another directory"), "{text}");
    }
}
