// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Extended attributes behind an inode: a header of 12 bytes, then entries of name length, prefix
//! number, value size (2 bytes), name without its prefix, and value, each padded to 4 bytes. They are
//! not shared between inodes, because real layers have very few.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use resnap_layer::Xattr;

use crate::budget::ByteBudget;
use crate::error::Fault;
use crate::format::{XATTR_HEADER, mode};

/// The prefixes that Linux defines, with their numbers. Those that are a full name come first.
pub(crate) const PREFIXES: [(u8, &[u8]); 5] = [
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (1, b"user."),
    (4, b"trusted."),
    (6, b"security."),
];

/// The longest name with its prefix, in bytes (`XATTR_NAME_MAX` of Linux).
const MAX_NAME: usize = 255;

/// The most bytes of attributes behind an inode, whose count has 16 bits.
const MAX_BODY: usize = XATTR_HEADER + 4 * (u16::MAX as usize - 1);

/// Bytes that a set takes besides its own: its pointer, its number, and the allocator's overhead.
const SET: u64 = 64;

/// The attribute by which overlayfs hides lower directories of the same name.
pub(crate) const OPAQUE: (&[u8], &[u8]) = (b"overlay.opaque", b"y");
/// The attribute by which overlayfs looks for whiteouts even where the directory has no lower one.
pub(crate) const ORIGIN: (&[u8], &[u8]) = (b"overlay.origin", b"");

/// The encoded attributes of all inodes. Each combination is stored once.
#[derive(Debug, Default)]
pub(crate) struct Xattrs {
    sets: Vec<Box<[u8]>>,
    table: HashTable<u32>,
    hasher: RandomState,
}

impl Xattrs {
    /// Returns the bytes of a set.
    pub(crate) fn get(&self, number: u32) -> &[u8] {
        let index = (number as usize).checked_sub(1);
        index
            .and_then(|index| self.sets.get(index))
            .map_or(&[], |set| set)
    }

    /// Returns the number of the set of these attributes for an inode of this mode, or 0 for none.
    ///
    /// As in containerd, attributes that an inode of this type cannot have are left out, and so is
    /// `trusted.`: overlayfs would interpret it.
    pub(crate) fn encode(
        &mut self,
        xattrs: &[Xattr],
        mode: u16,
        budget: &mut ByteBudget,
    ) -> Result<u32, Fault> {
        let file_type = mode & mode::TYPE;
        let mut body = Vec::new();
        for Xattr { name, value } in xattrs {
            let Some((index, rest)) =
                split(name).filter(|(index, _)| is_allowed(file_type, *index))
            else {
                continue;
            };
            let is_acl = matches!(index, 2 | 3);
            if name.len() > MAX_NAME
                || (rest.is_empty() && !is_acl)
                || (is_acl && !is_acl_value(value))
            {
                return Err(Fault::Xattr(name.clone()));
            }
            let mut value = value.clone();
            if index == 2 {
                set_acl_mode(&mut value, mode);
            }
            push(&mut body, index, rest, &value).ok_or_else(|| Fault::Xattr(name.clone()))?;
        }
        self.intern(body, budget)
    }

    /// Returns the number of the set of an inode that gets these attributes too, and a mode and owner:
    /// changing those removes a file's capabilities on Linux.
    pub(crate) fn change(
        &mut self,
        number: u32,
        xattrs: &[Xattr],
        mode: u16,
        budget: &mut ByteBudget,
    ) -> Result<u32, Fault> {
        let mut all = decode(self.get(number));
        all.retain(|old| {
            let is_new = xattrs.iter().any(|new| new.name == old.name);
            !is_new && old.name != b"security.capability"
        });
        all.extend_from_slice(xattrs);
        all.sort();
        self.encode(&all, mode, budget)
    }

    /// Returns the number of the set with `extra` attributes of `trusted.`.
    pub(crate) fn with(
        &mut self,
        number: u32,
        extra: &[(&[u8], &[u8])],
        budget: &mut ByteBudget,
    ) -> Result<u32, Fault> {
        if extra.is_empty() {
            return Ok(number);
        }
        let mut body = self.get(number).to_vec();
        for (name, value) in extra {
            push(&mut body, 4, name, value).ok_or_else(|| Fault::Xattr(name.to_vec()))?;
        }
        self.intern(body, budget)
    }

    /// Returns the number of a set, which is stored if it is new.
    fn intern(&mut self, body: Vec<u8>, budget: &mut ByteBudget) -> Result<u32, Fault> {
        if body.is_empty() {
            return Ok(0);
        }
        if body.len() > MAX_BODY {
            return Err(Fault::limit(
                "bytes of extended attributes",
                MAX_BODY as u64,
            ));
        }
        let Self {
            sets,
            table,
            hasher,
        } = self;
        let set = |number: &u32| sets.get(*number as usize).map_or(&[][..], |set| set);
        let hash = hasher.hash_one(&body[..]);
        if let Some(number) = table.find(hash, |number| set(number) == &body[..]) {
            return Ok(number + 1);
        }
        budget.take(body.len() as u64 + SET)?;
        let number = u32::try_from(sets.len()).unwrap_or(u32::MAX);
        table.insert_unique(hash, number, |number| hasher.hash_one(set(number)));
        sets.push(body.into_boxed_slice());
        Ok(number + 1)
    }
}

/// Returns whether new children of a directory with these attributes inherit an access control list.
pub(crate) fn has_default_acl(xattrs: &[Xattr]) -> bool {
    xattrs
        .iter()
        .any(|xattr| xattr.name == b"system.posix_acl_default")
}

/// Returns the number of a name's prefix and the rest, or `None` for a namespace that EROFS does not have.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(index, prefix)| {
        let rest = name.strip_prefix(*prefix)?;
        (matches!(index, 1 | 4 | 6) || rest.is_empty()).then_some((*index, rest))
    })
}

/// Returns whether Linux allows such an attribute on inodes of this type, and images may set it.
fn is_allowed(file_type: u16, index: u8) -> bool {
    match index {
        1 => matches!(file_type, mode::FILE | mode::DIRECTORY),
        2 => file_type != mode::SYMLINK,
        3 => file_type == mode::DIRECTORY,
        6 => true,
        _ => false,
    }
}

/// Returns whether Linux accepts a value as an access control list: version 2, and entries of 8 bytes.
fn is_acl_value(value: &[u8]) -> bool {
    value.starts_with(&[2, 0, 0, 0]) && value.len() % 8 == 4
}

/// Sets the permissions of a mode in an access control list, as `chmod` does: of the owner, of the mask
/// (or the group if there is none), and of others. Entries are tag (2 bytes), permissions (2), ID.
fn set_acl_mode(list: &mut [u8], mode: u16) {
    const OWNER: u16 = 1;
    const GROUP: u16 = 4;
    const MASK: u16 = 0x10;
    const OTHERS: u16 = 0x20;

    let entries = || list.iter().skip(4).step_by(8);
    let has_mask = entries().any(|tag| u16::from(*tag) == MASK);
    for entry in list.get_mut(4..).unwrap_or_default().chunks_exact_mut(8) {
        let [tag, tag_high, permissions, ..] = entry else {
            continue;
        };
        let bits = match u16::from_le_bytes([*tag, *tag_high]) {
            OWNER => mode >> 6,
            GROUP if !has_mask => mode >> 3,
            MASK => mode >> 3,
            OTHERS => mode,
            _ => continue,
        };
        *permissions = (bits & 7).to_le_bytes()[0];
    }
}

/// Returns the attributes of a set, with full names.
fn decode(set: &[u8]) -> Vec<Xattr> {
    let mut all = Vec::new();
    let mut rest = set.get(XATTR_HEADER..).unwrap_or_default();
    while let [name, index, low, high, text @ ..] = rest {
        let (name, value) = (
            usize::from(*name),
            usize::from(u16::from_le_bytes([*low, *high])),
        );
        let prefix = PREFIXES.iter().find(|(known, _)| known == index);
        let (Some((_, prefix)), Some(text)) = (prefix, text.get(..name + value)) else {
            break;
        };
        let (name, value) = text.split_at(name);
        all.push(Xattr {
            name: [prefix, name].concat(),
            value: value.to_vec(),
        });
        let length = (4 + text.len()).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
    }
    all
}

/// Appends an attribute. Returns `None` if a length does not fit.
fn push(body: &mut Vec<u8>, index: u8, name: &[u8], value: &[u8]) -> Option<()> {
    let lengths = (
        u8::try_from(name.len()).ok()?,
        u16::try_from(value.len()).ok()?,
    );
    if body.is_empty() {
        body.resize(XATTR_HEADER, 0);
    }
    body.extend([lengths.0, index]);
    body.extend(lengths.1.to_le_bytes());
    body.extend(name);
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xattr(name: &str, value: &[u8]) -> Xattr {
        Xattr {
            name: name.into(),
            value: value.into(),
        }
    }

    #[test]
    fn sets_are_stored_once() {
        let mut xattrs = Xattrs::default();
        let mut budget = ByteBudget::new(Box::new(crate::Memory::new(24 + 44 + 2 * SET)));
        let a = xattrs
            .encode(&[xattr("user.a", b"12345")], mode::FILE, &mut budget)
            .unwrap();
        assert_eq!(
            xattrs.get(a),
            b"\0\0\0\0\0\0\0\0\0\0\0\0\x01\x01\x05\0a12345\0\0"
        );
        assert_eq!(
            xattrs
                .encode(&[xattr("user.a", b"12345")], mode::DIRECTORY, &mut budget)
                .unwrap(),
            a
        );
        assert_eq!(xattrs.encode(&[], mode::FILE, &mut budget).unwrap(), 0);
        assert_eq!(xattrs.with(0, &[], &mut budget).unwrap(), 0);
        let b = xattrs.with(a, &[OPAQUE], &mut budget).unwrap();
        assert_eq!(&xattrs.get(b)[24..], b"\x0e\x04\x01\0overlay.opaquey\0");
        assert_eq!(xattrs.get(0), b"");
        // The first two found their sets, and the budget has no memory for a third.
        let refused = xattrs.with(a, &[ORIGIN], &mut budget);
        assert!(matches!(refused, Err(Fault::Refused(_))));
        assert_eq!(xattrs.with(a, &[OPAQUE], &mut budget).unwrap(), b);
    }

    #[test]
    fn access_control_lists_follow_the_mode() {
        let entry = |tag, bits| [tag, 0, bits, 0, 255, 255, 255, 255];
        let list = |entries: &[[u8; 8]]| [&[2, 0, 0, 0][..], &entries.concat()].concat();
        let mut with_mask = list(&[entry(1, 0), entry(4, 4), entry(0x10, 0), entry(0x20, 0)]);
        set_acl_mode(&mut with_mask, 0o765);
        assert_eq!(
            with_mask,
            list(&[entry(1, 7), entry(4, 4), entry(0x10, 6), entry(0x20, 5)])
        );
        let mut without = list(&[entry(1, 0), entry(2, 3), entry(4, 0), entry(0x20, 0)]);
        set_acl_mode(&mut without, 0o4654);
        assert_eq!(
            without,
            list(&[entry(1, 6), entry(2, 3), entry(4, 5), entry(0x20, 4)])
        );
    }

    #[test]
    fn attributes_are_left_out_or_refused() {
        let mut xattrs = Xattrs::default();
        let mut budget = ByteBudget::new(Box::new(crate::Memory::new(1 << 20)));
        let acl = [2, 0, 0, 0];
        for (name, value, file_type, is_kept) in [
            (
                "trusted.overlay.redirect",
                &b"/etc"[..],
                mode::DIRECTORY,
                false,
            ),
            ("user.a", b"", mode::SYMLINK, false),
            ("security.selinux", b"", mode::SYMLINK, true),
            ("com.apple.x", b"", mode::FILE, false),
            ("system.nfs4_acl", b"", mode::FILE, false),
            ("system.posix_acl_access", &acl, mode::FILE, true),
            ("system.posix_acl_access.x", &acl, mode::FILE, false),
            ("system.posix_acl_default", &acl, mode::FILE, false),
            ("system.posix_acl_default", &acl, mode::DIRECTORY, true),
        ] {
            let number = xattrs
                .encode(&[xattr(name, value)], file_type, &mut budget)
                .unwrap();
            assert_eq!(number != 0, is_kept, "{name}");
        }
        for (name, value) in [
            ("user.", &b""[..]),
            (&format!("user.{}", "a".repeat(251)), b""),
            ("user.a", &[0; 65_536]),
            ("system.posix_acl_access", b"text"),
        ] {
            let refused = xattrs.encode(&[xattr(name, value)], mode::FILE, &mut budget);
            assert!(matches!(refused, Err(Fault::Xattr(_))), "{name}");
        }
    }
}
