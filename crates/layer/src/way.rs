// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The way to a directory inside a root, whose symbolic links stay inside.
//!
//! As containerd resolves the paths of a layer (continuity's `fs.RootPath`): `..` of the root is the
//! root, an absolute target begins there, and what is not there is a name like any other.
//!
//! containerd takes some `..` by the text of a path whose links it has not followed yet. Where that
//! is another directory than the parent of the one that is there, the way is refused
//! ([`Error::Parent`]): nobody can tell which one was meant.
//!
//! # Time
//!
//! The names on one way are limited, and so are those on all ways of a layer, by a [`Budget`]. A name
//! costs no more than opening a directory.

/// As many links as containerd follows.
const LINKS: usize = 255;

/// More names than a path of `PATH_MAX` bytes has, links included.
const NAMES: usize = 8192;

/// Linux takes no longer paths, with the NUL at their end.
const PATH_MAX: usize = 4096;

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

/// Parents and name as one path.
pub fn join(parents: &[u8], name: &[u8]) -> Vec<u8> {
    match parents.is_empty() {
        true => name.to_vec(),
        false => [parents, b"/", name].concat(),
    }
}

/// How many names are in a cleaned path.
pub fn names(path: &[u8]) -> u64 {
    match path.is_empty() {
        true => 0,
        false => 1 + path.iter().filter(|byte| **byte == b'/').count() as u64,
    }
}

/// Names that may be looked up for a layer, besides those for each entry.
const AT_ONCE: u64 = 1 << 20;

/// Names that may be looked up for each entry, on average. Paths of real layers have some ten, and
/// most entries are in the directory of the one before, which is not looked up again.
const PER_ENTRY: u64 = 64;

/// The names that may still be looked up for a layer: 64 for each entry so far, and 2^20.
#[derive(Debug, Clone, Copy, Default)]
pub struct Budget {
    entries: u64,
    used: u64,
}

impl Budget {
    /// Counts an entry.
    pub fn entry(&mut self) {
        self.entries += 1;
    }

    /// Takes so many names, before they are looked up.
    ///
    /// # Errors
    ///
    /// [`Error::Budget`].
    pub fn take(&mut self, names: u64) -> Result<(), Error> {
        self.used += names;
        let limit = self.limit();
        match self.used > limit {
            true => Err(Error::Budget(limit)),
            false => Ok(()),
        }
    }

    /// How many have been taken.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// How many there may be by now.
    pub fn limit(&self) -> u64 {
        PER_ENTRY * self.entries + AT_ONCE
    }
}

/// Why a way cannot be gone.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// There are more links on a way, or names, than anybody means.
    #[error("more than {LINKS} symbolic links or {NAMES} names are on the way")]
    TooLong,
    /// No path has so many bytes.
    #[error("the way is longer than 4095 bytes once links are followed")]
    Path,
    /// It would be one directory by its text and another by what is there.
    #[error("\"..\" follows a symbolic link that another one leads to")]
    Parent,
    /// The ways to all entries have more names than any real layer has use for.
    #[error("the ways to the layer's entries so far have more than {0} names")]
    Budget(u64),
}

/// A tree of directories, as a way goes through it.
pub trait Tree {
    /// A directory that is there.
    type Directory;
    /// Why something cannot be looked at.
    type Error: From<Error>;

    /// The root.
    ///
    /// # Errors
    ///
    /// The tree's own.
    fn root(&mut self) -> Result<Self::Directory, Self::Error>;

    /// What is at `name` in a directory; the path of that is `path`. What is in the way and may give
    /// way to a directory is nothing.
    ///
    /// # Errors
    ///
    /// The tree's own, and that there is something else.
    fn look(
        &mut self,
        directory: &Self::Directory,
        path: &[u8],
        name: &[u8],
    ) -> Result<Found<Self::Directory>, Self::Error>;

    /// The directory that has this one, which is not the root.
    ///
    /// # Errors
    ///
    /// The tree's own.
    fn parent(&mut self, directory: &Self::Directory) -> Result<Self::Directory, Self::Error>;
}

/// What is at a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<D> {
    /// A directory.
    Directory(D),
    /// A symbolic link to this target.
    Link(Vec<u8>),
    /// Nothing.
    Nothing,
}

/// Where a way ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End<D> {
    /// The path without links.
    pub path: Vec<u8>,
    /// As many of its last names are not there.
    pub missing: usize,
    /// The last directory that is there.
    pub directory: D,
}

/// Goes to `path` from the root; follows symbolic links, also if the last name is one.
///
/// # Errors
///
/// [`Error`], and the tree's own.
pub fn go<T: Tree>(
    tree: &mut T,
    path: &[u8],
    budget: &mut Budget,
) -> Result<End<T::Directory>, T::Error> {
    let mut way = Way::default();
    way.add(path, budget)?;
    let mut end = End {
        path: Vec::new(),
        missing: 0,
        directory: tree.root()?,
    };
    while let Some(step) = way.step(&end.path)? {
        let name = match step {
            Step::Parent => {
                if end.missing > 0 {
                    end.missing -= 1;
                } else if !end.path.is_empty() {
                    end.directory = tree.parent(&end.directory)?;
                }
                end.path.truncate(split(&end.path).0.len());
                way.marks.retain(|(length, _)| *length <= end.path.len());
                continue;
            }
            Step::Name(name) => name,
        };
        let next = join(&end.path, &name);
        if next.len() >= PATH_MAX {
            return Err(Error::Path.into());
        }
        let found = match end.missing {
            0 => tree.look(&end.directory, &next, &name)?,
            _ => Found::Nothing,
        };
        match found {
            Found::Directory(directory) => (end.path, end.directory) = (next, directory),
            Found::Nothing => (end.path, end.missing) = (next, end.missing + 1),
            Found::Link(target) => {
                way.follow(&target, &end.path, budget)?;
                if target.starts_with(b"/") {
                    (end.path, end.directory) = (Vec::new(), tree.root()?);
                    way.marks.clear();
                }
            }
        }
    }
    Ok(end)
}

/// The steps that are left of a way.
#[derive(Debug, Default)]
struct Way {
    /// The next name last.
    names: Vec<Vec<u8>>,
    /// Names that there have been.
    count: usize,
    links: usize,
    /// How many names are left at the end of the link's target that the way began to follow first.
    outer: Option<usize>,
    /// The links that were in that target: how many names are left at the ends of their own, and the
    /// directories that they are in.
    inner: Vec<(usize, Vec<u8>)>,
    /// Whether the last name was of a target.
    is_inside: bool,
    /// The lengths of the paths that such links led to, and the directories that they are in: by the
    /// text of a path that still has the link, those are the parents.
    marks: Vec<(usize, Vec<u8>)>,
}

#[derive(Debug)]
enum Step {
    /// To what has this name.
    Name(Vec<u8>),
    /// To the parent; from the root to the root.
    Parent,
}

impl Way {
    /// The next step from the directory `at`; `None` at the end.
    fn step(&mut self, at: &[u8]) -> Result<Option<Step>, Error> {
        loop {
            let left = self.names.len();
            while let Some((_, parent)) = self.inner.pop_if(|(end, _)| *end >= left) {
                self.marks.push((at.len(), parent));
            }
            self.outer = self.outer.filter(|end| *end < left);
            self.is_inside = self.outer.is_some();
            let Some(name) = self.names.pop() else {
                return Ok(None);
            };
            match &name[..] {
                b"" | b"." => {}
                b".." => {
                    let mut here = self.marks.iter().filter(|(length, _)| *length == at.len());
                    return match here.all(|(_, parent)| parent == split(at).0) {
                        true => Ok(Some(Step::Parent)),
                        false => Err(Error::Parent),
                    };
                }
                _ => return Ok(Some(Step::Name(name))),
            }
        }
    }

    /// Goes on by the target of the link in the directory `at` that the last step came to, instead of
    /// from there.
    fn follow(&mut self, target: &[u8], at: &[u8], budget: &mut Budget) -> Result<(), Error> {
        self.links += 1;
        if self.links > LINKS {
            return Err(Error::TooLong);
        }
        let end = self.names.len();
        match self.is_inside {
            true => self.inner.push((end, at.to_vec())),
            false => self.outer = Some(end),
        }
        self.add(target, budget)
    }

    fn add(&mut self, path: &[u8], budget: &mut Budget) -> Result<(), Error> {
        let count = names(path);
        budget.take(count)?;
        self.count += usize::try_from(count).unwrap_or(usize::MAX);
        if self.count > NAMES {
            return Err(Error::TooLong);
        }
        let names = path.rsplit(|byte| *byte == b'/');
        self.names.extend(names.map(<[u8]>::to_vec));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
