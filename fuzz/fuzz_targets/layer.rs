// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Reading layers: whatever the bytes are, an answer that keeps what is promised of it.
#![no_main]

mod mend;

use libfuzzer_sys::fuzz_target;
use resnap_layer::{Kind, Layer, Limits};

fuzz_target!(|stream: &[u8]| {
    let stream = mend::mend(stream);
    let mut layer = Layer::new(&stream[..], Limits::default());
    while let Ok(Some(entry)) = layer.next() {
        assert!(entry.mode <= 0o7777 && entry.mtime.nanoseconds < 1_000_000_000);
        let mut components = entry.path.split(|byte| *byte == b'/');
        assert!(
            entry.path.is_empty()
                || components.all(|component| !matches!(component, b"" | b"." | b".."))
        );
        assert!(!entry.path.is_empty() || matches!(entry.kind, Kind::Directory | Kind::Opaque));
        let size = match &entry.kind {
            Kind::File(file) => file.size,
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
