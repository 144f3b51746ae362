// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap verify`: what differs in committed layers is found, named and mended.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::dm_verity::with_dm_verity;
use resnap_integration::image::{
    Built, Entry, ImageBuilder, Layer, beside_hello, edge_cases, hello, many, pause, web,
};
use rustix::fs::XattrFlags;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::command::{CommandOutput, run_to_end};
use crate::integrity::{VERITY, proven_snapshot};
use crate::node::{Node, unique};
use crate::poll::{DEADLINE, eventually};
use crate::suite::live_tests;

live_tests! {
    One: verify_has_no_false_alarm,
    Erofs: verify_finds_and_heals_each_difference,
    Containerd: verify_says_what_it_cannot_do,
    Erofs: verify_reads_images_by_their_blobs,
    Erofs: verify_reads_images_by_their_trees,
}

/// Runs `resnap verify --json` in which the kernel seems to have dm-verity.
fn verify(node: &Node, snapshotter: &str, arguments: &[&str]) -> Result<CommandOutput> {
    let config = if snapshotter == "erofs" { VERITY } else { "" };
    let mut command = node.configured_command(config)?;
    command
        .args(["verify", "--json", "--snapshotter", snapshotter])
        .args(arguments);
    run_to_end(&mut with_dm_verity(&command))
}

/// Returns the document of one image, of a command that ended with this code.
fn document(output: &CommandOutput, code: i32) -> Result<Value> {
    ensure!(
        output.code == Some(code),
        "want exit code {code}: {output:#?}"
    );
    // An error is a line of its own before the document.
    let start = output
        .stdout
        .find("[\n")
        .with_context(|| format!("no document: {output:#?}"))?;
    let documents: Value = serde_json::from_str(&output.stdout[start..])?;
    Ok(documents[0].clone())
}

/// Checks that all layers were compared with this evidence, and are right.
fn assert_right(node: &Node, snapshotter: &str, image: &Built, by: &str) -> Result<()> {
    let output = verify(node, snapshotter, &[&image.reference])?;
    let document = document(&output, 0)?;
    let layers = document["layers"].as_array().context("no layers")?;
    ensure!(layers.len() == image.layers.len(), "{document:#}");
    for layer in layers {
        ensure!(
            layer["state"] == "right" && layer["by"] == by,
            "{document:#}"
        );
    }
    node.assert_nothing_left(snapshotter)
}

/// Checks that exactly the layer with this index is wrong, and that exactly these texts say why.
fn assert_wrong(document: &Value, index: usize, says: &[&str]) -> Result<()> {
    let layers = document["layers"].as_array().context("no layers")?;
    for (number, layer) in layers.iter().enumerate() {
        let state = if number == index { "wrong" } else { "right" };
        ensure!(layer["state"] == state, "layer {number}: {document:#}");
    }
    let differences = &layers[index]["differences"];
    ensure!(
        differences["total"] == says.len(),
        "{differences:#} instead of {says:?}"
    );
    for (found, expected) in differences["first"]
        .as_array()
        .into_iter()
        .flatten()
        .zip(says)
    {
        let found = found.as_str().unwrap_or_default();
        ensure!(
            found.contains(expected),
            "{found:?} does not say {expected:?}"
        );
    }
    Ok(())
}

fn verify_has_no_false_alarm(node: &Node) -> Result<()> {
    let images = [
        web()?,
        hello()?,
        pause()?,
        edge_cases()?,
        many(12)?,
        beside_hello()?,
    ];
    for image in &images {
        let unpacked = node.in_new_namespace();
        unpacked.import(image)?;
        unpacked.unpack("overlayfs", &image.reference)?;
        assert_right(&unpacked, "overlayfs", image, "blob").context("by resnap")?;
        let unpacked = node.in_new_namespace();
        unpacked.import(image)?;
        unpacked.unpack_by_containerd("overlayfs", &image.reference)?;
        assert_right(&unpacked, "overlayfs", image, "blob").context("by containerd")?;
    }
    Ok(())
}

fn verify_reads_images_by_their_blobs(node: &Node) -> Result<()> {
    for image in [web()?, hello()?, edge_cases()?] {
        let node = node.in_new_namespace();
        node.import(&image)?;
        node.unpack("erofs", &image.reference)?;
        assert_right(&node, "erofs", &image, "blob")?;
    }
    Ok(())
}

/// An image of two layers that no other test has, and the names of files that only they have.
fn two_layers(node: &Node) -> Result<(Built, [String; 2])> {
    let marks = [unique("lower"), unique("upper")];
    let lower = Layer::of(&[
        Entry::dir("d").mode(0o750).owner(3, 4),
        Entry::file("d/a", "the first"),
        Entry::file("d/gone", "of the lower layer"),
        Entry::file(&marks[0], [7; 9000]),
    ])?;
    let upper = Layer::of(&[
        Entry::file("d/b", "the second").mode(0o644),
        Entry::file("d/c", "the third").xattr("user.kept", "as it is"),
        Entry::hardlink("d/link", "d/b"),
        Entry::symlink("d/symlink", "b"),
        Entry::whiteout("d/gone"),
        Entry::dir("e"),
        Entry::opaque("e"),
        Entry::file("e/f", "the last"),
        Entry::file(&marks[1], [8; 9000]),
    ])?;
    let path = node.containerd.scratch().join(unique("image"));
    let name = format!("docker.io/library/{}:1", unique("two"));
    let image = ImageBuilder::new(&name)
        .layers([lower, upper])
        .write(&path)?;
    node.import(&image)?;
    Ok((image, marks))
}

/// Returns the directory of the layer with this file.
fn directory(node: &Node, mark: &str) -> Result<PathBuf> {
    let snapshots = node.snapshotter_root("overlayfs").join("snapshots");
    for snapshot in fs::read_dir(snapshots)? {
        let fs = snapshot?.path().join("fs");
        if fs.join(mark).exists() {
            return Ok(fs);
        }
    }
    anyhow::bail!("no snapshot has {mark}")
}

fn set_byte(path: &Path, offset: u64) -> Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    file.write_all_at(&[byte[0] ^ 1], offset)?;
    Ok(())
}

/// A change of a layer's directory.
type Change = fn(&Path, mark: &str) -> Result<()>;

fn verify_finds_and_heals_each_difference(node: &Node) -> Result<()> {
    let (image, marks) = two_layers(node)?;
    let image = &image;
    node.unpack("overlayfs", &image.reference)?;
    assert_right(node, "overlayfs", image, "blob")?;
    let changes: &[(usize, &[&str], Change)] = &[
        (0, &["has other content from byte 8192 on"], |fs, mark| {
            set_byte(&fs.join(mark), 8200)
        }),
        (1, &["has other content from byte 0 on"], |fs, mark| {
            set_byte(&fs.join(mark), 0)
        }),
        (1, &["\"d/b\" has mode 4755 instead of 0644"], |fs, _| {
            Ok(fs::set_permissions(
                fs.join("d/b"),
                Permissions::from_mode(0o4755),
            )?)
        }),
        (0, &["\"d\" has owner 3:5 instead of 3:4"], |fs, _| {
            Ok(chown(fs.join("d"), Some(3), Some(5))?)
        }),
        (
            1,
            &["\"d/c\" has another value of the attribute user.kept"],
            |fs, _| {
                Ok(rustix::fs::setxattr(
                    fs.join("d/c"),
                    "user.kept",
                    b"other",
                    XattrFlags::empty(),
                )?)
            },
        ),
        (
            1,
            &["\"d/b\" has the additional attribute security.capability"],
            |fs, _| {
                let value = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
                let flags = XattrFlags::empty();
                Ok(rustix::fs::setxattr(
                    fs.join("d/b"),
                    "security.capability",
                    value,
                    flags,
                )?)
            },
        ),
        (1, &["\"d/c\" is missing"], |fs, _| {
            Ok(fs::remove_file(fs.join("d/c"))?)
        }),
        (1, &["the whiteout of \"d/gone\" is missing"], |fs, _| {
            Ok(fs::remove_file(fs.join("d/gone"))?)
        }),
        (1, &["the opaque marker of \"e\" is missing"], |fs, _| {
            Ok(rustix::fs::removexattr(
                fs.join("e"),
                "trusted.overlay.opaque",
            )?)
        }),
        (
            0,
            &[
                "\"d/new\" is not in the layer",
                "\"e\" is not in",
                "\"e/x\" is not in",
            ],
            |fs, _| {
                fs::write(fs.join("d/new"), "added")?;
                fs::create_dir(fs.join("e"))?;
                Ok(fs::write(fs.join("e/x"), "added")?)
            },
        ),
        (
            1,
            &["is a symbolic link to \"c\" instead of a symbolic link to \"b\""],
            |fs, _| {
                fs::remove_file(fs.join("d/symlink"))?;
                Ok(symlink("c", fs.join("d/symlink"))?)
            },
        ),
        (
            1,
            &["\"d/link\" is a file of 10 bytes instead of a hard link to \"d/b\""],
            |fs, _| {
                fs::remove_file(fs.join("d/link"))?;
                Ok(fs::write(fs.join("d/link"), "the second")?)
            },
        ),
        (
            0,
            &["\"d/.wh.a\": no layer can have a file of that name"],
            |fs, _| Ok(fs::write(fs.join("d/.wh.a"), "")?),
        ),
    ];
    for (index, says, change) in changes {
        let fs = directory(node, &marks[*index])?;
        change(&fs, &marks[*index])?;
        let output = verify(node, "overlayfs", &[&image.reference])?;
        assert_wrong(&document(&output, 1)?, *index, says)?;
        node.assert_nothing_left("overlayfs")?;
        let output = verify(node, "overlayfs", &["--heal", &image.reference])?;
        ensure!(document(&output, 0)?["is_healed"] == true, "{output:#?}");
        node.collect_garbage()?;
        ensure!(!fs.exists(), "{fs:?} is still there");
        assert_right(node, "overlayfs", image, "blob")?;
    }
    Ok(())
}

fn verify_says_what_it_cannot_do(node: &Node) -> Result<()> {
    let (image, marks) = two_layers(node)?;
    // Nothing is unpacked yet.
    let unknown = |arguments: &[&str], says: &str| {
        let output = verify(node, "overlayfs", arguments)?;
        let document = document(&output, 2)?;
        ensure!(document["layers"][0]["state"] == "unknown", "{document:#}");
        let reason = document["layers"][0]["reason"].as_str().unwrap_or_default();
        ensure!(reason.contains(says), "{document:#}");
        Ok::<_, anyhow::Error>(())
    };
    unknown(&[&image.reference], "not unpacked")?;
    node.unpack("overlayfs", &image.reference)?;
    let fs = directory(node, &marks[0])?;
    let inode = fs::metadata(&fs)?.ino();
    fs::write(fs.join("d/new"), "added")?;
    // Somebody uses it.
    let user = unique("user");
    let on = ["snapshots", "--snapshotter", "overlayfs"];
    node.ctr(&[&on[..], &["prepare", &user, image.chain_id()]].concat())?;
    let output = verify(node, "overlayfs", &["--heal", &image.reference])?;
    assert_wrong(&document(&output, 2)?, 0, &["d/new"])?;
    ensure!(
        output.stderr.contains("in use") && output.stderr.contains(&user),
        "{output:#?}"
    );
    node.ctr(&[&on[..], &["rm", &user]].concat())?;
    ensure!(fs::metadata(&fs)?.ino() == inode, "another directory");
    node.assert_nothing_left("overlayfs")?;
    // All images at once, slowly; then the signal.
    let output = verify(node, "overlayfs", &["--all"])?;
    assert_wrong(&document(&output, 1)?, 0, &["d/new"])?;
    let mut command = node.configured_command("")?;
    command.args([
        "verify",
        "--json",
        "--all",
        "-s",
        "overlayfs",
        "--rate",
        "1",
    ]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let verifying = command.spawn()?;
    let has_begun = || Ok(!node.leases()?.is_empty());
    eventually("a view under a lease", DEADLINE, has_begun)?;
    let id = Pid::from_raw(verifying.id().cast_signed()).context("no process")?;
    kill_process(id, Signal::INT)?;
    let output = verifying.wait_with_output()?;
    let output = CommandOutput {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8(output.stderr)?,
    };
    ensure!(document(&output, 130)?["is_stopped"] == true, "{output:#?}");
    node.assert_nothing_left("overlayfs")?;
    // The blob is damaged: nothing is removed. Then it is gone.
    let digest = &image.layers[0].digest;
    let content = node
        .containerd
        .root()
        .join("io.containerd.content.v1.content/blobs/sha256");
    let blob = content.join(digest.trim_start_matches("sha256:"));
    set_byte(&blob, fs::metadata(&blob)?.len() / 2)?;
    unknown(&["--heal", &image.reference], "")?;
    ensure!(fs::metadata(&fs)?.ino() == inode, "another directory");
    node.ctr(&["content", "rm", digest])?;
    unknown(&["--heal", &image.reference], "its blob is not on the node")?;
    node.assert_nothing_left("overlayfs")
}

fn verify_reads_images_by_their_trees(node: &Node) -> Result<()> {
    let (image, _) = two_layers(node)?;
    let mut command = node.configured_command(VERITY)?;
    command.args(["unpack", "--json", &image.reference, "-s", "erofs"]);
    run_to_end(&mut with_dm_verity(&command))?.ok()?;
    assert_right(node, "erofs", &image, "tree")?;
    let heal = || {
        let output = verify(node, "erofs", &["--heal", &image.reference])?;
        ensure!(document(&output, 0)?["is_healed"] == true, "{output:#?}");
        // The directory that was removed has the same root hash.
        node.collect_garbage()?;
        assert_right(node, "erofs", &image, "tree")
    };
    type Change = fn(&Path) -> Result<()>;
    let changes: [(usize, &str, Change); 4] = [
        (1, "layer.erofs: data block 2 does not match", |dir| {
            set_byte(&dir.join("layer.erofs"), 2 * 4096 + 7)
        }),
        (0, "layer.erofs: data block 1 does not match", |dir| {
            set_byte(&dir.join("layer.erofs"), 4096)
        }),
        (0, "layer.erofs.dmverity is missing", |dir| {
            Ok(fs::remove_file(dir.join("layer.erofs.dmverity"))?)
        }),
        (0, "layer.erofs.dmverity", |dir| {
            set_byte(&dir.join("layer.erofs.dmverity"), 0)
        }),
    ];
    for (index, says, change) in changes {
        change(&proven_snapshot(node, &image.layers[index].chain_id)?)?;
        let output = verify(node, "erofs", &[&image.reference])?;
        assert_wrong(&document(&output, 1)?, index, &[says])?;
        heal()?;
    }
    // A blob that is damaged heals nothing, and nothing is removed.
    let directory = proven_snapshot(node, image.chain_id())?;
    set_byte(&directory.join("layer.erofs"), 4096)?;
    let blobs = node
        .containerd
        .root()
        .join("io.containerd.content.v1.content/blobs/sha256");
    let digest = &image.layers[1].digest;
    set_byte(&blobs.join(digest.trim_start_matches("sha256:")), 20)?;
    let output = verify(node, "erofs", &["--heal", &image.reference])?;
    assert_wrong(&document(&output, 2)?, 1, &["data block 1"])?;
    ensure!(output.stderr.contains("the blob is damaged"), "{output:#?}");
    ensure!(directory.join("layer.erofs").exists(), "the layer is gone");
    node.assert_nothing_left("erofs")
}
