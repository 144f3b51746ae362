// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Names: where an entry is, and what its name says about lower layers.

use crate::error::Fault;

/// As long as a component of a path may be, in bytes (`NAME_MAX` in `limits.h`).
const COMPONENT: usize = 255;

const WHITEOUT: &[u8] = b".wh.";
const META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a name stands for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// The thing itself.
    Plain(Vec<u8>),
    /// The whiteout of this path.
    Whiteout(Vec<u8>),
    /// The opaque marker of this directory.
    Opaque(Vec<u8>),
    /// Nothing that belongs to the layer.
    Meta,
}

/// The path that `raw` is inside the root, resolved by names alone: `..` of the root is the root.
pub(crate) fn clean(raw: &[u8]) -> Result<Vec<u8>, Fault> {
    let mut path = Vec::with_capacity(raw.len());
    for component in raw.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                let parent = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                path.truncate(parent);
            }
            _ if component.len() > COMPONENT => {
                return Err(Fault::Name(
                    "a component of its path is longer than 255 bytes",
                ));
            }
            _ => {
                if component.contains(&0) {
                    return Err(Fault::Name("its path has a NUL in it"));
                }
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(component);
            }
        }
    }
    Ok(path)
}

/// What the cleaned path `path` says.
pub(crate) fn name(mut path: Vec<u8>) -> Result<Name, Fault> {
    let start = path
        .iter()
        .rposition(|byte| *byte == b'/')
        .map_or(0, |at| at + 1);
    let (parents, base) = path.split_at(start);
    if parents
        .split(|byte| *byte == b'/')
        .any(|component| component.starts_with(META))
    {
        return Ok(Name::Meta);
    }
    if base == OPAQUE {
        path.truncate(start.saturating_sub(1));
        return Ok(Name::Opaque(path));
    }
    if base.starts_with(META) {
        return Ok(Name::Meta);
    }
    match base.strip_prefix(WHITEOUT) {
        None => Ok(Name::Plain(path)),
        Some(b"" | b"." | b"..") => Err(Fault::Name("it is a whiteout of no name")),
        Some(_) => {
            path.drain(start..start + WHITEOUT.len());
            Ok(Name::Whiteout(path))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for (raw, path) in [
            ("a", "a"),
            ("./a/b", "a/b"),
            ("/a//b/", "a/b"),
            ("a/../b", "b"),
            ("a/b/../../c", "c"),
            ("../../a", "a"),
            ("a/../..", ""),
            ("./", ""),
            ("", ""),
            ("..a/.b", "..a/.b"),
        ] {
            assert_eq!(clean(raw.as_bytes()).unwrap(), path.as_bytes(), "{raw}");
        }
        assert!(clean(b"a\0b").is_err());
        assert!(clean(&[b'a'; 255]).is_ok());
        assert!(clean(&[b'a'; 256]).is_err());
    }

    #[test]
    fn names() {
        let of = |path: &str| name(path.as_bytes().to_vec());
        for (path, expected) in [
            ("a/b", Name::Plain(b"a/b".to_vec())),
            ("a/.wh.b", Name::Whiteout(b"a/b".to_vec())),
            (".wh.b", Name::Whiteout(b"b".to_vec())),
            ("a/.wh..wh..opq", Name::Opaque(b"a".to_vec())),
            (".wh..wh..opq", Name::Opaque(b"".to_vec())),
            (".wh..wh.aufs", Name::Meta),
            (".wh..wh.plnk/1.2", Name::Meta),
            ("a/.wh..b", Name::Whiteout(b"a/.b".to_vec())),
            (".wh.a/b", Name::Plain(b".wh.a/b".to_vec())),
            ("", Name::Plain(b"".to_vec())),
        ] {
            assert_eq!(of(path).unwrap(), expected, "{path}");
        }
        for path in [".wh.", ".wh..", "a/.wh..."] {
            assert!(of(path).is_err(), "{path}");
        }
    }
}
