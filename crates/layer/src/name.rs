// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Names of entries: the path, and the special names of whiteouts and opaque markers.

use crate::error::Fault;
use crate::path::split;

/// The longest name in bytes (`NAME_MAX` in `limits.h`).
const NAME: usize = 255;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// The meaning of an entry's name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// The entry itself, at this path.
    Plain(Vec<u8>),
    /// The whiteout of this path.
    Whiteout(Vec<u8>),
    /// The opaque marker of this directory.
    Opaque(Vec<u8>),
}

/// Returns `raw` as a clean path inside the root. It is resolved lexically; `..` of the root is the root.
pub(crate) fn clean(raw: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(raw.len());
    for component in raw.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                let parent = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                path.truncate(parent);
            }
            _ => {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(component);
            }
        }
    }
    path
}

/// Returns the meaning of a clean path.
pub(crate) fn parse(mut path: Vec<u8>) -> Result<Name, Fault> {
    let (parents, base) = split(&path);
    let (start, end) = (path.len() - base.len(), parents.len());
    check(parents)?;
    if base == OPAQUE {
        path.truncate(end);
        return Ok(Name::Opaque(path));
    }
    match base.strip_prefix(WHITEOUT) {
        Some(b"" | b"." | b"..") => Err(Fault::Name("it is a whiteout of no name")),
        Some(hidden) => {
            check(hidden)?;
            path.drain(start..start + WHITEOUT.len());
            Ok(Name::Whiteout(path))
        }
        None => {
            check(base)?;
            Ok(Name::Plain(path))
        }
    }
}

/// Returns the clean path of the target `raw` of a hard link.
///
/// A target with `..` after a name, or with a slash at its end, is refused: resolved lexically it may be
/// another file than resolved along the directories that exist.
pub(crate) fn link_target(raw: &[u8]) -> Result<Vec<u8>, Fault> {
    let path = clean(raw);
    if path.is_empty() {
        return Err(Fault::Name("it is a hard link to the root or to nothing"));
    }
    let last = raw.rsplit(|byte| *byte == b'/').next();
    if matches!(last, Some(b"" | b".")) {
        return Err(Fault::Ambiguous(
            "a hard link to a name with a slash at its end",
        ));
    }
    let mut components = raw.split(|byte| *byte == b'/');
    let is_name = |component: &&[u8]| !matches!(*component, b"" | b"." | b"..");
    if components.any(|component| is_name(&component)) && components.any(|name| name == b"..") {
        return Err(Fault::Ambiguous("a hard link through `..`"));
    }
    check(&path)?;
    Ok(path)
}

/// Checks that no component of a path is longer than a name can be.
fn check(path: &[u8]) -> Result<(), Fault> {
    if path
        .split(|byte| *byte == b'/')
        .any(|name| name.len() > NAME)
    {
        return Err(Fault::Name("a name in its path is longer than 255 bytes"));
    }
    Ok(())
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
            assert_eq!(clean(raw.as_bytes()), path.as_bytes(), "{raw}");
        }
    }

    #[test]
    fn names() {
        let of = |path: &str| parse(path.as_bytes().to_vec());
        for (path, expected) in [
            ("a/b", Name::Plain(b"a/b".to_vec())),
            ("a/.wh.b", Name::Whiteout(b"a/b".to_vec())),
            (".wh.b", Name::Whiteout(b"b".to_vec())),
            ("a/.wh..wh..opq", Name::Opaque(b"a".to_vec())),
            (".wh..wh..opq", Name::Opaque(b"".to_vec())),
            (".wh..wh.aufs", Name::Whiteout(b".wh.aufs".to_vec())),
            (
                ".wh..wh.plnk/1.2",
                Name::Plain(b".wh..wh.plnk/1.2".to_vec()),
            ),
            ("a/.wh..b", Name::Whiteout(b"a/.b".to_vec())),
            (".wh.a/b", Name::Plain(b".wh.a/b".to_vec())),
            ("", Name::Plain(b"".to_vec())),
        ] {
            assert_eq!(of(path).unwrap(), expected, "{path}");
        }
        for path in [".wh.", ".wh..", "a/.wh..."] {
            assert!(matches!(of(path), Err(Fault::Name(_))), "{path}");
        }
    }

    #[test]
    fn names_have_at_most_255_bytes() {
        let of = |path: String| parse(path.into_bytes()).map(|_| ());
        for length in 251..=255 {
            let long = "n".repeat(length);
            assert!(of(long.clone()).is_ok());
            assert!(of(format!("d/.wh.{long}")).is_ok(), "{length}");
            assert!(of(format!(".wh.{}/a", &long[4..])).is_ok());
        }
        let long = "n".repeat(256);
        for path in [
            long.clone(),
            format!("{long}/a"),
            format!(".wh.{long}"),
            format!(".wh.{}/a", &long[4..]) + "/" + &long,
            format!(".wh.{}/a", &long[..252]),
        ] {
            assert!(matches!(of(path), Err(Fault::Name(_))));
        }
        // `..` removes it before it is checked.
        assert_eq!(clean(format!("{long}/../a").as_bytes()), b"a");
    }

    #[test]
    fn targets_of_hard_links() {
        for (raw, path) in [
            ("a", "a"),
            ("./a/./b", "a/b"),
            ("/a//b", "a/b"),
            ("../../a", "a"),
            ("..a/b..", "..a/b.."),
        ] {
            assert_eq!(
                link_target(raw.as_bytes()).unwrap(),
                path.as_bytes(),
                "{raw}"
            );
        }
        for raw in ["a/../b", "../a/../b", "a/b/", "a/.", "a/.."] {
            let fault = link_target(raw.as_bytes()).unwrap_err();
            let is_root = clean(raw.as_bytes()).is_empty();
            assert_eq!(matches!(fault, Fault::Ambiguous(_)), !is_root, "{raw}");
        }
        for raw in ["", "/", ".", ".."] {
            assert!(
                matches!(link_target(raw.as_bytes()), Err(Fault::Name(_))),
                "{raw}"
            );
        }
        assert!(matches!(link_target(&[b'a'; 256]), Err(Fault::Name(_))));
    }
}
