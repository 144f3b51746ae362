// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap --engine local`, as processes that share a directory. No containerd runs. A full disk needs root.

#![allow(clippy::unwrap_used, reason = "what fails here is a failed test")]

mod damage;
mod records;
mod store;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::Instant;

use resnap_integration::debian::output;
use resnap_integration::image::tar_entry::pack;
use resnap_integration::image::{Compression, Entry, ImageBuilder, Layer, many, noise};
use store::{Store, applied, archive, layout, ok, program};

const PROCESSES: usize = 32;

/// The moments at which a process is killed, of the time that one takes.
const KILLS: u32 = 10;

#[test]
fn many_processes_unpack_an_image_once() {
    let (store, image) = (Store::new(), many(4).unwrap());
    let start = |_| store.unpack(&archive(&image)).spawn().unwrap();
    let processes: Vec<Child> = (0..PROCESSES).map(start).collect();
    let ended = processes
        .into_iter()
        .map(|process| process.wait_with_output().unwrap());
    let wrote = ended.map(|ended: Output| {
        assert!(ended.status.success(), "{ended:?}");
        applied(&String::from_utf8(ended.stdout).unwrap())
    });
    assert_eq!(wrote.sum::<usize>(), 4);
    store.is_ready(&archive(&image));
    store.has_only(4);
}

#[test]
fn a_process_is_killed_anywhere_and_the_next_goes_on() {
    let image = many(4).unwrap();
    let name = archive(&image);
    let start = Instant::now();
    ok(Store::new().unpack(&name));
    let takes = start.elapsed();
    for kill in 1..KILLS {
        let store = Store::new();
        let mut process = store.unpack(&name).spawn().unwrap();
        std::thread::sleep(takes * kill / KILLS);
        process.kill().unwrap();
        process.wait().unwrap();
        ok(store.unpack(&name));
        store.is_ready(&name);
        store.has_only(4);
    }
}

#[test]
fn a_shim_without_containerd_gets_mounts() {
    let (dir, image) = (tempfile::tempdir().unwrap(), many(3).unwrap());
    let from = dir.path().join("layout");
    layout(&image, &from);
    let store = dir.path().join("store");
    let example = || {
        let mut command = Command::new(program("embed_local"));
        command.args([&store, &from]).arg("web");
        command
    };
    let printed = ok(example());
    assert!(printed.starts_with("3 layers are ready\n"), "{printed}");
    let snapshots = store.join("erofs/snapshots");
    for number in ["3", "2", "1"] {
        let mount = format!(
            "erofs {}/{number}/layer.erofs (ro,loop)\n",
            snapshots.display()
        );
        assert!(printed.contains(&mount), "{printed}");
        assert!(snapshots.join(number).join("layer.erofs").is_file());
    }
    assert!(printed.contains("upperdir="), "{printed}");
    // The container of that name exists now.
    let again = example().output().unwrap();
    let error = String::from_utf8(again.stderr).unwrap();
    assert!(error.contains("the snapshot web exists"), "{error}");
}

/// A file system in memory, unmounted with the value.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: &Path, size: &str) -> Self {
        fs::create_dir(path).unwrap();
        let mut mount = Command::new("mount");
        mount.args([
            "-t",
            "tmpfs",
            "-o",
            &format!("mode=700,size={size}"),
            "tmpfs",
        ]);
        output(mount.arg(path)).unwrap();
        Self(path.to_owned())
    }

    fn resize(&self, size: &str) {
        let mut mount = Command::new("mount");
        output(
            mount
                .args(["-o", &format!("remount,size={size}")])
                .arg(&self.0),
        )
        .unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A test that failed may still have files open there.
        let _ = Command::new("umount")
            .args(["--lazy"])
            .arg(&self.0)
            .status();
    }
}

#[test]
fn a_full_disk_is_an_error_and_nothing_is_lost() {
    let store = Store::new();
    let disk = Disk::mount(&store.root(), "24m");
    let small = archive(&many(1).unwrap());
    ok(store.unpack(&small));
    let layers = (1..=3).map(|seed| {
        let file = Entry::file(format!("file{seed}"), noise(seed, 8 << 20));
        Layer::new(&pack(&[file])?, Compression::Gzip)
    });
    let layers: Vec<_> = layers.collect::<Result<_, _>>().unwrap();
    let large = ImageBuilder::new("docker.io/library/large:1").layers(layers);
    let large = archive(&large.write(&store.beside("large.tar")).unwrap());

    let ended = store.unpack(&large).output().unwrap();
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    let text = String::from_utf8(ended.stderr).unwrap();
    // The second is the database's.
    let reasons = ["o space left on device", "disk is full"];
    assert!(reasons.iter().any(|reason| text.contains(reason)), "{text}");
    assert!(text.contains("next: make room"), "{text}");
    store.is_ready(&small);
    disk.resize("256m");
    ok(store.unpack(&large));
    store.is_ready(&small);
    store.is_ready(&large);
    store.has_only(4);
}
