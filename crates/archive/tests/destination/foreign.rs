// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layouts with files that others put there.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use resnap_archive::LayoutDestination;
use resnap_core::{ByteStream, Destination as _, Kind, Result, error_chain};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::support::{BLOB, EMPTY, files, image, layer, pieces};

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

fn remove(path: &Path) {
    match path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        true => fs::remove_dir_all(path).unwrap(),
        false => drop(fs::remove_file(path)),
    }
}

/// Returns a blob in one piece.
fn whole(bytes: &[u8]) -> ByteStream {
    stream::iter([Ok(Bytes::copy_from_slice(bytes))]).boxed()
}

/// Checks that a layout is refused because of one of its files.
fn assert_refused<T>(result: Result<T>, file: &Path, wanted: &str) {
    let error = result.err().unwrap();
    let text = error_chain(&error);
    assert_eq!(error.kind(), Kind::InvalidArgument, "{text}");
    let reason = format!(
        "{} is no {wanted}, and links are not followed; put",
        file.display()
    );
    assert!(text.contains(&reason), "{text}");
}

#[tokio::test]
async fn what_is_no_file_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layout");
    let layout = LayoutDestination::open(&path).await.unwrap();
    let put = async || {
        let (manifest, bytes) = image("first");
        layout.put_manifest(&manifest, bytes, Some("1")).await
    };
    for name in EMPTY {
        let file = path.join(name);
        let outside = dir.path().join(name);
        fs::rename(&file, &outside).unwrap();
        let content = fs::read(&outside).unwrap();
        for place in [
            &|file: &Path| fifo(file),
            &|file: &Path| symlink(&outside, file).unwrap(),
            &|file: &Path| symlink("/nowhere", file).unwrap(),
            &|file: &Path| fs::create_dir(file).unwrap(),
        ] as [&dyn Fn(&Path); 4]
        {
            place(&file);
            assert_refused(LayoutDestination::open(&path).await, &file, "regular file");
            assert_refused(put().await, &file, "regular file");
            assert_eq!(fs::read(&outside).unwrap(), content);
            remove(&file);
        }
        fs::rename(&outside, &file).unwrap();
    }

    // Names of temporary files are skipped.
    fs::write(dir.path().join("kept"), "kept").unwrap();
    for directory in [&path, &path.join("blobs")] {
        fifo(&directory.join(".resnap-0"));
        symlink(dir.path().join("kept"), directory.join(".resnap-1")).unwrap();
    }
    let layout = LayoutDestination::open(&path).await.unwrap();
    layout.put_blob(&layer(BLOB), pieces(BLOB)).await.unwrap();
    put().await.unwrap();
    assert!(layout.has(&layer(BLOB)).await.unwrap());
    assert_eq!(fs::read(dir.path().join("kept")).unwrap(), b"kept");
}

#[tokio::test]
async fn directories_that_are_links_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    let digest = layer(BLOB).digest;
    fs::create_dir_all(outside.join("sha256")).unwrap();
    for name in [".resnap-0", digest.encoded()] {
        fs::write(outside.join(name), BLOB).unwrap();
    }
    fs::write(outside.join("sha256").join(digest.encoded()), BLOB).unwrap();
    let left = files(&outside);

    // The layout itself may be one.
    let real = dir.path().join("real");
    let path = dir.path().join("layout");
    fs::create_dir(&real).unwrap();
    symlink(&real, &path).unwrap();
    let layout = LayoutDestination::open(&path).await.unwrap();
    let put = async || layout.put_blob(&layer(BLOB), pieces(BLOB)).await;
    for name in ["blobs", "blobs/sha256"] {
        let directory = path.join(name);
        remove(&directory);
        for place in [
            &|directory: &Path| symlink(&outside, directory).unwrap(),
            &|directory: &Path| fs::write(directory, "").unwrap(),
            &|directory: &Path| fifo(directory),
        ] as [&dyn Fn(&Path); 3]
        {
            place(&directory);
            if name == "blobs" {
                let opened = LayoutDestination::open(&path).await;
                assert_refused(opened, &directory, "directory");
            }
            assert_refused(layout.has(&layer(BLOB)).await, &directory, "directory");
            assert_refused(put().await, &directory, "directory");
            assert_eq!(files(&outside), left);
            remove(&directory);
        }
        fs::create_dir(&directory).unwrap();
    }
    put().await.unwrap();
    let written = real.join("blobs/sha256").join(digest.encoded());
    assert_eq!(fs::read(written).unwrap(), BLOB);
}

#[tokio::test]
async fn wrong_blobs_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layout");
    let layout = LayoutDestination::open(&path).await.unwrap();
    let large = vec![7; (2 << 20) + 3];
    let (manifest, bytes) = image("first");
    let outside = dir.path().join("outside");
    for (blob, right) in [(layer(&large), &large[..]), (manifest.clone(), &bytes)] {
        layout.put_blob(&blob, whole(right)).await.unwrap();
        assert!(layout.has(&blob).await.unwrap());
        let file = path.join("blobs/sha256").join(blob.digest.encoded());
        let mut wrong = right.to_vec();
        *wrong.last_mut().unwrap() ^= 1;
        fs::write(&outside, right).unwrap();
        for place in [
            &|file: &Path| fs::write(file, &wrong).unwrap(),
            &|file: &Path| fs::write(file, &right[1..]).unwrap(),
            &|file: &Path| symlink(&outside, file).unwrap(),
            &|file: &Path| fifo(file),
        ] as [&dyn Fn(&Path); 4]
        {
            remove(&file);
            place(&file);
            assert!(!layout.has(&blob).await.unwrap());
            match blob == manifest {
                true => layout.put_manifest(&blob, bytes.clone(), None).await,
                false => layout.put_blob(&blob, whole(right)).await,
            }
            .unwrap();
            assert!(layout.has(&blob).await.unwrap());
            assert!(file.symlink_metadata().unwrap().is_file());
            assert_eq!(fs::read(&file).unwrap(), right);
        }
        remove(&file);
        fs::create_dir(&file).unwrap();
        assert!(!layout.has(&blob).await.unwrap());
        let put = layout.put_blob(&blob, whole(right)).await;
        assert_refused(put, &file, "regular file");
        assert_eq!(files(&path), EMPTY);
        remove(&file);
    }
}

#[tokio::test]
async fn tags_that_other_tools_reject_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let layout = LayoutDestination::open(dir.path()).await.unwrap();
    let (manifest, bytes) = image("first");
    for tag in [
        "", "a b", "../x", "/a", "a/", "a//b", "a/.b", "-a", "a-", "a..b", "a---b", "a._b", "ä",
        "a\n", "a\\b",
    ] {
        let put = layout.put_manifest(&manifest, bytes.clone(), Some(tag));
        let error = put.await.unwrap_err();
        let text = error_chain(&error);
        assert_eq!(error.kind(), Kind::InvalidArgument, "{text}");
        assert!(
            text.contains(&format!("{tag:?} is no tag of a layout; name")),
            "{text}"
        );
        assert_eq!(files(dir.path()), EMPTY);
    }
    for tag in [
        "1",
        "v1.0-rc--1",
        "docker.io/library/app:1",
        "localhost:5000/a_b/c@sha256:00+x",
    ] {
        let put = layout.put_manifest(&manifest, bytes.clone(), Some(tag));
        put.await.unwrap();
        let index = fs::read_to_string(dir.path().join("index.json")).unwrap();
        assert!(index.contains(&format!("{tag:?}")), "{index}");
    }
}
