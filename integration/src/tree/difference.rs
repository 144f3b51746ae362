// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The differences of two trees, and which of them were expected.

use std::collections::BTreeSet;
use std::fmt;

use super::node::{Node, Tree};

/// A property that two paths can differ in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// The path is in one tree only.
    Presence,
    /// The type; nothing else is compared then.
    Kind,
    /// The permission bits.
    Mode,
    /// The owner.
    Uid,
    /// The group.
    Gid,
    /// The size of a regular file.
    Size,
    /// The content of a regular file.
    Content,
    /// The target of a symbolic link.
    Target,
    /// The device number.
    Device,
    /// The modification time.
    Mtime,
    /// An extended attribute; one difference each.
    Xattr,
    /// The other paths of the same inode.
    Links,
}

/// One field in which a path differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The path in both trees.
    pub path: Vec<u8>,
    /// The property.
    pub field: Field,
    /// The value in the left tree.
    pub left: String,
    /// The value in the right tree.
    pub right: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path,
            field,
            left,
            right,
        } = self;
        write!(f, "{}: {field:?}: {left} != {right}", path.escape_ascii())
    }
}

/// A difference that is known and has a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// The path; a `*` stands for any bytes, also for slashes and for none.
    pub path: &'static str,
    /// The property.
    pub field: Field,
    /// Why, for the reader of a report.
    pub reason: &'static str,
}

/// An unexpected difference, or an expected one that is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Surprise {
    /// A difference that no [`Expected`] names.
    Unexpected(Difference),
    /// An [`Expected`] that names no difference: its reason is gone, or never held.
    Absent(Expected),
}

impl fmt::Display for Surprise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unexpected(difference) => difference.fmt(f),
            Self::Absent(Expected {
                path,
                field,
                reason,
            }) => {
                write!(
                    f,
                    "{path}: {field:?}: equal, but expected to differ ({reason})"
                )
            }
        }
    }
}

/// Returns all differences of two trees, by path.
pub fn compare(left: &Tree, right: &Tree) -> Vec<Difference> {
    let paths: BTreeSet<_> = left.nodes.keys().chain(right.nodes.keys()).collect();
    let mut found = Vec::new();
    for path in paths {
        match (left.nodes.get(path), right.nodes.get(path)) {
            (Some(left), Some(right)) => nodes(path, left, right, &mut found),
            (left, right) => {
                let kind = |node: Option<&Node>| match node {
                    Some(node) => format!("{:?}", node.kind),
                    None => "absent".to_owned(),
                };
                found.push(difference(path, Field::Presence, kind(left), kind(right)));
            }
        }
    }
    found
}

/// Returns the differences that `expected` does not name, and the entries of `expected` without a difference.
pub fn surprises(differences: &[Difference], expected: &[Expected]) -> Vec<Surprise> {
    let names = |expected: &Expected, difference: &Difference| {
        expected.field == difference.field && matches(expected.path.as_bytes(), &difference.path)
    };
    let unexpected = differences
        .iter()
        .filter(|difference| !expected.iter().any(|expected| names(expected, difference)))
        .map(|difference| Surprise::Unexpected(difference.clone()));
    let absent = expected
        .iter()
        .filter(|expected| {
            !differences
                .iter()
                .any(|difference| names(expected, difference))
        })
        .map(|expected| Surprise::Absent(*expected));
    unexpected.chain(absent).collect()
}

fn nodes(path: &[u8], left: &Node, right: &Node, found: &mut Vec<Difference>) {
    // One line a field: what it is called and how its two values read.
    let fields = |node: &Node| {
        [
            (Field::Mode, format!("{:04o}", node.mode)),
            (Field::Uid, node.uid.to_string()),
            (Field::Gid, node.gid.to_string()),
            (Field::Size, format!("{:?}", node.size)),
            (Field::Content, format!("{:?}", node.content)),
            (
                Field::Target,
                node.target.as_deref().map_or(String::new(), show),
            ),
            (Field::Device, format!("{:?}", node.device)),
            (
                Field::Mtime,
                format!("{}.{:09}", node.mtime.0, node.mtime.1),
            ),
            (
                Field::Links,
                node.links
                    .iter()
                    .map(|path| show(path))
                    .collect::<Vec<_>>()
                    .join(" "),
            ),
        ]
    };
    if left.kind != right.kind {
        let (left, right) = (format!("{:?}", left.kind), format!("{:?}", right.kind));
        found.push(difference(path, Field::Kind, left, right));
        return;
    }
    for ((field, left), (_, right)) in fields(left).into_iter().zip(fields(right)) {
        if left != right {
            found.push(difference(path, field, left, right));
        }
    }
    let names: BTreeSet<_> = left.xattrs.keys().chain(right.xattrs.keys()).collect();
    for name in names {
        let value = |node: &Node| match node.xattrs.get(name) {
            Some(value) => format!("{}=\"{}\"", show(name), show(value)),
            None => format!("no {}", show(name)),
        };
        if left.xattrs.get(name) != right.xattrs.get(name) {
            found.push(difference(path, Field::Xattr, value(left), value(right)));
        }
    }
}

fn difference(path: &[u8], field: Field, left: String, right: String) -> Difference {
    Difference {
        path: path.to_vec(),
        field,
        left,
        right,
    }
}

fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// Returns whether `text` matches `pattern`, in which `*` stands for any bytes.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', rest @ ..] => (0..=text.len()).any(|start| matches(rest, &text[start..])),
        [byte, rest @ ..] => text.first() == Some(byte) && matches(rest, &text[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let cases = [
            ("a/b", "a/b", true),
            ("a/b", "a/bc", false),
            ("a/*", "a/b/c", true),
            ("*/c", "a/b/c", true),
            ("a*c*", "abc", true),
            ("a*c", "ab", false),
            ("*", "", true),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn only_unexpected_differences_are_surprises() {
        let found = [
            difference(b"a", Field::Mode, "0644".into(), "0755".into()),
            difference(b"b", Field::Mode, "0644".into(), "0755".into()),
        ];
        let expect = |path, field| Expected {
            path,
            field,
            reason: "known",
        };
        let expected = [expect("a", Field::Mode), expect("b", Field::Uid)];
        let report: Vec<_> = surprises(&found, &expected)
            .iter()
            .map(ToString::to_string)
            .collect();
        let lines = [
            "b: Mode: 0644 != 0755",
            "b: Uid: equal, but expected to differ (known)",
        ];
        assert_eq!(report, lines);
    }
}
