// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Clean paths: components joined by `/`, none of them empty, `.` or `..`. The root is the empty path.

/// Splits a clean path into its parent and its last component.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => {
            let (parent, name) = path.split_at(slash);
            (parent, name.get(1..).unwrap_or_default())
        }
        None => (&[], path),
    }
}

/// Joins a clean path and one more component.
pub fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    match parent.is_empty() {
        true => name.to_vec(),
        false => [parent, b"/", name].concat(),
    }
}

/// Returns the number of components of a clean path.
pub fn depth(path: &[u8]) -> u64 {
    match path.is_empty() {
        true => 0,
        false => 1 + path.iter().filter(|byte| **byte == b'/').count() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_split() {
        assert_eq!(split(b"a/b/c"), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(split(b"a"), (&b""[..], &b"a"[..]));
        assert_eq!(
            (join(b"", b"a"), join(b"a", b"b")),
            (b"a".to_vec(), b"a/b".to_vec())
        );
        assert_eq!((depth(b""), depth(b"a"), depth(b"a/b/c")), (0, 1, 3));
    }
}
