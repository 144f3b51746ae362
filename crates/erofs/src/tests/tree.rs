// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images have the content of their layers.

use std::io::Cursor;

use super::common::*;
use crate::{ErofsReader, Memory, NoLower, Writer};
use resnap_layer::testing::{Tar, typeflag};
use resnap_layer::{Layer, Time};

#[test]
fn every_type() {
    let image = image(&[
        directory("./", 0o1777),
        Item {
            uid: 70_000,
            mtime: "-1.25".to_owned(),
            ..file("file", b"hello")
        },
        Item {
            mode: 0o644,
            uid: 70_000,
            mtime: "-1.25".to_owned(),
            ..link(typeflag::HARD_LINK, "hard", "file")
        },
        link(typeflag::SYMLINK, "soft", "over/there"),
        Item {
            device: (8, 3),
            ..item(typeflag::CHARACTER, "character")
        },
        Item {
            device: (8, 0xf_ffff),
            ..item(typeflag::BLOCK, "block")
        },
        item(typeflag::FIFO, "fifo"),
        directory("directory", 0o700),
    ]);
    let modes: Vec<_> = tree(&image).values().map(|node| node.mode).collect();
    assert_eq!(
        modes,
        [
            0o41777, 0o60755, 0o20755, 0o40700, 0o10755, 0o100644, 0o100644, 0o120777
        ]
    );
    let node = find(&image, "file");
    assert_eq!(
        (node.size, node.uid, node.gid, node.links),
        (5, 70_000, 70_000, 2)
    );
    assert_eq!(
        node.mtime,
        Time {
            seconds: -2,
            nanoseconds: 750_000_000
        }
    );
    assert_eq!(find(&image, "hard"), node);
    assert_eq!(data(&image, "hard"), b"hello");
    assert_eq!(data(&image, "soft"), b"over/there");
    assert_eq!(find(&image, "character").device(), Some(0x803));
    assert_eq!(find(&image, "block").device(), Some(0xfff0_08ff));
    assert_eq!(find(&image, "").links, 3);
    assert_eq!(image.inodes(), 7);
}

#[test]
fn data_of_every_length() {
    let lengths = [
        0, 1, 511, 512, 4095, 4096, 4097, 65_536, 65_537, 300_000, 1_000_000,
    ];
    let content = |length: usize| (0..length).map(|at| (at % 251) as u8).collect::<Vec<_>>();
    let items: Vec<Item> = lengths
        .iter()
        .map(|length| file(&length.to_string(), &content(*length)))
        .collect();
    let image = image(&items);
    for length in lengths {
        assert!(
            data(&image, &length.to_string()) == content(length),
            "{length}"
        );
    }
}

#[test]
fn links_of_every_length() {
    let lengths = [1, 1983, 1984, 1985, 3968, 4031, 4032, 4033, 4095];
    let items: Vec<Item> = lengths
        .iter()
        .map(|length| link(typeflag::SYMLINK, &length.to_string(), &"t".repeat(*length)))
        .collect();
    let image = image(&items);
    for length in lengths {
        assert_eq!(data(&image, &length.to_string()).len(), length);
    }
}

#[test]
fn links_with_attributes_of_every_length() {
    // From all in one block with space left, to far over its end.
    let lengths = (3890..3940).chain([4000, 4096, 5000, 60_000]);
    let items = lengths.clone().map(|length| Item {
        xattrs: vec![("security.x".to_owned(), vec![b'x'; length])],
        ..link(typeflag::SYMLINK, &length.to_string(), &"t".repeat(100))
    });
    let long = Item {
        xattrs: vec![("security.x".to_owned(), vec![b'x'; 100])],
        ..link(typeflag::SYMLINK, "long", &"t".repeat(4095))
    };
    let items: Vec<Item> = items.chain([long, file("z", b"data")]).collect();
    let image = image(&items);
    assert_eq!(paths(&image).len(), items.len());
    for length in lengths {
        let path = length.to_string();
        assert_eq!(data(&image, &path), [b't'; 100], "{length}");
        assert_eq!(xattrs(&image, &path)[0].1.len(), length);
    }
    assert_eq!(data(&image, "long"), [b't'; 4095]);
    assert_eq!(data(&image, "z"), b"data");
}

#[test]
fn directories_of_many_sizes() {
    let mut items = Vec::new();
    // Names that sort before and between `.` and `..`, and on both sides of a block's end.
    for count in [
        0, 1, 2, 250, 251, 252, 253, 254, 255, 256, 257, 270, 271, 272, 273, 600,
    ] {
        items.push(directory(&format!("d{count}"), 0o755));
        for index in 0..count {
            items.push(file(
                &format!("d{count}/{}{index}", ["!", ".-", "..-", "z"][index % 4]),
                b"",
            ));
        }
    }
    for index in 0..100 {
        items.push(file(&format!("long/{index}{}", "n".repeat(250)), b""));
    }
    let image = image(&items);
    assert_eq!(paths(&image).len(), items.len() + 1);
    assert_eq!(image.lookup(b"d600/missing").unwrap(), None);
    assert_eq!(image.lookup(b"d600/z3/x").unwrap(), None);
    assert_eq!(find(&image, "d0").links, 2);
}

#[test]
fn names_of_any_bytes() {
    let records = [("path", &b"\xff\xfe/\x01\n"[..])];
    let stream = Tar::default().pax(&records).file("", "").end();
    let image = crate::ErofsReader::open(write(&stream).unwrap()).unwrap();
    assert!(image.lookup(b"\xff\xfe/\x01\n").unwrap().is_some());
}

#[test]
fn extended_attributes() {
    let many: Vec<_> = (0..10)
        .map(|index| (format!("user.{index}"), vec![index; 4000]))
        .collect();
    let image = image(&[
        Item {
            xattrs: vec![
                ("security.capability".to_owned(), b"\x01\0\0\x02".to_vec()),
                ("trusted.overlay.redirect".to_owned(), b"/".to_vec()),
                ("user.a".to_owned(), b"=\n\0".to_vec()),
                ("user.empty".to_owned(), b"".to_vec()),
            ],
            ..file("few", b"data")
        },
        Item {
            xattrs: many.clone(),
            ..file("many", b"data")
        },
        Item {
            xattrs: many.clone(),
            ..directory("directory", 0o755)
        },
        file("directory/file", b""),
        Item {
            xattrs: many.clone(),
            ..link(typeflag::SYMLINK, "link", "target")
        },
    ]);
    assert_eq!(
        xattrs(&image, "few"),
        [
            ("security.capability".to_owned(), b"\x01\0\0\x02".to_vec()),
            ("user.a".to_owned(), b"=\n\0".to_vec()),
            ("user.empty".to_owned(), b"".to_vec()),
        ]
    );
    assert_eq!(xattrs(&image, "many"), many);
    assert_eq!(xattrs(&image, "directory"), many);
    assert_eq!(xattrs(&image, "link"), []);
    assert_eq!(data(&image, "many"), b"data");
    assert_eq!(paths(&image).len(), 5);
}

#[test]
fn the_last_entry_wins() {
    let image = image(&[
        file("twice", b"one"),
        file("twice", b"second"),
        directory("directory", 0o700),
        file("directory/child", b""),
        directory("directory", 0o711),
        directory("gone", 0o755),
        file("gone/child/grandchild", b""),
        file("gone", b"file"),
        file("again", b""),
        directory("again", 0o755),
        file("again/child", b""),
        file("first", b"survives"),
        link(typeflag::HARD_LINK, "second", "first"),
        file("first", b"new"),
        link(typeflag::SYMLINK, "self", "x"),
        link(typeflag::HARD_LINK, "self", "self"),
    ]);
    assert_eq!(
        paths(&image),
        [
            "again",
            "again/child",
            "directory",
            "directory/child",
            "first",
            "gone",
            "second",
            "self",
            "twice"
        ]
    );
    assert_eq!(data(&image, "twice"), b"second");
    assert_eq!(find(&image, "directory").mode, 0o40711);
    assert_eq!(data(&image, "first"), b"new");
    assert_eq!(data(&image, "second"), b"survives");
    assert_eq!(find(&image, "second").links, 1);
    assert_eq!(image.inodes(), 10);
}

#[test]
fn links_on_the_way_are_followed_inside() {
    let image = image(&[
        link(typeflag::SYMLINK, "lib", "usr/lib"),
        file("lib/a", b""),
        link(typeflag::SYMLINK, "out", "../../../etc"),
        file("out/b", b""),
        link(typeflag::SYMLINK, "usr/lib/back", "/out/../var/./x"),
        file("lib/back/c", b""),
        link(typeflag::HARD_LINK, "d", "lib/back/c"),
        link(typeflag::SYMLINK, "there", "missing/../else"),
        file("there/e", b""),
        Item {
            xattrs: vec![("security.x".to_owned(), vec![0; 5000])],
            ..link(typeflag::SYMLINK, "large", "else")
        },
        file("large/f", b""),
        link(
            typeflag::SYMLINK,
            "long",
            &format!("{}else", "./".repeat(1500)),
        ),
        file("long/g", b""),
    ]);
    assert_eq!(
        paths(&image),
        [
            "d",
            "else",
            "else/e",
            "else/f",
            "else/g",
            "etc",
            "etc/b",
            "large",
            "lib",
            "long",
            "out",
            "there",
            "usr",
            "usr/lib",
            "usr/lib/a",
            "usr/lib/back",
            "var",
            "var/x",
            "var/x/c"
        ]
    );
}

#[test]
fn malformed_layers_are_refused() {
    for (items, expected) in [
        (
            vec![link(typeflag::HARD_LINK, "a", "b")],
            "add \"a\" to the EROFS image: its hard link's target \"b\" is not",
        ),
        (
            vec![directory("d", 0o755), link(typeflag::HARD_LINK, "a", "d")],
            "target \"d\" is a directory",
        ),
        (
            vec![link(typeflag::HARD_LINK, "a", "/")],
            "a hard link to the root",
        ),
        (
            vec![file(".wh.b", b""), link(typeflag::HARD_LINK, "a", "b")],
            "is not in the layer",
        ),
        // A hard link removes what is at its name before its target is looked up.
        (
            vec![file("a/f", b""), link(typeflag::HARD_LINK, "a", "a/f")],
            "add \"a\" to the EROFS image: its hard link's target \"a/f\" is not",
        ),
        (
            vec![file("a/b/f", b""), link(typeflag::HARD_LINK, "a", "a/b/f")],
            "target \"a/b/f\" is not in the layer",
        ),
        (
            vec![
                file("b/f", b""),
                link(typeflag::SYMLINK, "a/s", "../b"),
                link(typeflag::HARD_LINK, "a", "a/s/f"),
            ],
            "target \"a/s/f\" is not in the layer",
        ),
        (
            vec![file("a", b""), file("a/b", b"")],
            "add \"a/b\" to the EROFS image: \"a\" is not a directory",
        ),
        (
            vec![
                link(typeflag::SYMLINK, "a", "b"),
                link(typeflag::SYMLINK, "b", "a"),
                file("a/c", b""),
            ],
            "more than 255 symbolic links",
        ),
        (
            vec![Item {
                device: (4096, 0),
                ..item(typeflag::CHARACTER, "a")
            }],
            "device number 4096:0 is not between",
        ),
        (
            vec![Item {
                xattrs: vec![("user.a".to_owned(), vec![0; 65_536])],
                ..file("a", b"")
            }],
            "attribute \"user.a\" is too long",
        ),
    ] {
        let text = refusal(&items);
        assert!(text.contains(expected), "{text}");
    }
}

/// Returns the error of writing a layer on others with a limit of memory.
fn over(limit: u64, items: &[Item], lower: &mut dyn crate::Lower) -> String {
    let stream = layer(items);
    let mut layer = resnap_layer::Layer::new(&stream[..], Default::default());
    let mut writer = crate::Writer::new(
        std::io::Cursor::new(Vec::new()),
        Box::new(crate::Memory::new(limit)),
    )
    .unwrap();
    let added = writer.add(&mut layer);
    let written = added.and_then(|()| writer.finish(lower, [0; 16]).map(drop));
    let error = written.unwrap_err();
    std::error::Error::source(&error).unwrap().to_string()
}

/// Lower layers that have every directory, each with other attributes.
struct Heavy(u32);

impl crate::Lower for Heavy {
    fn directory(
        &mut self,
        _: &[u8],
    ) -> Result<Option<resnap_layer::Metadata>, Box<dyn std::error::Error + Send + Sync>> {
        self.0 += 1;
        let xattrs = vec![resnap_layer::Xattr {
            name: b"user.a".to_vec(),
            value: self.0.to_le_bytes().repeat(1000),
        }];
        Ok(Some(resnap_layer::Metadata {
            xattrs,
            ..Default::default()
        }))
    }
}

#[test]
fn memory_is_limited() {
    let expect = |limit: u64, items: &[Item], lower: &mut dyn crate::Lower| {
        let text = over(limit, items, lower);
        assert_eq!(text, format!("more than {limit} bytes of memory"));
    };
    // Directories that the layer does not state count, too.
    let deep = file(&"d/".repeat(1000), b"");
    expect(100_000, &[deep], &mut crate::NoLower);
    let links: Vec<Item> = (0..10)
        .map(|at| link(typeflag::SYMLINK, &at.to_string(), &"t".repeat(1000)))
        .collect();
    expect(16_000, &links, &mut crate::NoLower);
    // Names of one inode.
    let hard = |at| link(typeflag::HARD_LINK, &format!("h{at}"), "f");
    let names: Vec<Item> = [file("f", b"")]
        .into_iter()
        .chain((0..1000).map(hard))
        .collect();
    expect(30_000, &names, &mut crate::NoLower);
    // The same directory many times.
    let again = |value: Vec<u8>| Item {
        xattrs: vec![("user.a".to_owned(), value)],
        ..directory("a", 0o755)
    };
    let stated: Vec<Item> = (0..10).map(|value| again(vec![value; 4000])).collect();
    expect(20_000, &stated, &mut crate::NoLower);
    // Many small sets take more than their bytes.
    let small: Vec<Item> = (0..=255).map(|value| again(vec![value])).collect();
    expect(20_000, &small, &mut crate::NoLower);
    expect(20_000, &[file("a/b/c/d", b"")], &mut Heavy(0));
    // Attributes that are not set take nothing, and equal ones are stored once.
    let trusted: Vec<Item> = (0..100)
        .map(|at| Item {
            xattrs: vec![
                (format!("trusted.{at}"), vec![b'x'; 50_000]),
                ("user.a".to_owned(), vec![b'x'; 10_000]),
            ],
            ..directory(&at.to_string(), 0o755)
        })
        .collect();
    let stream = layer(&trusted);
    let mut layer = resnap_layer::Layer::new(&stream[..], Default::default());
    let memory = Box::new(crate::Memory::new(60_000));
    let mut writer = crate::Writer::new(std::io::Cursor::new(Vec::new()), memory).unwrap();
    writer.add(&mut layer).unwrap();
    writer.finish(&mut crate::NoLower, [0; 16]).unwrap();
}

/// A governor that allows a number of entries.
#[derive(Debug)]
struct Patience(u32);

impl crate::Governor for Patience {
    fn take(&mut self, _: u64) -> Result<(), crate::Refusal> {
        Ok(())
    }

    fn entry(&mut self) -> Result<(), crate::Refusal> {
        self.0 = self.0.checked_sub(1).ok_or("it was cancelled")?;
        Ok(())
    }
}

#[test]
fn the_governor_is_called_for_each_entry() {
    let stream = layer(&[file("a", b""), file("b", b""), file("c", b"")]);
    for (entries, refused) in [(3, None), (2, Some("it was cancelled"))] {
        let mut layer = resnap_layer::Layer::new(&stream[..], Default::default());
        let mut writer = crate::Writer::new(Sink::default(), Box::new(Patience(entries))).unwrap();
        let error = writer.add(&mut layer).err();
        let cause = error.map(|error| std::error::Error::source(&error).unwrap().to_string());
        assert_eq!(cause.as_deref(), refused);
    }
}

/// Returns the memory for very many of these entries, as counted and as the process uses it.
fn per_entry(item: impl Fn(usize) -> Item) -> u64 {
    const COUNT: usize = 20_000;
    let items: Vec<Item> = (0..COUNT).map(item).collect();
    let stream = layer(&items);
    let fits = |limit| {
        let mut layer = resnap_layer::Layer::new(&stream[..], Default::default());
        let memory = Box::new(crate::Memory::new(limit));
        let mut writer = crate::Writer::new(Sink::default(), memory).unwrap();
        let added = writer.add(&mut layer);
        added
            .and_then(|()| writer.finish(&mut crate::NoLower, [0; 16]).map(drop))
            .is_ok()
    };
    let (mut low, mut high) = (0, 1 << 30);
    while high - low > 1 << 16 {
        let middle = (low + high) / 2;
        match fits(middle) {
            true => high = middle,
            false => low = middle,
        }
    }
    high / COUNT as u64
}

#[test]
fn a_million_entries_fit_into_the_default() {
    let most = 160 << 20;
    let files = per_entry(|at| file(&format!("d{}/file-{at}", at / 1000), b""));
    println!("{files} bytes a file");
    assert!(files * 1_000_000 < most, "{files} bytes a file");
}

#[test]
fn an_entry_costs_no_more_names_than_are_left() {
    // Two deep directories in turns, so that none is the previous one.
    let deep = |name: &str| format!("{}{name}", "d/".repeat(1500));
    let items: Vec<Item> = (0..2000)
        .map(|at| file(&deep(&format!("{}/f", at % 2)), b""))
        .collect();
    let text = over(1 << 30, &items, &mut crate::NoLower);
    assert!(
        text.starts_with("the paths of the layer's entries so far take more than 10"),
        "{text}"
    );
}

#[test]
fn holes_take_no_room_and_have_an_end() {
    let sparse = |size: u64| {
        let size = size.to_string();
        let records = [
            ("GNU.sparse.size", size.as_bytes()),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.map", b"0,1,99999999999,1"),
        ];
        Tar::default().pax(&records).file("sparse", "xy").end()
    };
    let write = |size| {
        let stream = sparse(size);
        let mut layer = resnap_layer::Layer::new(&stream[..], resnap_layer::Limits::default());
        let mut writer =
            crate::Writer::new(Sink::default(), Box::new(crate::Memory::new(1 << 20)))?;
        writer.add(&mut layer)?;
        writer.finish(&mut crate::NoLower, [0; 16])
    };
    let (sink, summary) = write(1 << 40).unwrap();
    assert_eq!(summary.size, (1 << 40) + 2 * 4096);
    assert!(sink.0 < 20_000, "{}", sink.0);
    for size in [1 << 44, 1 << 60, i64::MAX as u64] {
        let error = write(size).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(cause, "more than 4294967295 blocks of 4096 bytes");
    }
}

#[test]
fn the_same_layer_gives_the_same_bytes() {
    let items: Vec<Item> = (0..500)
        .map(|index| file(&format!("d{}/{index}", index % 7), b"data"))
        .collect();
    let stream = layer(&items);
    assert!(write(&stream).unwrap() == write(&stream).unwrap());
}

#[test]
fn hard_links_change_their_target() {
    let xattr = |name: &str, value: &[u8]| (name.to_owned(), value.to_vec());
    let image = image(&[
        Item {
            xattrs: vec![
                xattr("security.capability", b"all"),
                xattr("user.kept", b"1"),
                xattr("user.new", b"1"),
            ],
            ..file("file", b"hello")
        },
        Item {
            mode: 0o4711,
            uid: 7,
            mtime: "5".to_owned(),
            xattrs: vec![xattr("user.new", b"2")],
            ..link(typeflag::HARD_LINK, "hard", "file")
        },
    ]);
    let node = find(&image, "file");
    assert_eq!(
        (node.mode, node.uid, node.mtime.seconds, node.links),
        (0o104711, 7, 5, 2)
    );
    // A new owner removes capabilities.
    let found = xattrs(&image, "file");
    assert_eq!(found, [xattr("user.kept", b"1"), xattr("user.new", b"2")]);
}

#[test]
fn a_deleted_directory_of_whiteouts_is_gone() {
    for order in [
        ["d/.wh.x", "d/s/.wh.y", ".wh.d"],
        ["d/.wh.x", ".wh.d", "d/s/.wh.y"],
        [".wh.d", "d/s/.wh.y", "d/.wh.x"],
        [".wh.d", "d/.wh..wh..opq", "d/.wh.x"],
    ] {
        let image = image(&order.map(|path| file(path, b"")));
        assert_eq!(paths(&image), ["d"], "{order:?}");
        assert!(find(&image, "d").is_whiteout(), "{order:?}");
    }
    let all = ["d/s/.wh.y", ".wh.d", "d/f"].map(|path| file(path, b""));
    let image = image(&all);
    assert_eq!(paths(&image), ["d", "d/f", "d/s"]);
    assert!(find(&image, "d/s").is_whiteout());
}

#[test]
fn the_lowest_layer_deletes_its_own_entries() {
    let stream = layer(&[
        file("w", b""),
        file(".wh.w", b""),
        file("d/old", b""),
        file(".wh.d", b""),
        file("d/new", b""),
        file("d/.wh.nothing", b""),
        file("d/.wh..wh..opq", b""),
        file(".wh.after", b""),
        file("after", b""),
    ]);
    let mut layer = Layer::new(&stream[..], resnap_layer::Limits::default());
    let target = Cursor::new(Vec::new());
    let mut writer = Writer::new(target, Box::new(Memory::new(1 << 20)))
        .unwrap()
        .lowest();
    writer.add(&mut layer).unwrap();
    let (target, _) = writer.finish(&mut NoLower, [0; 16]).unwrap();
    let image = ErofsReader::open(target.into_inner()).unwrap();
    assert_eq!(paths(&image), ["after", "d", "d/new"]);
    assert!(names(&image, "d").is_empty());
}

#[test]
fn a_device_of_the_lowest_layer_is_no_whiteout() {
    let stream = layer(&[item(typeflag::CHARACTER, "c"), file("c/in", b"")]);
    let mut layer = Layer::new(&stream[..], resnap_layer::Limits::default());
    let target = Cursor::new(Vec::new());
    let mut writer = Writer::new(target, Box::new(Memory::new(1 << 20)))
        .unwrap()
        .lowest();
    let text = format!("{:?}", writer.add(&mut layer).unwrap_err());
    assert!(text.contains("NotADirectory"), "{text}");
}

#[test]
fn nothing_is_made_that_would_inherit() {
    let acl = [2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 4, 0, 5, 0];
    let acl = [&acl[..], &[255, 255, 255, 255, 0x20, 0, 5, 0], &[255; 4]].concat();
    let listed = Item {
        xattrs: vec![("system.posix_acl_default".to_owned(), acl)],
        ..directory("d", 0o755)
    };
    for path in ["d/file", "d/implied/link"] {
        let text = refusal(&[listed.clone(), link(typeflag::SYMLINK, path, "x")].map(
            |mut item| {
                if item.path == "d/file" {
                    item.kind = typeflag::FIFO;
                }
                item
            },
        ));
        assert!(text.contains("default access control list"), "{text}");
    }
    // The directory itself, and children that come before the list, inherit nothing.
    image(std::slice::from_ref(&listed));
    image(&[file("d/file", b""), listed]);
}

#[test]
fn roots_of_any_size_are_found() {
    // A root that just fits in a block needs one of its own.
    for (others, lengths) in [(1, 60..100), (14, 180..200)] {
        for length in lengths {
            let mut items: Vec<_> = (0..others)
                .map(|number| link(typeflag::SYMLINK, &format!("{number:0255}"), "x"))
                .collect();
            items.push(link(typeflag::SYMLINK, &"n".repeat(length), "x"));
            let tar = layer(&items);
            for image in [write(&tar).unwrap(), write_joined(&tar).unwrap()] {
                let image = ErofsReader::open(image).unwrap();
                assert_eq!(paths(&image).len(), others + 1, "{length}");
            }
        }
    }
}
