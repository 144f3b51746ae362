// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Any layer as a directory against the same as an EROFS image.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::PathBuf;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use resnap_erofs::{Image, Metadata, Node, Writer};
use tar::{Builder, EntryType, Header};

use super::*;

const CASES: u32 = 200;

const OPAQUE: &str = "trusted.overlay.opaque";

/// A directory keeps it when another thing takes the place of its last whiteout.
const ORIGIN: &[u8] = b"trusted.overlay.origin";

/// As Linux has it: version 2, then `u::rwx,g::r-x,o::r-x`.
const LIST: &[u8] = b"\x02\0\0\0\
    \x01\0\x07\0\xff\xff\xff\xff\x04\0\x05\0\xff\xff\xff\xff\x20\0\x05\0\xff\xff\xff\xff";

#[derive(Debug, Clone)]
struct Item {
    kind: EntryType,
    path: String,
    target: &'static str,
    mode: u32,
    data: Vec<u8>,
    device: (u32, u32),
    xattr: Option<(&'static str, &'static [u8])>,
}

fn item() -> impl Strategy<Value = Item> {
    let names = ["a", "b", "c", "a-", ".wh.a", ".wh.b", ".wh..wh..opq"];
    let parents = ["", "", "a/", "a-/", "b/", "a/b/", "a/c/", "b/a/a/"];
    let targets = ["a", "b", "a/b", "a/c", "b/a", "/b", "../a"];
    let kinds = [
        EntryType::Regular,
        EntryType::Regular,
        EntryType::Directory,
        EntryType::Directory,
        EntryType::Directory,
        EntryType::Directory,
        EntryType::Directory,
        EntryType::Link,
        EntryType::Symlink,
        EntryType::Fifo,
        EntryType::Char,
    ];
    let xattrs = [
        None,
        Some(("user.x", &b"value"[..])),
        Some(("user.y", b"")),
        Some(("system.posix_acl_default", LIST)),
    ];
    let some = (
        prop::sample::select(parents.to_vec()),
        prop::sample::select(names.to_vec()),
        prop::sample::select(targets.to_vec()),
        prop::sample::select(kinds.to_vec()),
        prop::sample::select(xattrs.to_vec()),
        (0..0o10000_u32, 0..6000_usize, 0..2_u32),
    );
    some.prop_map(|(parent, name, target, kind, xattr, numbers)| {
        let kind = match name.starts_with(".wh.") {
            true => EntryType::Regular,
            false => kind,
        };
        let is_list = xattr.is_some_and(|(name, _)| name.starts_with("system."));
        Item {
            kind,
            path: format!("{parent}{name}"),
            target,
            mode: numbers.0,
            data: match kind {
                EntryType::Regular => vec![b'x'; numbers.1],
                _ => Vec::new(),
            },
            device: (numbers.2, 3 * numbers.2),
            xattr: xattr.filter(|_| !is_list || kind == EntryType::Directory),
        }
    })
}

fn layer(items: &[Item]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (number, item) in (1..).zip(items) {
        if let Some((name, value)) = item.xattr {
            let name = format!("SCHILY.xattr.{name}");
            builder.append_pax_extensions([(&name[..], value)]).unwrap();
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(item.kind);
        header.as_old_mut().name[..item.path.len()].copy_from_slice(item.path.as_bytes());
        if matches!(item.kind, EntryType::Link | EntryType::Symlink) {
            header.set_link_name(item.target).unwrap();
        }
        header.set_mode(item.mode);
        header.set_uid(number);
        header.set_gid(2 * number);
        header.set_mtime(3 * number);
        header.set_size(item.data.len() as u64);
        header.set_device_major(item.device.0).unwrap();
        header.set_device_minor(item.device.1).unwrap();
        header.set_cksum();
        builder.append(&header, &item.data[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

/// What is at a path; nothing of what a whiteout has counts.
#[derive(Debug, PartialEq)]
enum Thing {
    Whiteout,
    Inode {
        mode: u32,
        owner: (u32, u32),
        mtime: (i64, u32),
        /// Of all but directories: how many names it has, and the first.
        links: Option<(u64, String)>,
        /// Data, or the target.
        content: Vec<u8>,
        device: u64,
        xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    },
}

type Tree = BTreeMap<String, Thing>;

fn join(parent: &str, name: &str) -> String {
    String::from_utf8(super::join(parent.as_bytes(), name.as_bytes())).unwrap()
}

/// Paths come in order.
fn first(names: &mut BTreeMap<u64, String>, inode: u64, path: &str) -> String {
    names.entry(inode).or_insert(path.to_owned()).clone()
}

fn on_disk(root: &Path) -> Tree {
    let mut paths = vec![String::new()];
    let mut at = 0;
    while let Some(path) = paths.get(at).cloned() {
        at += 1;
        if root.join(&path).symlink_metadata().unwrap().is_dir() {
            let entries = fs::read_dir(root.join(&path)).unwrap();
            let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
            paths.extend(entries.map(|entry| join(&path, &name(entry.unwrap()))));
        }
    }
    paths.sort();
    let mut names = BTreeMap::new();
    let mut tree = Tree::new();
    for path in paths {
        let full = root.join(&path);
        let stat = full.symlink_metadata().unwrap();
        let mut xattrs = BTreeMap::new();
        if stat.is_file() || stat.is_dir() {
            let file = fs::File::open(&full).unwrap();
            for name in list(&file).unwrap() {
                let value = get(&file, &name).unwrap().unwrap();
                xattrs.insert(name, value);
            }
            // The host's, and what lists no whiteouts.
            xattrs.retain(|name, _| !name.starts_with(b"security.") && name != ORIGIN);
        }
        let links = (!stat.is_dir()).then(|| (stat.nlink(), first(&mut names, stat.ino(), &path)));
        let thing = match stat.file_type().is_char_device() && stat.rdev() == 0 {
            true => Thing::Whiteout,
            false => Thing::Inode {
                mode: stat.mode(),
                owner: (stat.uid(), stat.gid()),
                mtime: (stat.mtime(), stat.mtime_nsec() as u32),
                links,
                content: match (stat.is_file(), stat.is_symlink()) {
                    (true, _) => fs::read(&full).unwrap(),
                    (_, true) => fs::read_link(&full)
                        .unwrap()
                        .into_os_string()
                        .into_encoded_bytes(),
                    _ => Vec::new(),
                },
                device: stat.rdev(),
                xattrs,
            },
        };
        tree.insert(path, thing);
    }
    tree
}

fn in_image(image: &Image<Vec<u8>>) -> Tree {
    let mut nodes: BTreeMap<String, Node> = BTreeMap::new();
    let mut todo = vec![(String::new(), image.root().unwrap())];
    while let Some((path, node)) = todo.pop() {
        if node.is_directory() {
            for entry in image.entries(&node) {
                let entry = entry.unwrap();
                let name = String::from_utf8(entry.name).unwrap();
                todo.push((join(&path, &name), image.node(entry.id).unwrap()));
            }
        }
        nodes.insert(path, node);
    }
    let mut names = BTreeMap::new();
    let thing = |(path, node): (String, Node)| {
        let links = !node.is_directory();
        let links = links.then(|| (node.links.into(), first(&mut names, node.id, &path)));
        let has_content = matches!(node.mode & 0o170000, 0o100000 | 0o120000);
        let mut content = vec![0; if has_content { node.size as usize } else { 0 }];
        image.read(&node, 0, &mut content).unwrap();
        let xattrs = image.xattrs(&node).unwrap().into_iter();
        let xattrs = xattrs.map(|xattr| (xattr.name, xattr.value));
        let thing = match node.is_whiteout() {
            true => Thing::Whiteout,
            false => Thing::Inode {
                mode: node.mode,
                owner: (node.uid, node.gid),
                mtime: (node.mtime.seconds, node.mtime.nanoseconds),
                links,
                content,
                device: node.device().unwrap_or(0).into(),
                xattrs: xattrs.filter(|(name, _)| name != ORIGIN).collect(),
            },
        };
        (path, thing)
    };
    nodes.into_iter().map(thing).collect()
}

/// What images are asked to look up, from directories.
struct Below<'a>(&'a Lower);

impl resnap_erofs::Lower for Below<'_> {
    fn directory(
        &mut self,
        path: &[u8],
    ) -> Result<Option<Metadata>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.descend(OPAQUE, |_| false).directory(path)?)
    }
}

#[test]
fn directories_are_as_images() {
    let (top, bottom) = (Bed::new(), Bed::new());
    let make = |bed: &Bed, path: &str, mode: u32| {
        fs::create_dir_all(bed.at(path)).unwrap();
        fs::set_permissions(
            bed.at(path),
            std::os::unix::fs::PermissionsExt::from_mode(mode),
        )
        .unwrap();
    };
    make(&top, "a/b", 0o700);
    make(&top, "b", 0o711);
    inode::set(&fs::File::open(top.at("b")).unwrap(), OPAQUE, b"y").unwrap();
    make(&bottom, "a/b/c", 0o701);
    make(&bottom, "a/c", 0o702);
    make(&bottom, "b/a/a", 0o703);
    make(&bottom, "a-/b", 0o1777);
    let list = fs::File::open(bottom.at("a/c")).unwrap();
    inode::set(&list, "user.below", b"1").unwrap();
    let below: Vec<PathBuf> = vec![top.root(), bottom.root()];
    let lower = Lower::open(&below).unwrap();
    let below: Vec<&Path> = below.iter().map(|path| path.as_path()).collect();

    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(CASES)
    };
    let items = prop::collection::vec(item(), 0..25);
    let done = TestRunner::new(config).run(&(items, any::<bool>()), |(items, is_lowest)| {
        let stream = layer(&items);
        let bed = Bed::new();
        let (style, below) = match is_lowest {
            true => (Style::Base, &[][..]),
            false => (Style::Upper, &below[..]),
        };
        let extracted = bed.extract(style, &stream, below);
        let mut layer = Layer::new(&stream[..], Limits::default());
        let memory = Box::new(resnap_erofs::Memory::new(1 << 20));
        let mut writer = Writer::new(Cursor::new(Vec::new()), memory).unwrap();
        if is_lowest {
            writer = writer.lowest();
        }
        let written = writer.add(&mut layer).and_then(|()| {
            let (image, _) = match is_lowest {
                true => writer.finish(&mut resnap_erofs::Nothing, [0; 16])?,
                false => writer.finish(&mut Below(&lower), [0; 16])?,
            };
            Ok(image.into_inner())
        });
        match (extracted, written) {
            (Ok(()), Ok(image)) => {
                let image = Image::open(image).unwrap();
                prop_assert_eq!(on_disk(&bed.root()), in_image(&image));
            }
            (Err(_), Err(_)) => {}
            (extracted, written) => {
                prop_assert!(false, "{extracted:?}, {:?}", written.map(|_| ()));
            }
        }
        Ok(())
    });
    done.unwrap();
}
