// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

use std::collections::BTreeMap;

use super::*;

/// The target of the link at each path, or `None` for a directory.
#[derive(Default)]
struct Paths(BTreeMap<Vec<u8>, Option<Vec<u8>>>);

impl Paths {
    fn new(links: &[(&str, &str)], directories: &[&str]) -> Self {
        let links = links.iter().map(|(path, to)| (path, Some((*to).into())));
        let directories = directories.iter().map(|path| (path, None));
        let all = links.chain(directories);
        Self(all.map(|(path, what)| ((*path).into(), what)).collect())
    }

    fn resolve(&mut self, path: &str) -> Result<String, Error> {
        let resolved = resolve(self, path.as_bytes(), &mut LookupBudget::default())?;
        Ok(String::from_utf8(resolved.path).unwrap())
    }
}

impl Tree for Paths {
    type Directory = Vec<u8>;
    type Error = Error;

    fn root(&mut self) -> Result<Vec<u8>, Error> {
        Ok(Vec::new())
    }

    fn look_up(&mut self, at: &Vec<u8>, path: &[u8], name: &[u8]) -> Result<Found<Vec<u8>>, Error> {
        assert_eq!(join(at, name), path);
        Ok(match self.0.get(path) {
            None => Found::Nothing,
            Some(None) => Found::Directory(path.to_vec()),
            Some(Some(target)) => Found::Link(target.clone()),
        })
    }

    fn parent(&mut self, at: &Vec<u8>) -> Result<Vec<u8>, Error> {
        Ok(split(at).0.to_vec())
    }
}

#[test]
fn links_stay_inside() {
    let mut paths = Paths::new(
        &[
            ("up", "../../x"),
            ("root", "/"),
            ("d/away", "/d/./e//"),
            ("d/near", "e"),
            ("d/e/back", "../near"),
        ],
        &["d", "d/e"],
    );
    for (path, end) in [
        ("", ""),
        ("d/e/new/other", "d/e/new/other"),
        ("up/y", "x/y"),
        ("root/d/away/y", "d/e/y"),
        ("d/near/y", "d/e/y"),
        ("d/e/back/y", "d/e/y"),
    ] {
        assert_eq!(paths.resolve(path), Ok(end.to_owned()), "{path}");
    }
    let resolved = resolve(&mut paths, b"d/near/a/b", &mut LookupBudget::default()).unwrap();
    assert_eq!((resolved.directory, resolved.missing), (b"d/e".to_vec(), 2));
}

/// containerd would resolve these `..` lexically, before following the link.
#[test]
fn paths_with_two_meanings_are_refused() {
    let links = |links: &[(&str, &str)]| Paths::new(links, &["k", "p", "p/q", "p/q/r"]);
    for (tree, path, end) in [
        // Lexically these are `k/f`.
        (&[("k/l", "s/../f"), ("k/s", "../p/q")][..], "k/l/x", None),
        (&[("k/l", "s/../f"), ("k/s", "/")], "k/l/x", None),
        (&[("k/l", "s/r/../../f"), ("k/s", "../p/q")], "k/l/x", None),
        // A link to a link, and then up.
        (
            &[("a", "b"), ("b", "p/q"), ("p/q/l", "../x")],
            "a/l/y",
            None,
        ),
        // These have one meaning.
        (&[("k/l", "s/../f"), ("k/s", "d")], "k/l/x", Some("k/f/x")),
        (
            &[("a", "b"), ("b", "k"), ("k/l", "../x")],
            "a/l/y",
            Some("x/y"),
        ),
        (&[("a", "p/q"), ("p/q/l", "../x")], "a/l/y", Some("p/x/y")),
        (&[("k/l", "s/../f")], "k/l/x", Some("k/f/x")),
        (&[("k/l", "../p/q/../f")], "k/l/x", Some("p/f/x")),
        (
            &[("k/l", "s/r/../f"), ("k/s", "/p/q")],
            "k/l/x",
            Some("p/q/f/x"),
        ),
        (
            &[("a", "b"), ("b", "/k"), ("k/l", "/p/q/../f")],
            "a/l/x",
            Some("p/f/x"),
        ),
    ] {
        let want = end.map(str::to_owned).ok_or(Error::Parent);
        assert_eq!(links(tree).resolve(path), want, "{tree:?} {path}");
    }
}

#[test]
fn paths_are_bounded() {
    assert_eq!(
        Paths::new(&[("loop", "loop")], &[]).resolve("loop"),
        Err(Error::TooLong)
    );
    // Components count when they are added, before they are looked up.
    let links: Vec<_> = (0..100)
        .map(|at| {
            let target = format!("l{}/{}", at + 1, "a/../".repeat(500));
            (format!("l{at}"), target)
        })
        .collect();
    let links: Vec<_> = links.iter().map(|(l, t)| (&l[..], &t[..])).collect();
    let mut paths = Paths::new(&links, &["a"]);
    let mut budget = LookupBudget::default();
    assert_eq!(
        resolve(&mut paths, b"l0", &mut budget).map(|resolved| resolved.path),
        Err(Error::TooLong)
    );
    assert!(budget.used() > NAMES as u64, "{budget:?}");
    let long = "d/".repeat(2047);
    assert!(Paths::default().resolve(&long).is_ok());
    let (link, long) = ([("l", &long[..])], "x".repeat(300));
    let path = format!("l/{long}");
    assert_eq!(Paths::new(&link, &[]).resolve(&path), Err(Error::Path));
}

#[test]
fn lookups_of_a_layer_are_bounded() {
    let mut budget = LookupBudget::default();
    assert_eq!(budget.take(1 << 20), Ok(()));
    assert_eq!(budget.take(1), Err(Error::Budget(1 << 20)));
    budget.add_entry();
    assert_eq!(budget.take(63), Ok(()));
    assert_eq!(budget.take(1), Err(Error::Budget((1 << 20) + 64)));
}
