// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Reads arbitrary bytes as a layer, and checks the documented properties of its entries.
#![no_main]

mod checksums;

use libfuzzer_sys::fuzz_target;
use resnap_layer::{EntryKind, Layer, Limits};

fuzz_target!(|stream: &[u8]| {
    let stream = checksums::correct(stream);
    let mut layer = Layer::new(&stream[..], Limits::default());
    while let Ok(Some(entry)) = layer.next() {
        let metadata = &entry.metadata;
        assert!(metadata.mode <= 0o7777 && metadata.mtime.nanoseconds < 1_000_000_000);
        assert!(metadata.uid < u32::MAX && metadata.gid < u32::MAX);
        match &entry.kind {
            EntryKind::Directory | EntryKind::Opaque if entry.path.is_empty() => {}
            _ => assert!(is_path(&entry.path)),
        }
        match &entry.kind {
            EntryKind::Hardlink(target) => assert!(is_path(target)),
            EntryKind::Symlink(target) => assert!(!target.is_empty() && !target.contains(&0)),
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
        while let Ok(Some(piece)) = layer.data() {
            assert!(piece.offset >= end && !piece.bytes.is_empty());
            end = piece.offset + piece.bytes.len() as u64;
            assert!(end <= size);
        }
    }
    assert!(layer.finish().is_ok());
});

/// Returns whether all components of a path below the root are valid names.
fn is_path(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/')
        .all(|name| !matches!(name, b"" | b"." | b"..") && name.len() <= 255 && !name.contains(&0))
}
