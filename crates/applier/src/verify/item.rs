// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Differences between two entries of one path, except for the data of files.

use std::fmt;

use resnap_layer::{Entry, EntryKind, Metadata, Xattr};

/// Whether the metadata of a directory is that of the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The layer has an entry for it.
    Stated,
    /// The layer has several entries for it.
    Repeated,
    /// Whoever wrote it made it for what is in it.
    MadeUp,
}

/// Returns a path for messages.
pub(crate) fn shown(path: &[u8]) -> String {
    match path {
        b"" => "the root".to_owned(),
        path => format!("\"{}\"", String::from_utf8_lossy(path).escape_debug()),
    }
}

/// Returns the differences of an entry from the one of the layer.
pub(super) fn differences(expected: &Entry, found: &Entry, origin: Origin) -> Vec<String> {
    let mut all = Vec::new();
    if expected.kind != found.kind {
        all.push(format!(
            "is {} instead of {}",
            Kind(&found.kind),
            Kind(&expected.kind)
        ));
    }
    let is_same_kind =
        std::mem::discriminant(&expected.kind) == std::mem::discriminant(&found.kind);
    // The first name of an inode has the metadata.
    let has_metadata = !matches!(
        expected.kind,
        EntryKind::Hardlink(_) | EntryKind::Whiteout | EntryKind::Opaque
    );
    if is_same_kind && has_metadata && origin != Origin::MadeUp {
        let is_link = matches!(expected.kind, EntryKind::Symlink(_));
        metadata(&expected.metadata, &found.metadata, !is_link, &mut all);
        xattrs(
            &expected.metadata.xattrs,
            &found.metadata.xattrs,
            origin,
            &mut all,
        );
    }
    all
}

fn metadata(expected: &Metadata, found: &Metadata, has_mode: bool, all: &mut Vec<String>) {
    if has_mode && expected.mode != found.mode {
        all.push(format!(
            "has mode {:04o} instead of {:04o}",
            found.mode, expected.mode
        ));
    }
    let owner = |metadata: &Metadata| (metadata.uid, metadata.gid);
    if owner(expected) != owner(found) {
        let ((uid, gid), (expected_uid, expected_gid)) = (owner(found), owner(expected));
        all.push(format!(
            "has owner {uid}:{gid} instead of {expected_uid}:{expected_gid}"
        ));
    }
}

fn xattrs(expected: &[Xattr], found: &[Xattr], origin: Origin, all: &mut Vec<String>) {
    let value = |xattrs: &'_ [Xattr], name: &[u8]| {
        let found = xattrs.iter().find(|xattr| xattr.name == name);
        found.map(|xattr| xattr.value.clone())
    };
    let name = |xattr: &Xattr| {
        String::from_utf8_lossy(&xattr.name)
            .escape_debug()
            .to_string()
    };
    for xattr in expected {
        match value(found, &xattr.name) {
            None => all.push(format!("lacks the attribute {}", name(xattr))),
            Some(value) if value != xattr.value => {
                all.push(format!(
                    "has another value of the attribute {}",
                    name(xattr)
                ));
            }
            Some(_) => {}
        }
    }
    if origin == Origin::Repeated {
        return;
    }
    for xattr in found {
        if value(expected, &xattr.name).is_none() {
            all.push(format!("has the additional attribute {}", name(xattr)));
        }
    }
}

/// The type of an entry, for messages.
struct Kind<'a>(&'a EntryKind);

impl fmt::Display for Kind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            EntryKind::File(file) => write!(f, "a file of {} bytes", file.size),
            EntryKind::Directory => f.write_str("a directory"),
            EntryKind::Symlink(target) => write!(f, "a symbolic link to {}", shown(target)),
            EntryKind::Hardlink(target) => write!(f, "a hard link to {}", shown(target)),
            EntryKind::Character { major, minor } => {
                write!(f, "a character device {major}:{minor}")
            }
            EntryKind::Block { major, minor } => write!(f, "a block device {major}:{minor}"),
            EntryKind::Fifo => f.write_str("a named pipe"),
            EntryKind::Whiteout => f.write_str("a whiteout"),
            EntryKind::Opaque => f.write_str("an opaque marker"),
        }
    }
}

#[cfg(test)]
mod tests {
    use resnap_layer::File;

    use super::*;

    fn entry(kind: EntryKind) -> Entry {
        Entry {
            path: b"a".to_vec(),
            kind,
            metadata: Metadata {
                mode: 0o644,
                xattrs: vec![Xattr {
                    name: b"user.a".to_vec(),
                    value: b"1".to_vec(),
                }],
                ..Metadata::default()
            },
        }
    }

    #[test]
    fn differences_are_named() {
        let file = |size| {
            entry(EntryKind::File(File {
                size,
                extents: None,
            }))
        };
        let expected = file(1);
        assert!(differences(&expected, &file(1), Origin::Stated).is_empty());
        let change = |change: &dyn Fn(&mut Entry)| {
            let mut found = file(1);
            change(&mut found);
            differences(&expected, &found, Origin::Stated)
        };
        assert_eq!(
            change(&|found| found.kind = file(2).kind),
            ["is a file of 2 bytes instead of a file of 1 bytes"]
        );
        assert_eq!(
            change(&|found| found.kind = EntryKind::Symlink(b"b".to_vec())),
            ["is a symbolic link to \"b\" instead of a file of 1 bytes"]
        );
        assert_eq!(
            change(&|found| found.metadata.mode = 0o4755),
            ["has mode 4755 instead of 0644"]
        );
        assert_eq!(
            change(&|found| found.metadata.gid = 7),
            ["has owner 0:7 instead of 0:0"]
        );
        assert_eq!(
            change(&|found| found.metadata.xattrs[0].value.clear()),
            ["has another value of the attribute user.a"]
        );
        assert_eq!(
            change(&|found| found.metadata.xattrs[0].name = b"user.b".to_vec()),
            [
                "lacks the attribute user.a",
                "has the additional attribute user.b"
            ]
        );
        assert!(change(&|found| found.metadata.mtime.seconds = 9).is_empty());
    }

    #[test]
    fn made_up_directories_and_links_have_other_metadata() {
        let (expected, mut found) = (entry(EntryKind::Directory), entry(EntryKind::Directory));
        found.metadata = Metadata::default();
        assert!(differences(&expected, &found, Origin::MadeUp).is_empty());
        assert_eq!(differences(&expected, &found, Origin::Stated).len(), 2);
        let (first, second) = (entry(EntryKind::Directory), found);
        assert_eq!(differences(&second, &first, Origin::Stated).len(), 2);
        assert_eq!(differences(&second, &first, Origin::Repeated).len(), 1);
        let link = || entry(EntryKind::Symlink(b"b".to_vec()));
        let mut found = link();
        found.metadata.mode = 0o777;
        assert!(differences(&link(), &found, Origin::Stated).is_empty());
        let link = || entry(EntryKind::Hardlink(b"b".to_vec()));
        let mut found = link();
        found.metadata = Metadata::default();
        assert!(differences(&link(), &found, Origin::Stated).is_empty());
    }
}
