// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers that containerd's walking differ refuses.

use super::super::tar_entry::{Entry, pack};
use super::case::{Case, noise, within};

/// Layers that no containerd from 1.6 to 2.1 applies, on a lower layer with `etc/passwd`.
pub const REFUSED: &[Case] = &[
    Case::new("a sparse file of the old GNU type", || {
        within("t/refused", [Entry::new(b'S', "sparse").gnu_names()])
    }),
    Case::new("an unknown type flag", || {
        within("t/refused", [Entry::new(b'Z', "what")])
    }),
    Case::new("a contiguous file", || {
        within("t/refused", [Entry::new(b'7', "file")])
    }),
    Case::new("a whiteout of ..", || {
        within("t/refused", [Entry::file(".wh...", "")])
    }),
    Case::new("a file and then its whiteout", || {
        within(
            "t/refused",
            [Entry::file("file", ""), Entry::whiteout("file")],
        )
    }),
    Case::new("a whiteout stated twice", || {
        pack(&[Entry::whiteout("etc/passwd"), Entry::whiteout("etc/passwd")])
    }),
    Case::new("a hard link to a lower layer's file", || {
        pack(&[Entry::hardlink("t-hard", "etc/passwd")])
    }),
    Case::new("a hard link to what is not there", || {
        within("t/refused", [Entry::hardlink("hard", "nowhere")])
    }),
    Case::new("a hard link out of the root", || {
        pack(&[Entry::hardlink(
            "t-hard",
            "../../../../../../../../etc/hostname",
        )])
    }),
    Case::new("a hard link to a directory", || {
        within(
            "t/refused",
            [Entry::dir("dir"), Entry::hardlink("hard", "dir")],
        )
    }),
    Case::new("a hard link to itself", || {
        within(
            "t/refused",
            [Entry::file("file", ""), Entry::hardlink("file", "file")],
        )
    }),
    Case::new("a symbolic link to nothing", || {
        within("t/refused", [Entry::symlink("link", "")])
    }),
    Case::new("a symbolic link of 5000 bytes", || {
        within("t/refused", [Entry::symlink("link", "x/".repeat(2500))])
    }),
    Case::new("a path through a loop of symbolic links", || {
        let (a, b) = (Entry::symlink("a", "b"), Entry::symlink("b", "a"));
        within("t/refused", [a, b, Entry::file("a/file", "")])
    }),
    Case::new("a path below a file of the layer", || {
        within(
            "t/refused",
            [Entry::file("file", ""), Entry::file("file/x", "")],
        )
    }),
    Case::new("a name of 256 bytes", || {
        within("t/refused", [Entry::file("n".repeat(256), "")])
    }),
    Case::new("a name with a NUL", || {
        within(
            "t/refused",
            [Entry::file("file", "").pax("path", "t/refused/a\0b")],
        )
    }),
    Case::new("a content behind a symbolic link", || {
        let mut link = Entry::symlink("link", "x");
        link.data = b"content".to_vec();
        within("t/refused", [link])
    }),
    Case::new("a wrong checksum", || {
        let mut tar = within("t/refused", [Entry::file("file", "")])?;
        tar[0] = b'u';
        Ok(tar)
    }),
    Case::new("no tar at all", || {
        Ok(b"This is not a tar archive. ".repeat(100))
    }),
    Case::new("a file that ends early", || {
        let mut tar = within("t/refused", [Entry::file("cut", noise(100_000))])?;
        tar.truncate(50_000);
        Ok(tar)
    }),
];
