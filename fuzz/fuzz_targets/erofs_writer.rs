// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Writes layers as EROFS images. The whole image must be readable, and contain nothing else.
#![no_main]

mod checksums;

use std::io::{Cursor, Seek, SeekFrom, Write};

use libfuzzer_sys::fuzz_target;
use resnap_erofs::{ErofsReader, Memory, NoLower, Writer};
use resnap_layer::Layer;

/// A target in memory. Writes beyond 16 MiB fail, as sparse files can be arbitrarily large.
struct Target(Cursor<Vec<u8>>);

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.position() > 1 << 24 {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Seek for Target {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.0.seek(to)
    }
}

fuzz_target!(|stream: &[u8]| {
    let stream = checksums::correct(stream);
    let mut layer = Layer::new(&stream[..], resnap_layer::Limits::default());
    let target = Target(Cursor::new(Vec::new()));
    let image = Writer::new(target, Box::new(Memory::new(1 << 30))).and_then(|mut writer| {
        writer.add(&mut layer)?;
        writer.finish(&mut NoLower, [0; 16])
    });
    let Ok((target, summary)) = image else {
        return;
    };
    let image = target.0.into_inner();
    assert_eq!(image.len() as u64, summary.size);
    let image = ErofsReader::open(image).expect("what was written is an image");
    let mut nodes = std::collections::BTreeSet::new();
    let mut todo = vec![image.root().expect("the root")];
    while let Some(node) = todo.pop() {
        nodes.insert(node.id);
        image.metadata(&node).expect("metadata");
        if !node.is_directory() {
            let end = image.read(&node, node.size.saturating_sub(10), &mut [0; 20]);
            assert_eq!(end.expect("data") as u64, node.size.min(10));
            continue;
        }
        for entry in image.entries(&node) {
            let entry = entry.expect("an entry");
            let child = image.child(&node, &entry.name).expect("a lookup");
            assert_eq!(child.map(|child| child.id), Some(entry.id));
            todo.extend(child);
        }
    }
    assert_eq!(nodes.len() as u64, image.inodes());
});
