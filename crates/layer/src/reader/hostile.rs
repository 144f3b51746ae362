// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Whatever the bytes are: an answer, in bounded memory, without a panic.

use proptest::prelude::*;

use super::*;
use crate::EntryKind;
use crate::testing::{Tar, header, octal};

/// Something of everything.
fn layer() -> Vec<u8> {
    let mut map = b"2\n0\n3\n1024\n3\n".to_vec();
    map.resize(512, 0);
    map.extend(b"onetwo");
    let size = octal(4096, 12);
    let gnu: &[(usize, &[u8])] = &[
        (257, b"ustar  \0"),
        (386, b"00000000000\x0000000000003\0"),
        (410, b"00000001000\x0000000000003\0"),
        (483, &size),
    ];
    Tar::default()
        .with(b'5', "./", b"", &[])
        .file("file", &[b'x'; 1500])
        .with(b'L', "long", b"a/long/name\0", &[])
        .link(b'1', "short", "file")
        .pax(&[
            ("mtime", b"-1.5"),
            ("SCHILY.xattr.user.a", b"value"),
            ("uid", b"70000"),
        ])
        .link(b'2', "soft", "file")
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", b"4096"),
        ])
        .file("packed", &map)
        .with(b'S', "gnu", b"onetwo", gnu)
        .pax(&[
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.map", b"0,3,1024,3"),
            ("GNU.sparse.size", b"4096"),
        ])
        .file("sparse-0.1", b"onetwo")
        .file("d/.wh..wh..opq", b"")
        .file("d/.wh.gone", b"")
        .with(b'3', "device", b"", &[])
        .end()
}

/// Whether all names of a path below the root are names.
fn is_path(path: &[u8]) -> bool {
    let is_name = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && name.len() <= 255;
    !path.contains(&0) && path.split(|byte| *byte == b'/').all(is_name)
}

/// Reads it all and checks what is promised of it.
fn exhaust(stream: &[u8]) -> bool {
    let mut layer = Layer::new(stream, Limits::default());
    loop {
        match layer.next() {
            Ok(Some(entry)) => {
                assert!(
                    entry.metadata.mode <= 0o7777
                        && entry.metadata.mtime.nanoseconds < 1_000_000_000
                );
                assert!(entry.metadata.uid < u32::MAX && entry.metadata.gid < u32::MAX);
                let is_root = matches!(entry.kind, EntryKind::Directory | EntryKind::Opaque);
                assert!(is_root && entry.path.is_empty() || is_path(&entry.path));
                match &entry.kind {
                    EntryKind::Hardlink(target) => assert!(is_path(target)),
                    EntryKind::Symlink(target) => {
                        assert!(!target.is_empty() && !target.contains(&0))
                    }
                    EntryKind::Character { major, minor } | EntryKind::Block { major, minor } => {
                        assert!(*major < 1 << 12 && *minor < 1 << 20);
                    }
                    _ => {}
                }
                let size = match &entry.kind {
                    EntryKind::File(file) => file.size,
                    _ => 0,
                };
                let mut end = 0;
                loop {
                    match layer.data() {
                        Ok(Some(piece)) => {
                            assert!(piece.offset >= end && !piece.bytes.is_empty());
                            end = piece.offset + piece.bytes.len() as u64;
                            assert!(end <= size);
                        }
                        Ok(None) => break,
                        Err(error) => {
                            assert!(!error.to_string().is_empty());
                            return false;
                        }
                    }
                }
            }
            Ok(None) => return layer.finish().is_ok(),
            Err(error) => {
                assert!(!error.to_string().is_empty());
                assert!(layer.next().unwrap().is_none());
                return false;
            }
        }
    }
}

/// Checksums are made right again, so that what is behind them is reached.
fn mend(stream: &mut [u8]) {
    for block in stream.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
            block[148..156].copy_from_slice(&octal(sum, 8));
        }
    }
}

#[test]
fn truncated_anywhere() {
    let stream = layer();
    assert!(exhaust(&stream));
    for length in 0..stream.len() {
        exhaust(&stream[..length]);
    }
}

#[test]
fn one_byte_changed_anywhere() {
    let stream = layer();
    for at in 0..stream.len() {
        for change in [0x01, 0x80] {
            let mut stream = stream.clone();
            stream[at] ^= change;
            mend(&mut stream);
            exhaust(&stream);
        }
    }
}

proptest! {
    #[test]
    fn any_bytes(stream in proptest::collection::vec(any::<u8>(), 0..4096)) {
        exhaust(&stream);
    }

    #[test]
    fn any_header(
        kind in any::<u8>(),
        size in 0..1_u64 << 33,
        changes in proptest::collection::vec((0..500_usize, any::<[u8; 8]>()), 0..4),
        data in proptest::collection::vec(any::<u8>(), 0..2048),
    ) {
        let changes: Vec<_> = changes.iter().filter(|(at, _)| *at != 148).map(|(at, bytes)| (*at, &bytes[..])).collect();
        let stream = [&header(kind, "name", size, &changes)[..], &data, &layer()].concat();
        exhaust(&stream);
    }

    #[test]
    fn changed_in_places(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut stream = layer();
        for (at, byte) in changes {
            *at.get_mut(&mut stream) = byte;
        }
        mend(&mut stream);
        exhaust(&stream);
    }

    #[test]
    fn any_records(records in proptest::collection::vec(any::<u8>(), 0..600)) {
        exhaust(&Tar::default().with(b'x', "pax", &records, &[]).file("a", b"x").end());
    }
}
