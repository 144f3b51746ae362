// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

use super::*;
use crate::testing::{Tar, binary, header, octal};
use crate::{EntryKind, File, Metadata, Time, Xattr};

mod go;
mod sparse;

/// Pieces of data with their offsets.
type Data = Vec<(u64, Vec<u8>)>;

/// Returns all entries with their data, or the first error.
fn read(stream: &[u8]) -> Result<Vec<(Entry, Data)>, Error> {
    let mut layer = Layer::new(stream, Limits::default());
    let mut entries = Vec::new();
    while let Some(entry) = layer.next()? {
        let mut data = Vec::new();
        while let Some(piece) = layer.data()? {
            data.push((piece.offset, piece.bytes.to_vec()));
        }
        entries.push((entry, data));
    }
    assert!(layer.next()?.is_none());
    assert!(layer.data()?.is_none());
    assert!(layer.finish()?.is_empty());
    Ok(entries)
}

fn one(stream: Tar) -> (Entry, Data) {
    let mut entries = read(&stream.end()).unwrap();
    assert_eq!(entries.len(), 1);
    entries.remove(0)
}

fn fault(stream: &[u8]) -> Fault {
    read(stream).unwrap_err().fault
}

fn text(stream: &[u8]) -> String {
    let error = read(stream).unwrap_err();
    format!("{error}: {}", error.fault)
}

fn paths(stream: &[u8]) -> Vec<String> {
    let entries = read(stream).unwrap();
    entries
        .iter()
        .map(|(entry, _)| String::from_utf8(entry.path.clone()).unwrap())
        .collect()
}

#[test]
fn data_in_one_piece_has_an_offset() {
    let sparse: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"0"),
        ("GNU.sparse.minor", b"1"),
        ("GNU.sparse.size", b"5"),
        ("GNU.sparse.numblocks", b"1"),
        ("GNU.sparse.map", b"0,5"),
    ];
    let stream = Tar::default()
        .file("a", [1; 200_000])
        .directory("b")
        .file(".wh.c", b"hidden")
        .file("d", b"")
        .pax(sparse)
        .file("e", b"holes")
        .file("f", b"last")
        .end();
    let mut layer = Layer::new(&stream[..], Limits::default());
    let mut found = Vec::new();
    while let Some(entry) = layer.next().unwrap() {
        let offset = layer.tar_offset();
        if let Some(offset) = offset {
            let piece = layer.data().unwrap().unwrap().bytes;
            assert_eq!(&stream[offset as usize..][..piece.len()], piece);
        }
        assert_eq!(layer.tar_offset(), offset);
        found.push((String::from_utf8(entry.path).unwrap(), offset));
    }
    let expected = [
        ("a", Some(512)),
        ("b", None),
        ("c", None),
        ("d", None),
        ("e", None),
        ("f", Some(stream.len() as u64 - 1536)),
    ];
    assert_eq!(
        found,
        expected.map(|(path, offset)| (path.to_owned(), offset))
    );
}

#[test]
fn a_file() {
    let (entry, data) = one(Tar::default().file("./a/b", b"hello"));
    let file = File {
        size: 5,
        extents: None,
    };
    let expected = Entry {
        path: b"a/b".to_vec(),
        kind: EntryKind::File(file),
        metadata: Metadata {
            mode: 0o644,
            uid: 1000,
            gid: 1001,
            mtime: Time {
                seconds: 999,
                nanoseconds: 0,
            },
            xattrs: Vec::new(),
        },
    };
    assert_eq!(entry, expected);
    assert_eq!(data, [(0, b"hello".to_vec())]);
}

#[test]
fn kinds() {
    let device: &[(usize, &[u8])] = &[(329, b"0000010\0"), (337, b"0000003\0")];
    let stream = Tar::default()
        .with(0, "nul", b"x", &[])
        .with(0, "old-directory/", b"", &[])
        .with(b'7', "contiguous", b"x", &[])
        .link(b'1', "hard", "/../nul")
        .link(b'2', "soft", "../nul")
        .with(b'3', "character", b"", device)
        .with(b'4', "block", b"", device)
        .with(b'5', "directory/", b"", &[(100, b"0041777\0")])
        .with(b'6', "fifo", b"", &[])
        .end();
    let entries = read(&stream).unwrap();
    let kinds: Vec<EntryKind> = entries
        .iter()
        .map(|(entry, _)| entry.kind.clone())
        .collect();
    let file = EntryKind::File(File {
        size: 1,
        extents: None,
    });
    assert_eq!(
        kinds,
        [
            file.clone(),
            EntryKind::Directory,
            file,
            EntryKind::Hardlink(b"nul".to_vec()),
            EntryKind::Symlink(b"../nul".to_vec()),
            EntryKind::Character { major: 8, minor: 3 },
            EntryKind::Block { major: 8, minor: 3 },
            EntryKind::Directory,
            EntryKind::Fifo,
        ]
    );
    assert_eq!(entries[7].0.metadata.mode, 0o1777);
}

#[test]
fn root() {
    let stream = Tar::default()
        .with(b'5', "./", b"", &[(100, b"0000700\0")])
        .file("/", b"data")
        .link(b'2', "a/..", "b")
        .end();
    let entries = read(&stream).unwrap();
    assert_eq!(entries.len(), 1);
    let (entry, _) = &entries[0];
    assert_eq!(
        (&entry.path[..], &entry.kind),
        (&b""[..], &EntryKind::Directory)
    );
    assert_eq!(entry.metadata.mode, 0o700);
}

#[test]
fn whiteouts() {
    let stream = Tar::default()
        .file("a/.wh.b", b"ignored")
        .file("a/.wh..wh..opq", b"")
        .file(".wh..wh.plnk", b"1234")
        .with(b'5', ".wh.d/", b"", &[])
        .end();
    let entries = read(&stream).unwrap();
    let found: Vec<_> = entries
        .iter()
        .map(|(entry, data)| (&entry.path[..], entry.kind.clone(), data.len()))
        .collect();
    assert_eq!(
        found,
        [
            (&b"a/b"[..], EntryKind::Whiteout, 0),
            (b"a", EntryKind::Opaque, 0),
            (b".wh.plnk", EntryKind::Whiteout, 0),
            (b"d", EntryKind::Whiteout, 0),
        ]
    );
    let stream = Tar::default().file(".wh..wh.plnk/1.2", b"").end();
    assert_eq!(paths(&stream), [".wh..wh.plnk/1.2"]);
}

#[test]
fn long_names() {
    let long = "n".repeat(200) + "/" + &"m".repeat(200);
    let terminated = [long.as_bytes(), b"\0"].concat();
    let pax = Tar::default().pax(&[("path", long.as_bytes()), ("linkpath", b"over there")]);
    let (entry, _) = one(pax.link(b'2', "short", "short"));
    assert_eq!(entry.path, long.as_bytes());
    assert_eq!(entry.kind, EntryKind::Symlink(b"over there".to_vec()));

    let gnu = Tar::default()
        .with(b'L', "././@LongLink", &terminated, &[])
        .with(b'K', "././@LongLink", &terminated, &[])
        .pax(&[("path", b"loses"), ("linkpath", b"loses")]);
    let (entry, _) = one(gnu.link(b'1', "short", "short"));
    assert_eq!(entry.path, long.as_bytes());
    assert_eq!(entry.kind, EntryKind::Hardlink(long.into_bytes()));

    let (entry, _) = one(Tar::default().with(b'0', "name", b"", &[(345, b"prefix")]));
    assert_eq!(entry.path, b"prefix/name");
    // Go before 1.8 wrote prefixes to the fields that hold times in the GNU format.
    for (times, path) in [
        (&b"00000001747\0"[..], "name"),
        (b"prefix\0", "prefix/name"),
        (b"\xffrefix\0", "name"),
    ] {
        let gnu = &[(257, &b"ustar  \0"[..]), (345, times)];
        let (entry, _) = one(Tar::default().with(b'0', "name", b"", gnu));
        assert_eq!(entry.path, path.as_bytes());
    }
}

#[test]
fn extensions_end_with_their_entry() {
    let stream = Tar::default()
        .pax(&[("path", b"a")])
        .file("b", b"")
        .file("c", b"")
        .end();
    assert_eq!(paths(&stream), ["a", "c"]);
    let stream = Tar::default()
        .pax(&[("path", b"a/..")])
        .file("b", b"")
        .file("c", b"")
        .end();
    assert_eq!(paths(&stream), ["c"]);
    let stream = Tar::default()
        .with(b'g', "global", &crate::testing::record("path", b"all"), &[])
        .file("b", b"")
        .end();
    assert_eq!(paths(&stream), ["b"]);
}

#[test]
fn numbers() {
    let short = |value| {
        let mut bytes = binary(value).split_off(4);
        bytes[0] |= 0x80;
        bytes
    };
    let (entry, _) = one(Tar::default().with(
        b'0',
        "a",
        b"",
        &[
            (108, &short(0xffff_fffe)[..]),
            (116, &short(3_000_000)),
            (136, &binary(-7)),
        ],
    ));
    assert_eq!(
        (entry.metadata.uid, entry.metadata.gid),
        (u32::MAX - 1, 3_000_000)
    );
    assert_eq!(
        entry.metadata.mtime,
        Time {
            seconds: -7,
            nanoseconds: 0
        }
    );

    let records: &[(&str, &[u8])] = &[
        ("uid", b"4294967294"),
        ("gid", b"0"),
        ("mtime", b"-1.25"),
        ("size", b"3"),
        ("mode", b""),
    ];
    let mut stream = Tar::default().pax(records);
    stream.bytes.extend(header(b'0', "a", 0, &[]));
    let (entry, data) = one(stream.data(b"abc"));
    assert_eq!((entry.metadata.uid, entry.metadata.gid), (u32::MAX - 1, 0));
    assert_eq!(
        entry.metadata.mtime,
        Time {
            seconds: -2,
            nanoseconds: 750_000_000
        }
    );
    assert_eq!(data, [(0, b"abc".to_vec())]);

    for records in [
        &[("uid", &b"4294967295"[..])],
        &[("uid", b"4294967296")],
        &[("gid", b"-1")],
    ] {
        let stream = Tar::default().pax(records).file("a", b"").end();
        assert!(matches!(fault(&stream), Fault::Owner { .. }));
        assert!(text(&stream).starts_with("read entry \"a\" at byte 0 of the layer: the "));
    }
}

#[test]
fn extended_attributes() {
    let (entry, _) = one(Tar::default()
        .pax(&[
            ("SCHILY.xattr.user.b", b"first"),
            ("SCHILY.xattr.user.a", b"\0=\n\xff"),
            ("SCHILY.xattr.user.b", b"last"),
            ("SCHILY.xattr.user.empty", b""),
            ("LIBARCHIVE.xattr.user.c", b"YQ"),
        ])
        .file("a", b""));
    let xattr = |name: &str, value: &[u8]| Xattr {
        name: name.as_bytes().to_vec(),
        value: value.to_vec(),
    };
    assert_eq!(
        entry.metadata.xattrs,
        [
            xattr("user.a", b"\0=\n\xff"),
            xattr("user.b", b"last"),
            xattr("user.empty", b"")
        ]
    );
}

#[test]
fn ends() {
    let stream = Tar::default().file("a", b"x").bytes;
    for tail in [0, 512, 1024, 10_240] {
        let mut stream = stream.clone();
        stream.resize(stream.len() + tail, 0);
        assert_eq!(paths(&stream), ["a"]);
    }
    // Without padding, too.
    assert_eq!(paths(&stream[..513]), ["a"]);
    assert!(read(b"").unwrap().is_empty());

    for bytes in [&b"{}"[..], &[b'x'; 512], &[b'x'; 5000]] {
        assert!(matches!(fault(bytes), Fault::NotTar));
    }
    let late = [&stream, &[b'x'; 512][..]].concat();
    assert!(matches!(fault(&late), Fault::Checksum));

    assert!(matches!(fault(&stream[..512]), Fault::Truncated));
    assert!(text(&stream[..512]).starts_with("read entry \"a\" at byte 0 "));
    assert!(matches!(fault(&stream[..511]), Fault::Truncated));
    assert!(matches!(
        fault(&Tar::default().pax(&[("path", b"a")]).end()),
        Fault::Truncated
    ));
    let late = [&[0; 512][..], &stream].concat();
    assert!(matches!(fault(&late), Fault::Trailer));

    let mut garbage = Tar::default().file("a", b"").end();
    garbage.extend(vec![b'g'; 1_000_000]);
    assert_eq!(paths(&garbage), ["a"]);
}

#[test]
fn malformed_layers_are_refused() {
    let long = "x/".repeat(2048);
    let cases: Vec<(Tar, &str)> = vec![
        (
            Tar::default().with(b'V', "volume", b"", &[]),
            "entries of type 'V' are not supported",
        ),
        (
            Tar::default().with(b'0', "a", b"", &[(148, b"0000000\0")]),
            "checksum",
        ),
        (
            Tar::default().with(b'0', "a", b"", &[(124, b"-1")]),
            "bad number in field size",
        ),
        (
            Tar::default().with(b'0', "a", b"", &[(124, &binary(-1))]),
            "field size",
        ),
        (
            Tar::default().with(b'0', "a", b"", &[(108, b"x")]),
            "bad number in field uid",
        ),
        (
            Tar::default()
                .pax(&[("path", long.as_bytes())])
                .file("a", b""),
            "more than 4095 bytes of a path",
        ),
        (
            Tar::default().pax(&[("path", b"a\0b")]).file("a", b""),
            "NUL",
        ),
        (
            Tar::default()
                .pax(&[("linkpath", long.as_bytes())])
                .link(b'2', "a", ""),
            "4095",
        ),
        (
            Tar::default().pax(&[("size", b"x")]).file("a", b""),
            "field size",
        ),
        (
            Tar::default()
                .pax(&[("SCHILY.xattr.", b"x")])
                .file("a", b""),
            "no name",
        ),
        (
            Tar::default()
                .pax(&[("SCHILY.xattr.user.a", &[0; 300_000])])
                .file("a", b""),
            "262144",
        ),
        (
            Tar::default()
                .pax(&[("comment", &[0; 2 << 20])])
                .file("a", b""),
            "1048576 bytes of extension",
        ),
        (
            Tar::default()
                .with(b'x', "pax", b"9 a=b\n", &[])
                .file("a", b""),
            "malformed pax",
        ),
        (
            Tar::default()
                .with(b'x', "pax", b"6 a=bX", &[])
                .file("a", b""),
            "malformed pax",
        ),
        (
            Tar::default().link(b'2', "a", ""),
            "symbolic link to nothing",
        ),
        (Tar::default().file(".wh.", b""), "whiteout of no name"),
    ];
    for (stream, expected) in cases {
        let text = text(&stream.end());
        assert!(text.contains(expected), "{text}: {expected}");
    }
    // The limit applies before data is read.
    let huge = header(b'x', "pax", 4 << 30, &[]);
    assert!(matches!(fault(&huge), Fault::Limit { .. }));
}

#[test]
fn ambiguous_archives_are_refused() {
    let global =
        |tar: Tar, name| tar.with(b'g', name, &crate::testing::record("comment", b"x"), &[]);
    let link = |target| Tar::default().link(b'1', "a", target);
    for (stream, expected) in [
        (
            global(
                Tar::default().pax(&[("path", b"evil")]),
                "pax_global_header",
            ),
            "a global header between an extension header and its entry",
        ),
        (
            global(Tar::default(), "etc/.wh.secret"),
            "a global header after",
        ),
        (
            global(Tar::default(), ".wh.secret"),
            "a global header after",
        ),
        (
            global(Tar::default(), "tmp/GlobalHead.1.1"),
            "a global header after",
        ),
        (
            global(Tar::default().file("passwd", b""), "passwd"),
            "a global header after",
        ),
        (link("a/../b"), "a hard link through `..`"),
        (link("b/"), "a hard link to a name with a slash"),
    ] {
        let stream = stream.file("good", b"").end();
        assert!(matches!(fault(&stream), Fault::Ambiguous(_)), "{expected}");
        let text = text(&stream);
        assert!(
            text.contains(expected) && text.ends_with("without it"),
            "{text}"
        );
    }
    let stream = global(global(Tar::default(), "pax_global_header"), "./other");
    assert_eq!(paths(&stream.file("good", b"").end()), ["good"]);
}

#[test]
fn devices_that_linux_has() {
    let device = |major: u64, minor: u64| {
        let (major, minor) = (octal(major, 8), octal(minor, 8));
        Tar::default().with(b'3', "a", b"", &[(329, &major), (337, &minor)])
    };
    let (entry, _) = one(device(4095, 1_048_575));
    let kind = EntryKind::Character {
        major: 4095,
        minor: 1_048_575,
    };
    assert_eq!(entry.kind, kind);
    for (major, minor) in [(4096, 0), (0, 1_048_576)] {
        let text = text(&device(major, minor).end());
        let expected =
            format!("the device number {major}:{minor} is not between 0:0 and 4095:1048575");
        assert!(text.ends_with(&expected), "{text}");
    }
}

#[test]
fn global_headers_count_as_extensions() {
    let comment = vec![b'x'; 300_000];
    let global = |tar: Tar| tar.with(b'g', "g", &crate::testing::record("comment", &comment), &[]);
    let three = global(global(global(Tar::default())));
    assert_eq!(paths(&three.clone().file("a", b"").end()), ["a"]);
    assert!(matches!(
        fault(&global(three).file("a", b"").end()),
        Fault::Limit { .. }
    ));
}

#[test]
fn entries_are_counted() {
    let stream = Tar::default()
        .file("a", b"")
        .file("./", b"")
        .file("c", b"")
        .end();
    let limits = Limits {
        entries: 2,
        ..Limits::default()
    };
    let mut layer = Layer::new(&stream[..], limits);
    assert!(layer.next().unwrap().is_some());
    assert_eq!(
        layer.next().unwrap_err().fault.to_string(),
        "more than 2 entries"
    );
    assert!(layer.next().unwrap().is_none());
}

/// A stream that returns one byte at a time.
struct Slow<'a>(&'a [u8]);

impl Read for Slow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = buffer.len().min(1);
        self.0.read(&mut buffer[..count])
    }
}

#[test]
fn small_data_comes_whole_however_it_is_read() {
    let data: Vec<u8> = (0..65_536_u32).map(|at| (at / 7) as u8).collect();
    let large: Vec<u8> = data.repeat(20);
    let stream = Tar::default()
        .file("a", &data)
        .file("large", &large)
        .file("b", &data)
        .end();
    let mut layer = Layer::new(Slow(&stream), Limits::default());
    for expected in [&data, &large, &data] {
        layer.next().unwrap().unwrap();
        let first = layer.data().unwrap().unwrap().bytes.to_vec();
        assert!(expected.starts_with(&first));
        let mut all = first.clone();
        while let Some(piece) = layer.data().unwrap() {
            assert_eq!(piece.offset, all.len() as u64);
            all.extend(piece.bytes);
        }
        assert_eq!(&all, expected);
        assert!(expected.len() > 65_536 || all.len() == first.len());
    }
}

#[test]
fn archives_of_the_tar_crate_are_read() {
    let mut builder = tar::Builder::new(Vec::new());
    for path in [
        "plain",
        &format!("long/{}/{}", "n".repeat(150), "m".repeat(100)),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        header.set_mode(0o4755);
        header.set_uid(3_000_000);
        builder
            .append_data(&mut header, path, &b"data"[..])
            .unwrap();
    }
    let entries = read(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(entries.len(), 2);
    for (entry, data) in &entries {
        assert_eq!(
            (entry.metadata.mode, entry.metadata.uid),
            (0o4755, 3_000_000)
        );
        assert_eq!(data, &[(0, b"data".to_vec())]);
    }
    assert_eq!(entries[1].0.path.len(), 5 + 150 + 1 + 100);
}
