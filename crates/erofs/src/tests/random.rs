// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Random layers compared with a simple model, and random bytes as images.

use std::collections::{BTreeMap, BTreeSet};

use super::common::*;
use crate::{ErofsReader, Memory, Stack, merge};
use proptest::prelude::*;
use resnap_layer::testing::typeflag;

/// A file or directory of the model.
#[derive(Debug, Clone, PartialEq)]
enum Thing {
    Directory {
        mode: u32,
        is_opaque: bool,
    },
    /// Data, and a number that distinguishes files with the same data.
    File(Vec<u8>, usize),
    Whiteout,
}

/// The files of a tree by path, and the paths that are deleted in lower layers.
#[derive(Default)]
struct Model {
    things: BTreeMap<String, Thing>,
    deleted: BTreeSet<String>,
    /// Directories that are stated, or that contain more than whiteouts.
    with_content: BTreeSet<String>,
}

fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

fn remove(model: &mut Model, path: &str) {
    let below = format!("{path}/");
    model
        .things
        .retain(|other, _| other != path && !other.starts_with(&below));
    model.deleted.retain(|other| !other.starts_with(&below));
    model
        .with_content
        .retain(|other| other != path && !other.starts_with(&below));
}

/// Replaces directories of whiteouts that are deleted, or inside deleted ones, by whiteouts.
fn sweep(model: &mut Model) {
    let directories = model.things.iter();
    let directories = directories.filter(|(_, thing)| matches!(thing, Thing::Directory { .. }));
    let hollow: Vec<String> = directories
        .map(|(path, _)| path.clone())
        .filter(|path| {
            let mut all = parents(path).chain([&path[..]]);
            !model.with_content.contains(path) && all.any(|path| model.deleted.contains(path))
        })
        .collect();
    for path in &hollow {
        if model.things.contains_key(path) {
            remove(model, path);
            model.things.insert(path.clone(), Thing::Whiteout);
        }
    }
}

/// Applies an entry as the table in the crate's documentation says. Returns `None` for an error.
fn apply(model: &mut Model, number: usize, item: &Item) -> Option<()> {
    let (parent, name) = item.path.rsplit_once('/').unwrap_or(("", &item.path));
    let hidden = name.strip_prefix(".wh.");
    for path in parents(&item.path) {
        match model.things.get(path) {
            Some(Thing::Directory { .. }) => {}
            Some(Thing::File(..)) => return None,
            _ => {
                let is_opaque = model.deleted.contains(path);
                model.things.insert(
                    path.to_owned(),
                    Thing::Directory {
                        mode: 0o755,
                        is_opaque,
                    },
                );
            }
        }
    }
    if hidden == Some(".wh..opq") {
        if let Some(Thing::Directory { is_opaque, .. }) = model.things.get_mut(parent) {
            *is_opaque = true;
        }
        return Some(());
    }
    let path = match hidden {
        Some(hidden) if parent.is_empty() => hidden.to_owned(),
        Some(hidden) => format!("{parent}/{hidden}"),
        None => item.path.clone(),
    };
    if hidden.is_some() {
        model.deleted.insert(path.clone());
    }
    let old = model.things.get(&path).cloned();
    let new = match (hidden, item.kind, old) {
        (Some(_), _, Some(Thing::Directory { mode, .. })) => Thing::Directory {
            mode,
            is_opaque: true,
        },
        (Some(_), _, Some(old)) => old,
        (Some(_), _, None) => Thing::Whiteout,
        (_, typeflag::DIRECTORY, Some(Thing::Directory { is_opaque, .. })) => Thing::Directory {
            mode: item.mode,
            is_opaque,
        },
        (_, typeflag::DIRECTORY, _) => {
            remove(model, &path);
            Thing::Directory {
                mode: item.mode,
                is_opaque: model.deleted.contains(&path),
            }
        }
        (_, typeflag::HARD_LINK, _) => match model.things.get(&item.link).cloned() {
            Some(Thing::File(..)) if item.link.starts_with(&format!("{path}/")) => return None,
            Some(file @ Thing::File(..)) => {
                remove(model, &path);
                file
            }
            _ => return None,
        },
        _ => {
            remove(model, &path);
            Thing::File(item.data.clone(), number)
        }
    };
    if hidden.is_none() {
        let is_directory = matches!(new, Thing::Directory { .. });
        let with_content = parents(&path).chain(is_directory.then_some(&path[..]));
        model.with_content.extend(with_content.map(str::to_owned));
    }
    model.things.insert(path, new);
    Some(())
}

pub(super) fn items() -> impl Strategy<Value = Vec<Item>> {
    let name = prop::sample::select(vec![
        "a",
        "b",
        "c",
        ".wh.a",
        ".wh.b",
        ".wh..wh..opq",
        "!",
        "..x",
    ]);
    let parent = prop::sample::select(vec!["", "a/", "b/", "a/b/", "a/c/", "b/a/a/", "!/"]);
    let path = (parent, name).prop_map(|(parent, name)| format!("{parent}{name}"));
    let target = prop::sample::select(vec!["a", "b", "a/b", "a/c", "b/a", "!"]);
    let kind = prop::sample::select(vec![
        typeflag::REGULAR,
        typeflag::REGULAR,
        typeflag::DIRECTORY,
        typeflag::DIRECTORY,
        typeflag::HARD_LINK,
    ]);
    let item = (kind, path, target, 0..0o1000_u32, 0..9000_usize);
    let item = item.prop_map(|(kind, path, target, mode, size)| match kind {
        typeflag::REGULAR => file(&path, &vec![b'x'; size]),
        typeflag::HARD_LINK => link(kind, &path, target),
        _ => directory(&path, mode),
    });
    prop::collection::vec(item, 0..40)
}

fn compare(model: &BTreeMap<String, Thing>, image: &ErofsReader<Vec<u8>>) {
    let nodes = tree(image);
    let found: Vec<&String> = nodes.keys().filter(|path| !path.is_empty()).collect();
    assert_eq!(found, model.keys().collect::<Vec<_>>());
    let mut files = BTreeMap::new();
    for (path, thing) in model {
        let node = &nodes[path];
        match thing {
            Thing::Whiteout => assert!(node.is_whiteout()),
            Thing::Directory { mode, is_opaque } => {
                assert!(node.is_directory() && node.mode & 0o7777 == *mode, "{path}");
                let names = names(image, path);
                assert_eq!(
                    names.contains(&"trusted.overlay.opaque".to_owned()),
                    *is_opaque,
                    "{path}"
                );
            }
            Thing::File(content, number) => {
                assert_eq!(&data(image, path), content);
                let links = model.values().filter(|other| *other == thing).count();
                assert_eq!(node.links as usize, links, "{path}");
                assert_eq!(*files.entry(number).or_insert(node.id), node.id, "{path}");
            }
        }
    }
}

/// Reads as much of an image as possible.
fn exhaust(bytes: Vec<u8>) {
    let Ok(image) = ErofsReader::open(bytes) else {
        return;
    };
    let mut todo: Vec<_> = image.root().into_iter().collect();
    // Directories of a malformed image may have loops.
    for _ in 0..200 {
        let Some(node) = todo.pop() else {
            break;
        };
        let _ = image.metadata(&node);
        let _ = image.read(&node, node.size / 2, &mut [0; 100]);
        let _ = image.position(&node);
        for entry in image.entries(&node).take(200) {
            let Ok(entry) = entry else {
                continue;
            };
            assert!(!entry.name.is_empty() && !entry.name.contains(&b'/'));
            todo.extend(image.node(entry.id));
            let _ = image.child(&node, &entry.name);
        }
    }
    if let Ok(image) = image.clone().with_devices(vec![vec![0; 4096]]) {
        let file = image.lookup(b"f").ok().flatten();
        let _ = file.map(|file| image.read(&file, 0, &mut [0; 100]));
    }
    let images = vec![image.clone(), image.clone()];
    let _ = merge(
        images,
        Sink::default(),
        Box::new(Memory::new(1 << 18)),
        [0; 16],
    );
    let _ = Stack::new(vec![image]).directory(b"d/a/b");
}

fn sample() -> Vec<Item> {
    let mut items = vec![
        file("f", &[7; 600]),
        Item {
            xattrs: vec![("user.a".to_owned(), b"value".to_vec())],
            ..directory("d", 0o755)
        },
        link(typeflag::SYMLINK, "d/link", "target"),
        file("d/a/b/.wh.gone", b""),
    ];
    // Names that need more than one block.
    items.extend(
        (0..20).map(|index| link(typeflag::HARD_LINK, &format!("many/{index:0250}"), "d/link")),
    );
    items
}

/// Returns the forms of the sample.
fn samples() -> [Vec<u8>; 2] {
    let tar = layer(&sample());
    [write(&tar).unwrap(), write_joined(&tar).unwrap()]
}

#[test]
fn one_byte_changed_anywhere() {
    for image in samples() {
        // The rest of an index is its tar.
        let end = ErofsReader::open(image.clone()).unwrap().size() as usize;
        for at in 1024..end {
            let mut image = image.clone();
            image[at] ^= 0xff;
            exhaust(image);
        }
    }
}

proptest! {
    #[test]
    fn a_layer_becomes_its_image(items in items()) {
        let mut model = Model::default();
        let is_right = items.iter().enumerate().all(|(number, item)| apply(&mut model, number, item).is_some());
        sweep(&mut model);
        let tar = layer(&items);
        for image in [write(&tar), write_joined(&tar)] {
            match image {
                Ok(bytes) => {
                    prop_assert!(is_right);
                    compare(&model.things, &ErofsReader::open(bytes).unwrap());
                }
                Err(error) => prop_assert!(!is_right, "{error:?}"),
            }
        }
    }

    #[test]
    fn images_of_any_bytes(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        length in any::<prop::sample::Index>(),
        form in 0..2_usize,
    ) {
        let mut image = samples()[form].clone();
        for (at, byte) in changes {
            let at = 1024 + at.index(image.len() - 1024);
            image[at] = byte;
        }
        let length = image.len().saturating_sub(length.index(image.len() * 2));
        image.truncate(length.max(1024));
        exhaust(image);
    }
}
