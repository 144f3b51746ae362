// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Writes layers as EROFS images, and as indexes of their tars. Both must be readable as a whole, contain
//! nothing else, and have the same files.
#![no_main]

mod checksums;

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Cursor, Seek, SeekFrom, Write};

use libfuzzer_sys::fuzz_target;
use resnap_erofs::{ErofsReader, Error, Memory, NoLower, Writer, joined_size};
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

/// Returns the image of a layer, or its index and then its tar.
fn write(stream: &[u8], is_index: bool) -> Result<Vec<u8>, Error> {
    let mut layer = Layer::new(stream, resnap_layer::Limits::default());
    let target = Target(Cursor::new(Vec::new()));
    let mut writer = Writer::new(target, Box::new(Memory::new(1 << 30)))?;
    if is_index {
        writer = writer.index();
    }
    writer.add(&mut layer)?;
    let (target, summary) = writer.finish(&mut NoLower, [0; 16])?;
    let mut image = target.0.into_inner();
    assert_eq!(image.len() as u64, summary.size);
    if is_index {
        let size = joined_size(summary.size, stream.len() as u64);
        image.extend_from_slice(stream);
        image.resize(size as usize, 0);
    }
    Ok(image)
}

/// Returns a hash of all files with their paths.
fn read(image: Vec<u8>) -> u64 {
    let image = ErofsReader::open(image).expect("what was written is an image");
    let mut hasher = DefaultHasher::new();
    let mut nodes = BTreeSet::new();
    let mut todo = vec![(Vec::new(), image.root().expect("the root"))];
    while let Some((path, node)) = todo.pop() {
        nodes.insert(node.id);
        let metadata = image.metadata(&node).expect("metadata");
        let device = node.device();
        let text = format!(
            "{path:?} {metadata:?} {:o} {device:?} {}",
            node.mode, node.links
        );
        text.hash(&mut hasher);
        if !node.is_directory() {
            let mut data = vec![0; usize::try_from(node.size.min(1 << 16)).unwrap_or(0)];
            for offset in [0, node.size.saturating_sub(10)] {
                let length = image.read(&node, offset, &mut data).expect("data");
                assert_eq!(length as u64, (node.size - offset).min(data.len() as u64));
                data[..length].hash(&mut hasher);
            }
            node.size.hash(&mut hasher);
            continue;
        }
        for entry in image.entries(&node) {
            let entry = entry.expect("an entry");
            let child = image.child(&node, &entry.name).expect("a lookup");
            assert_eq!(child.map(|child| child.id), Some(entry.id));
            let path = [&path[..], b"/", &entry.name].concat();
            todo.extend(child.map(|child| (path, child)));
        }
    }
    assert_eq!(nodes.len() as u64, image.inodes());
    hasher.finish()
}

fuzz_target!(|stream: &[u8]| {
    let stream = checksums::correct(stream);
    let forms = [false, true].map(|is_index| write(&stream, is_index).map(read));
    match &forms {
        [Ok(image), Ok(index)] => assert_eq!(image, index),
        [Err(image), Err(index)] => assert_eq!(image.to_string(), index.to_string()),
        // The data of a sparse file is in both, but the limits of their addresses differ.
        [
            Ok(_),
            Err(Error::Entry { .. } | Error::Write(_) | Error::Image(_)),
        ] => {}
        [Err(Error::Write(_)), Ok(_)] => {}
        _ => panic!("{forms:?}"),
    }
});
