// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Reads arbitrary bytes as an EROFS image. There must be no panic, and the amount of work is bounded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use resnap_erofs::{ErofsReader, Stack};

fuzz_target!(|bytes: &[u8]| {
    let Ok(image) = ErofsReader::open(bytes) else {
        return;
    };
    // The image itself, as a device: its addresses mean something else there.
    let with_devices = image
        .clone()
        .with_devices(vec![bytes; image.devices().min(8).into()]);
    for image in [Ok(image), with_devices].into_iter().flatten() {
        walk(image);
    }
});

fn walk(image: ErofsReader<&[u8]>) {
    let mut todo: Vec<_> = image.root().into_iter().collect();
    // Directories may form loops.
    for _ in 0..100 {
        let Some(node) = todo.pop() else {
            break;
        };
        let _ = image.metadata(&node);
        let _ = image.read(&node, node.size / 2, &mut [0; 100]);
        let _ = image.position(&node);
        for entry in image.entries(&node).take(100) {
            let Ok(entry) = entry else {
                break;
            };
            assert!(!entry.name.is_empty() && !entry.name.contains(&b'/'));
            let _ = image.child(&node, &entry.name);
            todo.extend(image.node(entry.id));
        }
    }
    let _ = Stack::new(vec![image]).directory(b"d/a/b");
}
