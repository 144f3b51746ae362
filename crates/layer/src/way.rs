// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The way to a path inside a root, whose symbolic links stay inside.
//!
//! As containerd resolves the paths of a layer (`continuity` `fs.RootPath`): `..` of the root is the
//! root, and an absolute target begins there.

/// As many links as containerd follows.
const LINKS: usize = 255;

/// More names than a path of `PATH_MAX` bytes has, links included.
const NAMES: usize = 8192;

/// Parents and name of a cleaned path.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => {
            let (parents, name) = path.split_at(slash);
            (parents, name.get(1..).unwrap_or_default())
        }
        None => (&[], path),
    }
}

/// The steps to a path. Who goes them says where there is a link.
#[derive(Debug)]
pub struct Way {
    /// What is left, the next name last.
    names: Vec<Vec<u8>>,
    taken: usize,
    links: usize,
}

/// One step of a [`Way`].
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// To what has this name.
    Name(Vec<u8>),
    /// To the parent; from the root to the root.
    Parent,
}

/// There are more links on a way, or names, than anybody means.
#[derive(Debug, thiserror::Error)]
#[error("more than {LINKS} symbolic links or {NAMES} names are on the way")]
pub struct TooLong;

impl Way {
    /// The way from the root to `path`, the last name too.
    pub fn to(path: &[u8]) -> Self {
        let mut way = Self {
            names: Vec::new(),
            taken: 0,
            links: 0,
        };
        way.add(path);
        way
    }

    /// The next step; `None` at the end.
    ///
    /// # Errors
    ///
    /// [`TooLong`].
    pub fn step(&mut self) -> Result<Option<Step>, TooLong> {
        while let Some(name) = self.names.pop() {
            self.taken += 1;
            if self.taken > NAMES {
                return Err(TooLong);
            }
            match &name[..] {
                b"" | b"." => {}
                b".." => return Ok(Some(Step::Parent)),
                _ => return Ok(Some(Step::Name(name))),
            }
        }
        Ok(None)
    }

    /// Goes on by the target of the symbolic link that the last step came to, instead of from there.
    /// Whether from the root; else from where the link is.
    ///
    /// # Errors
    ///
    /// [`TooLong`].
    pub fn follow(&mut self, target: &[u8]) -> Result<bool, TooLong> {
        self.links += 1;
        if self.links > LINKS {
            return Err(TooLong);
        }
        self.add(target);
        Ok(target.starts_with(b"/"))
    }

    fn add(&mut self, path: &[u8]) {
        let names = path.rsplit(|byte| *byte == b'/');
        self.names.extend(names.map(<[u8]>::to_vec));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Option<Step> {
        Some(Step::Name(name.into()))
    }

    #[test]
    fn a_link_is_gone_before_what_follows_it() {
        let mut way = Way::to(b"a/link/b");
        assert_eq!(way.step().unwrap(), name("a"));
        assert_eq!(way.step().unwrap(), name("link"));
        assert!(!way.follow(b"../c/.//d").unwrap());
        assert_eq!(way.step().unwrap(), Some(Step::Parent));
        assert_eq!(way.step().unwrap(), name("c"));
        assert_eq!(way.step().unwrap(), name("d"));
        assert!(way.follow(b"/e").unwrap());
        assert_eq!(way.step().unwrap(), name("e"));
        assert_eq!(way.step().unwrap(), name("b"));
        assert_eq!(way.step().unwrap(), None);
    }

    #[test]
    fn it_ends() {
        let mut way = Way::to(b"loop");
        for _ in 0..LINKS {
            assert_eq!(way.step().unwrap(), name("loop"));
            assert!(!way.follow(b"loop").unwrap());
        }
        assert!(way.follow(b"loop").is_err());
        let mut way = Way::to(&b"a/".repeat(NAMES + 1));
        for _ in 0..NAMES {
            assert_eq!(way.step().unwrap(), name("a"));
        }
        assert!(way.step().is_err());
    }

    #[test]
    fn paths_are_split() {
        assert_eq!(split(b"a/b/c"), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(split(b"a"), (&b""[..], &b"a"[..]));
    }
}
