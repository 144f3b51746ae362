// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers and their images.

use std::collections::BTreeMap;
use std::io::Cursor;

use crate::{ErofsReader, Error, Lower, Memory, NoLower, Node, Writer, joined_size};
use resnap_layer::Layer;
use resnap_layer::testing::{Metadata, Tar, typeflag};

/// An entry of a layer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Item {
    pub(crate) kind: u8,
    pub(crate) path: String,
    pub(crate) data: Vec<u8>,
    pub(crate) link: String,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) mtime: String,
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
    pub(crate) device: (u32, u32),
}

pub(crate) fn item(kind: u8, path: &str) -> Item {
    Item {
        kind,
        path: path.to_owned(),
        mode: 0o755,
        mtime: "1000".to_owned(),
        ..Item::default()
    }
}

pub(crate) fn directory(path: &str, mode: u32) -> Item {
    Item {
        mode,
        ..item(typeflag::DIRECTORY, path)
    }
}

pub(crate) fn file(path: &str, data: &[u8]) -> Item {
    Item {
        data: data.to_vec(),
        mode: 0o644,
        ..item(typeflag::REGULAR, path)
    }
}

pub(crate) fn link(kind: u8, path: &str, target: &str) -> Item {
    Item {
        link: target.to_owned(),
        ..item(kind, path)
    }
}

/// Returns items as a tar stream.
pub(crate) fn layer(items: &[Item]) -> Vec<u8> {
    let mut tar = Tar::default();
    for item in items {
        tar.metadata = Metadata {
            mode: item.mode,
            uid: item.uid,
            gid: item.uid,
            mtime: 0,
            device: item.device,
        };
        let names: Vec<String> = item
            .xattrs
            .iter()
            .map(|(name, _)| format!("SCHILY.xattr.{name}"))
            .collect();
        let mut records: Vec<(&str, &[u8])> = names
            .iter()
            .zip(&item.xattrs)
            .map(|(name, (_, value))| (&name[..], &value[..]))
            .collect();
        records.push(("mtime", item.mtime.as_bytes()));
        records.push(("path", item.path.as_bytes()));
        if !item.link.is_empty() {
            records.push(("linkpath", item.link.as_bytes()));
        }
        tar = tar.pax(&records).with(item.kind, "", &item.data, &[]);
    }
    tar.end()
}

pub(crate) fn write_on(stream: &[u8], lower: &mut dyn Lower) -> Result<Vec<u8>, Error> {
    let mut layer = Layer::new(stream, resnap_layer::Limits::default());
    let mut writer = Writer::new(Cursor::new(Vec::new()), Box::new(Memory::new(1 << 30)))?;
    writer.add(&mut layer)?;
    let (target, summary) = writer.finish(lower, *b"0123456789abcdef")?;
    let image = target.into_inner();
    assert_eq!(image.len() as u64, summary.size);
    Ok(image)
}

/// Returns an index of a tar, on these layers.
pub(crate) fn index_on(stream: &[u8], lower: &mut dyn Lower) -> Result<Vec<u8>, Error> {
    let mut layer = Layer::new(stream, resnap_layer::Limits::default());
    let writer = Writer::new(Cursor::new(Vec::new()), Box::new(Memory::new(1 << 30)))?;
    let mut writer = writer.index();
    writer.add(&mut layer)?;
    let (target, summary) = writer.finish(lower, *b"0123456789abcdef")?;
    let index = target.into_inner();
    assert_eq!(index.len() as u64, summary.size);
    Ok(index)
}

/// Returns an index of a tar, followed by the tar.
pub(crate) fn write_joined(stream: &[u8]) -> Result<Vec<u8>, Error> {
    let mut image = index_on(stream, &mut NoLower)?;
    let size = joined_size(image.len() as u64, stream.len() as u64);
    image.extend_from_slice(stream);
    image.resize(size as usize, 0);
    Ok(image)
}

pub(crate) fn write(stream: &[u8]) -> Result<Vec<u8>, Error> {
    write_on(stream, &mut NoLower)
}

/// Returns the image of these items.
pub(crate) fn image(items: &[Item]) -> ErofsReader<Vec<u8>> {
    ErofsReader::open(write(&layer(items)).unwrap()).unwrap()
}

/// Returns the error of writing these items, with all causes.
pub(crate) fn refusal(items: &[Item]) -> String {
    let error = write(&layer(items)).unwrap_err();
    let mut text = error.to_string();
    let mut next = std::error::Error::source(&error);
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}

/// Returns the nodes of a tree by path, including the root.
pub(crate) fn tree(image: &ErofsReader<Vec<u8>>) -> BTreeMap<String, Node> {
    let mut found = BTreeMap::new();
    let mut todo = vec![(String::new(), image.root().unwrap())];
    while let Some((path, node)) = todo.pop() {
        if node.is_directory() {
            for entry in image.entries(&node) {
                let entry = entry.unwrap();
                let name = String::from_utf8(entry.name).unwrap();
                let child = image.node(entry.id).unwrap();
                let looked_up = image.child(&node, name.as_bytes()).unwrap();
                assert_eq!(looked_up, Some(child), "{path}/{name}");
                todo.push((
                    if path.is_empty() {
                        name
                    } else {
                        format!("{path}/{name}")
                    },
                    child,
                ));
            }
        }
        assert_eq!(image.lookup(path.as_bytes()).unwrap(), Some(node));
        assert!(found.insert(path, node).is_none());
    }
    found
}

pub(crate) fn paths(image: &ErofsReader<Vec<u8>>) -> Vec<String> {
    tree(image)
        .into_keys()
        .filter(|path| !path.is_empty())
        .collect()
}

pub(crate) fn find(image: &ErofsReader<Vec<u8>>, path: &str) -> Node {
    image.lookup(path.as_bytes()).unwrap().unwrap()
}

pub(crate) fn data(image: &ErofsReader<Vec<u8>>, path: &str) -> Vec<u8> {
    let node = find(image, path);
    let mut data = vec![0; node.size as usize];
    assert_eq!(image.read(&node, 0, &mut data).unwrap(), data.len());
    data
}

/// Returns the names and values of extended attributes.
pub(crate) fn xattrs(image: &ErofsReader<Vec<u8>>, path: &str) -> Vec<(String, Vec<u8>)> {
    let xattrs = image.xattrs(&find(image, path)).unwrap();
    xattrs
        .into_iter()
        .map(|xattr| (String::from_utf8(xattr.name).unwrap(), xattr.value))
        .collect()
}

pub(crate) fn names(image: &ErofsReader<Vec<u8>>, path: &str) -> Vec<String> {
    xattrs(image, path)
        .into_iter()
        .map(|(name, _)| name)
        .collect()
}

/// A target that counts its bytes and keeps none.
#[derive(Debug, Default)]
pub(crate) struct Sink(pub(crate) u64);

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl std::io::Seek for Sink {
    fn seek(&mut self, _: std::io::SeekFrom) -> std::io::Result<u64> {
        Ok(0)
    }
}
