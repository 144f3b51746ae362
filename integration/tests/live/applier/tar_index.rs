// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Indexes of tars, next to whole images and to what containerd writes to overlayfs.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use flate2::read::MultiGzDecoder;
use resnap_erofs::{ErofsReader, Memory, Stack, Writer, joined_size};
use resnap_integration::debian::output;
use resnap_integration::image::{Built, digest};
use resnap_integration::tree::{self, Field, Tree, compare, surprises};
use resnap_layer::Layer;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{containerd_tree, images};
use crate::command::run_to_end;
use crate::differential::lab::erofs;
use crate::node::{Node, differ_config, unique};
use crate::suite::live_tests;

live_tests! {
    Erofs: tar_indexes_have_the_trees_of_whole_images_and_of_overlayfs,
    ErofsHandler: applier_writes_tar_indexes,
}

/// A form of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Image,
    /// An index and then its tar.
    Joined,
}

/// The layers of an image, written in a form.
struct Chain {
    form: Form,
    dir: PathBuf,
    files: Vec<PathBuf>,
}

impl Chain {
    fn new(form: Form, dir: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&dir)?;
        Ok(Self {
            form,
            dir,
            files: Vec::new(),
        })
    }

    /// Writes the next layer.
    fn add(&mut self, tar: &[u8]) -> Result<()> {
        let path = self.dir.join(format!("{}.erofs", self.files.len()));
        let file = File::create_new(&path)?;
        let mut writer = Writer::new(file, Box::new(Memory::new(1 << 30)))?;
        if self.files.is_empty() {
            writer = writer.lowest();
        }
        if self.form == Form::Joined {
            writer = writer.index();
        }
        writer.add(&mut Layer::new(tar, Default::default()))?;
        let lower = self.files.iter().rev();
        let lower = lower.map(|path| Ok(ErofsReader::open(Arc::new(File::open(path)?))?));
        let mut lower = Stack::new(lower.collect::<Result<_>>()?);
        let (mut file, summary) = writer.finish(&mut lower, [1; 16])?;
        if self.form == Form::Joined {
            file.set_len(summary.size)?;
            std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))?;
            file.write_all(tar)?;
            file.set_len(joined_size(summary.size, tar.len() as u64))?;
        }
        self.files.push(path);
        Ok(())
    }

    /// Returns the tree that a container would see.
    fn tree(&self) -> Result<Tree> {
        let mut mounted = Vec::new();
        let looked = self.look(&mut mounted);
        for at in mounted.iter().rev() {
            unmount(at, UnmountFlags::DETACH)?;
        }
        looked
    }

    fn look(&self, mounted: &mut Vec<PathBuf>) -> Result<Tree> {
        let mut lower: Vec<Vec<u8>> = Vec::new();
        for file in &self.files {
            let at = file.with_extension("mounted");
            std::fs::create_dir(&at)?;
            erofs(file, &at).with_context(|| format!("mount {file:?}"))?;
            lower.insert(0, at.as_os_str().as_bytes().to_vec());
            mounted.push(at);
        }
        // An overlay of one directory cannot be.
        let empty = self.dir.join("empty");
        let merged = self.dir.join("merged");
        for dir in [&empty, &merged] {
            std::fs::create_dir(dir)?;
        }
        lower.push(empty.as_os_str().as_bytes().to_vec());
        let data = CString::new([b"lowerdir=", &lower.join(&b":"[..])[..]].concat())?;
        mount("overlay", &merged, "overlay", MountFlags::RDONLY, &*data).context("an overlay")?;
        mounted.push(merged.clone());
        tree::read(&merged)
    }
}

fn decompress(blob: Vec<u8>) -> Result<Vec<u8>> {
    let mut tar = Vec::new();
    match blob[..] {
        [0x1f, 0x8b, ..] => _ = MultiGzDecoder::new(&blob[..]).read_to_end(&mut tar)?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => tar = zstd::decode_all(&blob[..])?,
        _ => tar = blob,
    }
    Ok(tar)
}

/// Returns the trees of an image in both forms.
fn trees(dir: &Path, image: &Built, fsck: &Path) -> Result<[Tree; 2]> {
    let mut chains = [
        Chain::new(Form::Image, dir.join("i"))?,
        Chain::new(Form::Joined, dir.join("j"))?,
    ];
    for layer in &image.layers {
        let tar = decompress(image.blob(&layer.digest)?)?;
        ensure!(digest(&tar) == layer.diff_id, "{}", layer.digest);
        for chain in &mut chains {
            chain.add(&tar)?;
            output(Command::new(fsck).args(chain.files.last()))?;
        }
    }
    let [image, joined] = &chains;
    Ok([image.tree()?, joined.tree()?])
}

fn tar_indexes_have_the_trees_of_whole_images_and_of_overlayfs(node: &Node) -> Result<()> {
    let fsck = node.containerd.dist().tools().join("fsck.erofs");
    let mut faults = Vec::new();
    for (image, expected) in images()? {
        let containerd = containerd_tree(node, &image)?;
        let dir = node.containerd.scratch().join(unique("x"));
        let [whole, index] = trees(&dir, &image, &fsck).context(image.reference.clone())?;
        std::fs::remove_dir_all(&dir)?;
        let differences = compare(&whole, &index);
        ensure!(whole == index, "{}: {differences:#?}", image.reference);
        // A container has a root of its own, and mount points in it.
        let is_of_container = |path: &[u8], field| match path {
            b"." => field != Field::Mtime,
            path => path == b"run",
        };
        let mut differences = compare(&containerd, &index);
        differences.retain(|found| !is_of_container(&found.path, found.field));
        let expected: Vec<_> = expected
            .into_iter()
            .filter(|known| !is_of_container(known.path.as_bytes(), known.field))
            .collect();
        for surprise in surprises(&differences, &expected) {
            faults.push(format!("{}: {surprise}", image.reference));
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// Returns the images in the snapshots of erofs.
fn snapshots(node: &Node) -> Result<Vec<PathBuf>> {
    let snapshots = std::fs::read_dir(node.snapshotter_root("erofs").join("snapshots"))?;
    let files = snapshots.map(|snapshot| Ok(snapshot?.path().join("layer.erofs")));
    let files: Vec<_> = files.collect::<Result<_>>()?;
    Ok(files.into_iter().filter(|file| file.exists()).collect())
}

fn applier_writes_tar_indexes(node: &Node) -> Result<()> {
    let config = differ_config("resnap") + "snapshotters.erofs.erofs_mode = 'tar-index'\n";
    let mut faults = Vec::new();
    for (image, expected) in images()? {
        let containerd = containerd_tree(node, &image)?;
        let resnap = node.in_new_namespace();
        resnap.import(&image)?;
        let mut command = resnap.configured_command(&config)?;
        command.args(["unpack", &image.reference, "--snapshotter", "erofs"]);
        let unpacked = run_to_end(&mut command)?;
        ensure!(unpacked.code == Some(0), "{unpacked:#?}");
        resnap.assert_nothing_left("erofs")?;
        let tree = resnap.tree("erofs", &image.reference)?;
        for surprise in surprises(&compare(&containerd, &tree), &expected) {
            faults.push(format!("{}: {surprise}", image.reference));
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    let fsck = node.containerd.dist().tools().join("fsck.erofs");
    let written = snapshots(node)?;
    ensure!(!written.is_empty(), "no image was written");
    for file in written {
        output(Command::new(&fsck).arg(&file))?;
        let image = ErofsReader::open(File::open(&file)?)?;
        let found = (image.block_size(), image.devices());
        ensure!(found == (512, 1), "{file:?}: {found:?}");
        let names = std::fs::read_dir(file.parent().context("no snapshot")?)?;
        let names = names.map(|entry| Ok(entry?.file_name()));
        let names: Vec<_> = names.collect::<Result<_>>()?;
        ensure!(
            names.iter().all(|name| name != "layer.erofs.tar"),
            "{names:?}"
        );
    }
    Ok(())
}
