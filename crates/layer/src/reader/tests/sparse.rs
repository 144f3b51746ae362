// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

use super::*;
use crate::Extent;

/// A file of 10 MiB with "one" at its start and "two" after 1 MiB, in each format.
#[test]
fn sparse() {
    const SIZE: u64 = 10 << 20;
    let data = b"onetwo";
    let pairs = [(0, 3), (1 << 20, 3), (SIZE, 0)];
    let extents = vec![
        Extent {
            offset: 0,
            length: 3,
        },
        Extent {
            offset: 1 << 20,
            length: 3,
        },
    ];

    let mut gnu = Vec::new();
    for (index, (offset, length)) in pairs.iter().enumerate() {
        gnu.push((386 + 24 * index, octal(*offset, 12)));
        gnu.push((398 + 24 * index, octal(*length, 12)));
    }
    gnu.push((257, b"ustar  \0".to_vec()));
    gnu.push((483, octal(SIZE, 12)));
    let gnu: Vec<(usize, &[u8])> = gnu.iter().map(|(at, bytes)| (*at, &bytes[..])).collect();
    let gnu = Tar::default().with(b'S', "sparse", data, &gnu);

    let size = SIZE.to_string();
    let pax_0_0 = Tar::default()
        .pax(&[
            ("GNU.sparse.size", size.as_bytes()),
            ("GNU.sparse.numblocks", b"3"),
            ("GNU.sparse.offset", b"0"),
            ("GNU.sparse.numbytes", b"3"),
            ("GNU.sparse.offset", b"1048576"),
            ("GNU.sparse.numbytes", b"3"),
            ("GNU.sparse.offset", size.as_bytes()),
            ("GNU.sparse.numbytes", b"0"),
        ])
        .file("sparse", data);
    let pax_0_1 = Tar::default()
        .pax(&[
            ("GNU.sparse.size", size.as_bytes()),
            ("GNU.sparse.numblocks", b"3"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.map", b"0,3,1048576,3,10485760,0"),
        ])
        .file("GNUSparseFile.1/sparse", data);
    let mut map = b"3\n0\n3\n1048576\n3\n10485760\n0\n".to_vec();
    map.resize(512, 0);
    let pax_1_0 = Tar::default()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", size.as_bytes()),
        ])
        .file("GNUSparseFile.1/sparse", &[&map[..], data].concat());

    for (format, stream) in [
        ("gnu", gnu),
        ("0.0", pax_0_0),
        ("0.1", pax_0_1),
        ("1.0", pax_1_0),
    ] {
        let mut entries = read(&stream.file("next", b"x").end()).unwrap();
        assert_eq!(entries.len(), 2, "{format}");
        let (entry, data) = entries.remove(0);
        assert_eq!(entry.path, b"sparse", "{format}");
        let file = File {
            size: SIZE,
            extents: Some(extents.clone()),
        };
        assert_eq!(entry.kind, EntryKind::File(file), "{format}");
        assert_eq!(
            data,
            [(0, b"one".to_vec()), (1 << 20, b"two".to_vec())],
            "{format}"
        );
    }
}

#[test]
fn sparse_gnu_with_more_blocks() {
    let pair = |index: u64| [octal(index * 1024, 12), octal(1, 12)].concat();
    let first: Vec<u8> = (0..4).flat_map(pair).collect();
    let mut more: Vec<u8> = (4..25).flat_map(pair).collect();
    more.resize(504, 0);
    more.push(1);
    more.resize(512, 0);
    let mut last: Vec<u8> = (25..27).flat_map(pair).collect();
    last.resize(512, 0);

    let size = octal(100_000, 12);
    let changes: &[(usize, &[u8])] = &[
        (257, b"ustar  \0"),
        (386, &first),
        (482, b"\x01"),
        (483, &size),
    ];
    let mut stream = Tar::default();
    stream.bytes.extend(header(b'S', "sparse", 27, changes));
    let (entry, data) = one(stream.data(&more).data(&last).data(&[b'x'; 27]));
    assert_eq!(data.len(), 27);
    assert_eq!(data[26], (26 * 1024, b"x".to_vec()));
    assert!(matches!(
        entry.kind,
        EntryKind::File(File { size: 100_000, .. })
    ));
}

/// As in Go, where there are no extents in them, too.
#[test]
fn sparse_gnu_with_too_many_blocks() {
    let with = |count: usize| {
        let mut block = [0; 512];
        block[504] = 1;
        let mut stream =
            Tar::default().with(b'S', "sparse", b"", &[(257, b"ustar  \0"), (482, b"\x01")]);
        stream.bytes.extend(block.repeat(count - 1));
        stream.data(&[0; 512]).end()
    };
    assert_eq!(read(&with(2047)).unwrap().len(), 1);
    assert!(matches!(fault(&with(2048)), Fault::Sparse(_)));
}

#[test]
fn sparse_maps_that_do_not_fit() {
    for (map, size, data) in [
        ("0,3,2,3", "100", 6),
        ("5,3,0,3", "100", 6),
        ("0,3", "2", 3),
        ("0,3", "100", 4),
        ("0,3", "100", 2),
        ("0", "100", 0),
        ("0,3,", "100", 3),
        (
            "0,9223372036854775807,9223372036854775807,9223372036854775807",
            "100",
            3,
        ),
        ("-1,3", "100", 3),
    ] {
        let records: &[(&str, &[u8])] = &[
            ("GNU.sparse.map", map.as_bytes()),
            ("GNU.sparse.size", size.as_bytes()),
        ];
        let stream = Tar::default().pax(records).file("s", &vec![0; data]).end();
        assert!(matches!(fault(&stream), Fault::Sparse(_)), "{map}");
    }
    for map in [
        "",
        "x",
        "2\n0\n3\n",
        "99999999999999999999\n",
        "\n",
        "1\n0\n4\n",
    ] {
        let mut bytes = map.as_bytes().to_vec();
        bytes.resize(512, 0);
        bytes.extend(b"abc");
        let records: &[(&str, &[u8])] = &[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")];
        let stream = Tar::default().pax(records).file("s", &bytes).end();
        assert!(matches!(fault(&stream), Fault::Sparse(_)), "{map:?}");
    }
}
