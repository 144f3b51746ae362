// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Hash trees, next to those of the real `veritysetup`.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::debian::{output, provision};
use resnap_verity::{BlockSize, BoxedError, RootHash, Work, append, verify};
use tempfile::TempDir;

use crate::node::Node;
use crate::suite::live_tests;

live_tests! {
    One: verity_trees_are_those_of_veritysetup,
    One: verity_trees_with_any_salt_are_read,
}

const UUID: [u8; 16] = *b"0123456789abcdef";

const UUID_TEXT: &str = "30313233-3435-3637-3839-616263646566";

fn go_on() -> Result<(), BoxedError> {
    Ok(())
}

/// Numbers of blocks around those at which the tree gets a level more.
fn boundaries(block: BlockSize) -> &'static [u64] {
    match block {
        BlockSize::B512 => &[
            1, 2, 7, 8, 15, 16, 17, 255, 256, 257, 4095, 4096, 4097, 65537,
        ],
        BlockSize::B4096 => &[1, 2, 127, 128, 129, 16383, 16384, 16385],
    }
}

/// Writes blocks that differ.
fn write_data(path: &Path, block: BlockSize, blocks: u64) -> Result<File> {
    let mut bytes = vec![0; (blocks * block.bytes()) as usize];
    for (number, block) in bytes.chunks_mut(block.bytes() as usize).enumerate() {
        block[..8].copy_from_slice(&number.to_le_bytes());
        block[100] = 1;
    }
    std::fs::write(path, bytes)?;
    let file = File::options().read(true).write(true).open(path)?;
    Ok(file)
}

fn veritysetup(arguments: &[&str]) -> Result<String> {
    let program = provision()?.tools().join("veritysetup");
    output(Command::new(program).args(arguments))
}

/// Makes a tree with `veritysetup format` and returns its root hash.
fn format(path: &str, block: BlockSize, blocks: u64, offset: u64, more: &[&str]) -> Result<String> {
    let arguments = [
        format!("--data-block-size={}", block.bytes()),
        format!("--hash-block-size={}", block.bytes()),
        format!("--data-blocks={blocks}"),
        format!("--hash-offset={offset}"),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let said = veritysetup(&[&["format", path, path], &arguments[..], more].concat())?;
    let root = said
        .lines()
        .find_map(|line| line.strip_prefix("Root hash:"));
    Ok(root.context("no root hash")?.trim().to_owned())
}

fn verity_trees_are_those_of_veritysetup(_: &Node) -> Result<()> {
    let dir = TempDir::new()?;
    let [ours, theirs] = ["ours", "theirs"].map(|name| dir.path().join(name));
    let path = |path: &Path| path.to_str().map(str::to_owned).context("no UTF-8");
    for block in [BlockSize::B512, BlockSize::B4096] {
        for &blocks in boundaries(block) {
            let case = format!("{blocks} blocks of {} bytes", block.bytes());
            write_data(&theirs, block, blocks)?;
            let file = write_data(&ours, block, blocks)?;
            let size = blocks * block.bytes();
            let tree = append(&file, size, block, UUID, None, Work::new(&go_on))?;

            let salt = format!("--salt={}", "0".repeat(64));
            let uuid = format!("--uuid={UUID_TEXT}");
            let more = [&*salt, &uuid];
            let root = format(&path(&theirs)?, block, blocks, tree.hash_offset, &more)?;
            ensure!(root == tree.root_hash.to_string(), "{case}: {root}");
            let bytes = std::fs::read(&ours)?;
            ensure!(bytes == std::fs::read(&theirs)?, "{case}: other bytes");

            let offset = format!("--hash-offset={}", tree.hash_offset);
            let ours = path(&ours)?;
            let accepts = || veritysetup(&["verify", &ours, &ours, &root, &offset]);
            accepts().context(case.clone())?;
            verify(
                &file,
                tree.hash_offset,
                &tree.root_hash,
                ..,
                Work::new(&go_on),
            )?;
            file.write_all_at(b"?", size / 2)?;
            ensure!(accepts().is_err(), "{case}: veritysetup accepts other data");
        }
    }
    Ok(())
}

fn verity_trees_with_any_salt_are_read(_: &Node) -> Result<()> {
    let dir = TempDir::new()?;
    let path = dir.path().join("device");
    let text = path.to_str().context("no UTF-8")?;
    let long = format!("--salt={}", "5a".repeat(256));
    for salt in ["--salt=-", "--salt=00", "--salt=0123456789", &long] {
        for block in [BlockSize::B512, BlockSize::B4096] {
            let file = write_data(&path, block, 1000)?;
            let offset = 1000 * block.bytes();
            let root = format(text, block, 1000, offset, &[salt])?;
            let root: RootHash = root.parse()?;
            verify(&file, offset, &root, .., Work::new(&go_on)).context(salt.to_owned())?;
            file.write_all_at(b"?", 777 * block.bytes())?;
            let result = verify(&file, offset, &root, .., Work::new(&go_on));
            let error = result.err().context("other data is accepted")?;
            ensure!(error.to_string().starts_with("data block 777 "), "{error}");
        }
    }
    Ok(())
}
