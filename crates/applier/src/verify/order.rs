// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The order of a walk: parents before their children, the files of a directory before its directories, all
//! by name.

use std::cmp::Ordering;

use resnap_layer::{Entry, EntryKind};

/// Compares the places of two entries in a walk. Two are in one place if they have the same path, and both or
/// none of them are directories.
pub(super) fn order(one: &Entry, other: &Entry) -> Ordering {
    let is_opaque = |entry: &Entry| entry.kind == EntryKind::Opaque;
    let places = place(one).cmp(place(other));
    places.then_with(|| is_opaque(one).cmp(&is_opaque(other)))
}

/// Returns the names of a path, each with whether it is that of a directory.
fn place(entry: &Entry) -> impl Iterator<Item = (bool, &[u8])> {
    let is_directory = matches!(entry.kind, EntryKind::Directory | EntryKind::Opaque);
    let names = entry.path.split(|byte| *byte == b'/');
    let mut names = names.filter(|name| !name.is_empty()).peekable();
    std::iter::from_fn(move || {
        let name = names.next()?;
        Some((is_directory || names.peek().is_some(), name))
    })
}

#[cfg(test)]
mod tests {
    use resnap_layer::Metadata;

    use super::*;

    #[test]
    fn walks_have_this_order() {
        let of = |path: &str, kind: EntryKind| Entry {
            path: path.as_bytes().to_vec(),
            kind,
            metadata: Metadata::default(),
        };
        let file = |path| of(path, EntryKind::Fifo);
        let directory = |path| of(path, EntryKind::Directory);
        let walk = [
            directory(""),
            of("", EntryKind::Opaque),
            file("b"),
            file("z"),
            directory("a"),
            of("a", EntryKind::Opaque),
            file("a/x"),
            directory("a/d"),
            file("a/d/y"),
            directory("a-b"),
            directory("b"),
        ];
        for (left, one) in walk.iter().enumerate() {
            for (right, other) in walk.iter().enumerate() {
                assert_eq!(order(one, other), left.cmp(&right), "{one:?} {other:?}");
            }
        }
    }
}
