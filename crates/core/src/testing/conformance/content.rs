// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images, blobs, and blobs written to snapshots.

use std::collections::HashSet;
use std::time::SystemTime;

use bytes::Bytes;
use futures::StreamExt as _;

use super::given::{Given, assert_kind, chain, key, nowhere};
use crate::{Descriptor, Digest, Ingest, Kind, Labels, LargeRead, Result, Scope, read_verified};

/// Images: by exact name, and of one namespace.
pub async fn images(given: &Given) {
    let (images, scope) = (&given.ports.images, &given.scope);
    let name = given.image.name.as_str();
    let got = images.get(scope, name).await.unwrap();
    assert_eq!(got.name, given.image.name);
    assert_eq!(got.target.digest, given.image.target.digest);
    assert_eq!(got.target.media_type, given.image.target.media_type);
    assert_eq!(got.target.size, given.image.target.size);
    let all = images.list(scope).await.unwrap();
    assert!(all.contains(&got), "{name} is not in {all:?}");
    let same = images.of_target(scope, &got.target.digest).await.unwrap();
    assert!(same.contains(&got), "{name} is not in {same:?}");
    assert_eq!(images.of_target(scope, &nowhere()).await.unwrap(), []);

    assert_kind(images.get(scope, "docker.io/none:1").await, Kind::NotFound);
    let half = &name[..name.len() - 1];
    assert_kind(images.get(scope, half).await, Kind::NotFound);
    let elsewhere = Scope::new("conformance-elsewhere");
    assert_kind(images.get(&elsewhere, name).await, Kind::NotFound);
    assert_eq!(images.list(&elsewhere).await.unwrap(), []);
}

/// Content: reading, and labels.
pub async fn content(given: &Given) {
    let (content, scope) = (given.ports.content.as_ref(), &given.scope);
    for (layer, _) in &given.layers {
        let info = content.info(scope, &layer.digest).await.unwrap();
        assert_eq!(info.size, layer.size);
        let limit = usize::try_from(layer.size).unwrap();
        let bytes = read_verified(content, scope, layer, limit, &mut LargeRead::default())
            .await
            .unwrap();
        assert_eq!(bytes.len(), limit);
    }
    assert_kind(content.info(scope, &nowhere()).await, Kind::NotFound);
    let missing = match content.open(scope, &nowhere()).await {
        Ok(mut stream) => stream.next().await.expect("an empty blob").map(drop),
        Err(error) => Err(error),
    };
    assert_kind(missing, Kind::NotFound);

    let (labeler, layer) = (&given.ports.labeler, &given.layers[0].0.digest);
    let before = content.info(scope, layer).await.unwrap().labels;
    for (key, value) in [
        ("example.com/a", "1"),
        ("example.com/b.c", "2"),
        ("example.com/a", "3"),
    ] {
        let set = labeler.set_label(scope, layer, key, value).await;
        set.unwrap_or_else(|error| panic!("set {key}: {error:?}"));
    }
    let mut expected = before;
    expected.insert("example.com/a".to_owned(), "3".to_owned());
    expected.insert("example.com/b.c".to_owned(), "2".to_owned());
    let after = content.info(scope, layer).await.unwrap();
    assert_eq!(after.labels, expected, "a label is set and the others stay");
    let list = || async { labeler.list(scope).await.unwrap() };
    assert_eq!(list().await.get(layer), Some(&after));
    for key in ["example.com/b.c", "example.com/none"] {
        let removed = labeler.remove_label(scope, layer, key).await;
        removed.unwrap_or_else(|error| panic!("remove {key}: {error:?}"));
    }
    expected.remove("example.com/b.c");
    let after = list().await;
    let labels = after.get(layer).map(|info| &info.labels);
    assert_eq!(labels, Some(&expected), "one label is removed");
    for (layer, _) in &given.layers {
        assert!(after.contains_key(&layer.digest), "{after:?}");
    }
    let elsewhere = Scope::new("conformance-elsewhere");
    assert!(labeler.list(&elsewhere).await.unwrap().is_empty());
    let missing = nowhere();
    let set = labeler.set_label(scope, &missing, "example.com/a", "1");
    assert_kind(set.await, Kind::NotFound);
    let removed = labeler.remove_label(scope, &missing, "example.com/a");
    assert_kind(removed.await, Kind::NotFound);
}

/// Ingests: written by one client at a time, resumed, and committed only if they are complete and right.
pub async fn ingests(given: &Given) {
    let (lease, scope) = given.lease("conformance-ingests").await;
    let (writer, content) = (&given.ports.writer, given.ports.content.as_ref());
    // containerd writes nothing of a blob that another namespace has.
    let bytes = Bytes::from(format!("a blob of {:?}", SystemTime::now()));
    let descriptor = Descriptor {
        digest: Digest::sha256(&bytes),
        size: bytes.len() as u64,
        ..given.layers[0].0.clone()
    };
    let name = format!("layer-{}", descriptor.digest);
    let open = || writer.ingest(&scope, &name, &descriptor);
    let half = bytes.len() / 2;

    let mut ingest = open().await.unwrap();
    assert_eq!(ingest.offset(), 0);
    assert_kind(open().await.map(drop), Kind::Unavailable);
    let existing = [descriptor.digest.clone(), given.layers[0].0.digest.clone()];
    let found = content.existing(&scope, &existing).await.unwrap();
    assert_eq!(found, HashSet::from([given.layers[0].0.digest.clone()]));
    ingest.write(bytes.slice(..half)).await.unwrap();
    assert_eq!(writer.written(&scope, &name).await.unwrap(), half as u64);
    drop(ingest);
    let mut ingest = reopen(open).await;
    assert_eq!(ingest.offset(), half as u64, "it goes on where it was");
    ingest.write(bytes.slice(half..)).await.unwrap();
    let labels = Labels::from([("example.com/a".to_owned(), "1".to_owned())]);
    ingest.commit(&labels).await.unwrap();
    let mut large = LargeRead::default();
    let read = read_verified(content, &scope, &descriptor, bytes.len(), &mut large);
    assert_eq!(read.await.unwrap(), bytes);
    let info = content.info(&scope, &descriptor.digest).await.unwrap();
    assert_eq!(info.labels.get("example.com/a"), Some(&"1".to_owned()));
    assert_kind(open().await.map(drop), Kind::AlreadyExists);

    let descriptor = Descriptor {
        digest: Digest::sha256(b"other bytes"),
        ..descriptor.clone()
    };
    let name = format!("layer-{}", descriptor.digest);
    let open = || writer.ingest(&scope, &name, &descriptor);
    let mut ingest = open().await.unwrap();
    ingest.write(bytes.clone()).await.unwrap();
    let committed = ingest.commit(&Labels::new()).await;
    assert_kind(committed, Kind::FailedPrecondition);
    drop(reopen(open).await);
    until_aborted(given, &scope, &name).await;
    assert_kind(writer.abort(&scope, &name).await, Kind::NotFound);
    assert_kind(writer.written(&scope, &name).await, Kind::NotFound);
    let missing = content.info(&scope, &descriptor.digest).await;
    assert_kind(missing, Kind::NotFound);
    given.end_lease(&lease).await;
}

/// Opens an ingest whose last client may not have closed it yet.
async fn reopen<F: Future<Output = Result<Box<dyn Ingest>>>>(
    open: impl Fn() -> F,
) -> Box<dyn Ingest> {
    loop {
        match open().await {
            Err(error) if error.kind() == Kind::Unavailable => {}
            opened => return opened.unwrap(),
        }
    }
}

/// Removes an ingest whose last client may not have closed it yet. containerd removes the directory also while
/// it writes to it, and fails with an error of no kind if that was at the same moment.
async fn until_aborted(given: &Given, scope: &Scope, name: &str) {
    loop {
        match given.ports.writer.abort(scope, name).await {
            Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Unknown) => {}
            aborted => return aborted.unwrap(),
        }
    }
}

/// The applier: the image's layers on one another.
pub async fn applier(given: &Given) {
    let (lease, scope) = given.lease("conformance-applier").await;
    let mut parent = None;
    for (index, (layer, diff_id)) in given.layers.iter().enumerate() {
        let name = format!("applied {index}");
        let mounts = given.prepare(&scope, &name, parent.as_ref()).await.unwrap();
        if index == 0 {
            let missing = Descriptor {
                digest: nowhere(),
                ..layer.clone()
            };
            let lost = given
                .prepare(&scope, "nothing applied", None)
                .await
                .unwrap();
            let applied = given
                .ports
                .applier
                .apply(&scope, &missing, &lost, false)
                .await;
            assert_kind(applied, Kind::NotFound);
            given.remove(&scope, &key("nothing applied")).await.unwrap();
        }
        let applied = given
            .ports
            .applier
            .apply(&scope, layer, &mounts, true)
            .await;
        let applied = applied.unwrap();
        assert_eq!(applied.diff_id.as_ref(), Some(&diff_id.0), "layer {index}");
        assert!(applied.size > 0, "layer {index}");
        given.commit(&scope, &name).await.unwrap();
        parent = Some(chain(&name));
    }
    given.end_lease(&lease).await;
}
