// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers made of arbitrary bytes. There are few names, so that entries affect each other.

use resnap_layer::testing::{Metadata, Tar, typeflag};

/// An entry of a layer.
#[derive(Debug, Clone)]
pub struct Item {
    pub(crate) kind: u8,
    pub(crate) path: String,
    /// The target of a link.
    pub(crate) target: &'static str,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// The bytes of a file.
    pub(crate) size: usize,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: &'static [Xattr],
}

type Xattr = (&'static str, &'static [u8]);

/// Bytes that describe an entry.
pub const RECORD: usize = 12;

/// More entries take time and find no other differences.
const ENTRIES: usize = 64;

/// Enough layers for one to be between others.
const LAYERS: usize = 4;

const NAMES: [&str; 9] = [
    "a",
    "b",
    "c",
    "a-",
    "a",
    "b",
    ".wh.a",
    ".wh.b",
    ".wh..wh..opq",
];

const PARENTS: [&str; 12] = [
    "",
    "",
    "",
    "a/",
    "a/",
    "b/",
    "a/b/",
    "a/c/",
    "b/a/a/",
    "a-/",
    "./b/./",
    "../a/../c/",
];

const TARGETS: [&str; 10] = [
    "a", "b", "c", "a/b", "a/c", "b/a", "/b", "../a", "a/../b", ".",
];

const KINDS: [u8; 14] = [
    typeflag::REGULAR,
    typeflag::DIRECTORY,
    typeflag::HARD_LINK,
    typeflag::SYMLINK,
    typeflag::DIRECTORY,
    typeflag::REGULAR,
    typeflag::DIRECTORY,
    typeflag::DIRECTORY,
    typeflag::DIRECTORY,
    typeflag::FIFO,
    typeflag::CHARACTER,
    typeflag::BLOCK,
    typeflag::CONTIGUOUS,
    typeflag::HARD_LINK,
];

/// An access control list as Linux stores it: version 2, then tag, permissions and ID of each entry.
/// `u::rwx,g::r-x,o::r-x`.
const LIST: &[u8] = b"\x02\0\0\0\
    \x01\0\x07\0\xff\xff\xff\xff\x04\0\x05\0\xff\xff\xff\xff\x20\0\x05\0\xff\xff\xff\xff";
/// The same with `u:7:rw-` and `m::rwx`.
const LONG_LIST: &[u8] = b"\x02\0\0\0\
    \x01\0\x07\0\xff\xff\xff\xff\x02\0\x06\0\x07\0\0\0\x04\0\x05\0\xff\xff\xff\xff\
    \x10\0\x07\0\xff\xff\xff\xff\x20\0\x05\0\xff\xff\xff\xff";

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

/// `cap_net_raw=ep`, in version 2.
const CAPABILITY: Xattr = (
    "security.capability",
    b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
);

const XATTRS: [&[Xattr]; 16] = [
    &[],
    &[],
    &[],
    &[],
    &[],
    &[],
    &[("user.x", b"value")],
    &[("user.y", b"")],
    &[("user.x", b"other"), ("user.y", b"y")],
    &[(ACCESS, LONG_LIST)],
    &[CAPABILITY],
    &[("user.x", b"value"), CAPABILITY, (ACCESS, LONG_LIST)],
    &[("trusted.overlay.opaque", b"y"), ("trusted.x", b"x")],
    &[("user.overlay.opaque", b"y")],
    &[(DEFAULT, LIST)],
    &[(ACCESS, LONG_LIST), (DEFAULT, LONG_LIST)],
];

fn pick<T: Copy>(all: &[T], byte: u8) -> T {
    all[usize::from(byte) % all.len()]
}

/// Returns the layers that bytes describe, the lowest first.
pub fn layers(bytes: &[u8]) -> Vec<Vec<Item>> {
    let mut layers = vec![Vec::new()];
    let (records, _) = bytes.as_chunks::<RECORD>();
    for record in records.iter().take(ENTRIES) {
        // Rare for random bytes.
        if record[0] >= 0xf0 && layers.len() < LAYERS {
            layers.push(Vec::new());
        }
        if let Some(layer) = layers.last_mut() {
            layer.push(item(record));
        }
    }
    layers
}

fn item(record: &[u8; RECORD]) -> Item {
    let [
        kind,
        parent,
        name,
        target,
        low,
        high,
        size,
        device,
        xattrs,
        uid,
        gid,
        time,
    ] = *record;
    let name = pick(&NAMES, name);
    let kind = match name.starts_with(".wh.") {
        true => typeflag::REGULAR,
        false => pick(&KINDS, kind & 0xf),
    };
    let xattrs = pick(&XATTRS, xattrs);
    let is_default = xattrs.iter().any(|(name, _)| *name == DEFAULT);
    Item {
        kind,
        path: format!("{}{name}", pick(&PARENTS, parent)),
        target: pick(&TARGETS, target),
        mode: u32::from(u16::from_le_bytes([low, high])) & 0o7777,
        owner: (uid.into(), u32::from(gid) << 16),
        mtime: (i64::from(time) - 0x40, u32::from(time & 3) * 1001),
        size: match kind {
            typeflag::REGULAR | typeflag::CONTIGUOUS => 24 * usize::from(size),
            _ => 0,
        },
        device: (u32::from(device) & 1, 3 * (u32::from(device) & 1)),
        xattrs: match is_default && kind != typeflag::DIRECTORY {
            true => &[],
            false => xattrs,
        },
    }
}

/// Returns a layer's archive.
pub(super) fn archive(items: &[Item]) -> Vec<u8> {
    let mut tar = Tar::default();
    for item in items {
        let (seconds, nanoseconds) = item.mtime;
        tar.metadata = Metadata {
            mode: item.mode,
            uid: item.owner.0,
            gid: item.owner.1,
            mtime: u64::try_from(seconds).unwrap_or_default(),
            device: item.device,
        };
        let mut extensions = Vec::new();
        if seconds < 0 || nanoseconds > 0 {
            let time = format!("{seconds}.{nanoseconds:09}");
            extensions.push(("mtime".to_owned(), time.into_bytes()));
        }
        for (name, value) in item.xattrs {
            extensions.push((format!("SCHILY.xattr.{name}"), value.to_vec()));
        }
        if !extensions.is_empty() {
            let records = extensions.iter().map(|(key, value)| (&key[..], &value[..]));
            tar = tar.pax(&records.collect::<Vec<_>>());
        }
        tar = match item.kind {
            typeflag::HARD_LINK | typeflag::SYMLINK => tar.link(item.kind, &item.path, item.target),
            kind => tar.with(kind, &item.path, &vec![b'x'; item.size], &[]),
        };
    }
    tar.end()
}
