// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Names: odd bytes, long ones, and the ways a tar can spell a path.

use super::super::tar_entry::{Entry, pack};
use super::case::{Case, all_within, within};

pub(super) const CASES: &[Case] = &[
    Case::new("names with odd bytes", || {
        let names: [&[u8]; 20] = [
            b" leading and trailing ",
            b"new\nline",
            b"tab\tand\rreturn",
            b"-rf",
            b"--help",
            b"back\\slash",
            b"quote'\"`$(x)",
            b"*?[a]{b}",
            b"colon:comma,equals=percent%2f",
            b"#hash;semicolon|pipe&",
            b"...",
            b".hidden",
            b".wh",
            b".whiteout",
            b"wh.file",
            b"control\x01\x7f\x1b[31m",
            b"latin1-\xe9",
            b"not-utf8-\xff\xfe\xc0\x80",
            "nfc-\u{e9} nfd-e\u{301} \u{4f60}\u{597d} \u{1f980}".as_bytes(),
            "right-to-left-\u{202e}txt".as_bytes(),
        ];
        let files = names.map(|name| Entry::file(name, name));
        within("t/names", files)
    }),
    Case::new("odd bytes in PAX paths", || {
        let name: &[u8] = b"t/pax-names/\xff = \n\xfe";
        within(
            "t/pax-names",
            [Entry::file("replaced by the record", "odd").pax("path", name)],
        )
    }),
    Case::new("a name of 255 bytes", || {
        let long = "n".repeat(255);
        let wide = "\u{1f980}".repeat(63);
        within("t/name-max", [Entry::file(long, "long"), Entry::dir(wide)])
    }),
    Case::new("a long path by PAX", || deep("t/long-pax", |entry| entry)),
    Case::new("a long path by GNU", || {
        deep("t/long-gnu", Entry::gnu_names)
    }),
    Case::new("a long path by the prefix field", || {
        let dir = "t/long-prefix/".to_owned() + &"p".repeat(100);
        pack(&[
            Entry::dir("t"),
            Entry::dir("t/long-prefix"),
            Entry::dir("p".repeat(100)).prefix("t/long-prefix"),
            Entry::file("file", "prefixed").prefix(dir),
        ])
    }),
    Case::new("a prefix of ./", || {
        pack(&[
            Entry::dir("./"),
            Entry::dir("./t/"),
            Entry::dir("./t/dot/"),
            Entry::file("./t/dot/file", "dot"),
            Entry::hardlink("./t/dot/hard", "./t/dot/file"),
        ])
    }),
    Case::new("a prefix of /", || {
        pack(&[
            Entry::dir("/t/"),
            Entry::dir("/t/slash/"),
            Entry::file("/t/slash/file", "slash"),
            Entry::hardlink("/t/slash/hard", "/t/slash/file"),
        ])
    }),
    Case::new("the root as /", || {
        pack(&[
            Entry::dir("/"),
            Entry::dir("t"),
            Entry::dir("t/root-as-slash"),
        ])
    })
    .mkfs_fails("segmentation fault"),
    Case::new("dots and slashes inside paths", || {
        within(
            "t/dots",
            [
                Entry::dir("a/"),
                Entry::dir("b//"),
                Entry::file("a/../b/up", "up"),
                Entry::file("a/./same", "same"),
                Entry::file("b///many", "many"),
                Entry::dir("a/new/."),
            ],
        )
    }),
    Case::new("a path out of the root", || {
        pack(&[
            Entry::dir("t"),
            Entry::dir("t/escape"),
            Entry::file("../../t/escape/in", "inside"),
        ])
    }),
    Case::new("a deep nest that is stated", || {
        let dirs = (1..=100).map(|depth| Entry::dir("d/".repeat(depth)));
        let leaf = Entry::file("d/".repeat(100) + "leaf", "deep");
        all_within("t/deep", dirs.chain([leaf]).collect())
    }),
    Case::new("a deep nest that is not stated", || {
        within("t/unstated", [Entry::file("d/".repeat(8) + "leaf", "deep")])
    }),
];

/// Returns a file whose path needs more than the 100 and 155 bytes of a header, and links to it.
fn deep(root: &str, style: fn(Entry) -> Entry) -> std::io::Result<Vec<u8>> {
    let mut dir = String::new();
    let mut entries = Vec::new();
    for part in ["a", "b", "c"] {
        dir += &part.repeat(120);
        entries.push(style(Entry::dir(&dir)));
        dir += "/";
    }
    let file = dir.clone() + "file";
    entries.push(style(Entry::file(&file, "far")));
    entries.push(style(Entry::hardlink(dir + "hard", &file)));
    entries.push(style(Entry::symlink("symlink", &file)));
    all_within(root, entries)
}
