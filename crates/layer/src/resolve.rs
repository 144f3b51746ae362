// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Path resolution inside a root: symbolic links never lead out of it.
//!
//! Paths are resolved as containerd resolves the paths of a layer (continuity's `fs.RootPath`): `..` of
//! the root is the root, an absolute target starts at the root, and components that do not exist are
//! taken as they are.
//!
//! containerd resolves some `..` lexically, in a path whose links it has not followed yet. Where that
//! gives another directory than the real parent, the path is refused ([`Error::Parent`]): it is not
//! known which one was meant.
//!
//! # Time
//!
//! The number of lookups is limited for each path, and for all paths of a layer by a [`LookupBudget`].
//! A lookup costs at most as much as opening a directory.

use crate::path::{depth, join, split};

/// The number of links that containerd follows.
const LINKS: usize = 255;

/// More components than a path of `PATH_MAX` bytes has, including those of links.
const NAMES: usize = 8192;

/// The limit of Linux for a path with its terminating NUL.
const PATH_MAX: usize = 4096;

/// Lookups of a layer besides those for each entry.
const BASE: u64 = 1 << 20;

/// Lookups for each entry, on average. Paths of real layers have about ten components, and most
/// entries are in the directory of the previous one, which is not looked up again.
const PER_ENTRY: u64 = 64;

/// The number of lookups that a layer may take: 64 for each entry so far, and 2^20.
#[derive(Debug, Clone, Copy, Default)]
pub struct LookupBudget {
    entries: u64,
    used: u64,
}

impl LookupBudget {
    /// Counts an entry.
    pub fn add_entry(&mut self) {
        self.entries += 1;
    }

    /// Takes `lookups` from the budget, before they are made.
    ///
    /// # Errors
    ///
    /// [`Error::Budget`].
    pub fn take(&mut self, lookups: u64) -> Result<(), Error> {
        self.used += lookups;
        let limit = self.limit();
        match self.used > limit {
            true => Err(Error::Budget(limit)),
            false => Ok(()),
        }
    }

    /// Returns the number of lookups taken so far.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Returns the number of lookups allowed so far.
    pub fn limit(&self) -> u64 {
        PER_ENTRY * self.entries + BASE
    }
}

/// The reason why a path cannot be resolved.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The path has too many links or components.
    #[error("the path has more than {LINKS} symbolic links or {NAMES} components")]
    TooLong,
    /// The resolved path is longer than Linux accepts.
    #[error("the path is longer than 4095 bytes after following links")]
    Path,
    /// Resolved lexically the path is another directory than resolved along what exists.
    #[error("\"..\" follows a symbolic link that another one leads to")]
    Parent,
    /// The paths of all entries take more lookups than those of any real layer.
    #[error("the paths of the layer's entries so far take more than {0} lookups")]
    Budget(u64),
}

/// A tree of directories in which paths are resolved.
pub trait Tree {
    /// A handle to an existing directory.
    type Directory;
    /// The error of a lookup.
    type Error: From<Error>;

    /// Returns the root.
    ///
    /// # Errors
    ///
    /// The tree's own.
    fn root(&mut self) -> Result<Self::Directory, Self::Error>;

    /// Looks up `name` in a directory; `path` is the full path of the name. What a directory may
    /// replace, such as a whiteout, counts as [`Found::Nothing`].
    ///
    /// # Errors
    ///
    /// The tree's own, and one if there is anything else at the name, such as a file.
    fn look_up(
        &mut self,
        directory: &Self::Directory,
        path: &[u8],
        name: &[u8],
    ) -> Result<Found<Self::Directory>, Self::Error>;

    /// Returns the parent of a directory that is not the root.
    ///
    /// # Errors
    ///
    /// The tree's own.
    fn parent(&mut self, directory: &Self::Directory) -> Result<Self::Directory, Self::Error>;
}

/// The result of looking up a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<D> {
    /// A directory.
    Directory(D),
    /// A symbolic link with this target.
    Link(Vec<u8>),
    /// Nothing.
    Nothing,
}

/// A resolved path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved<D> {
    /// The path without links.
    pub path: Vec<u8>,
    /// The number of components at its end that do not exist.
    pub missing: usize,
    /// The last directory of the path that exists.
    pub directory: D,
}

/// Resolves `path` from the root. Symbolic links are followed, also in the last component.
///
/// # Errors
///
/// [`Error`], and the tree's own.
pub fn resolve<T: Tree>(
    tree: &mut T,
    path: &[u8],
    budget: &mut LookupBudget,
) -> Result<Resolved<T::Directory>, T::Error> {
    let mut walk = PathWalk::default();
    walk.push(path, budget)?;
    let mut at = Resolved {
        path: Vec::new(),
        missing: 0,
        directory: tree.root()?,
    };
    while let Some(step) = walk.next(&at.path)? {
        let name = match step {
            PathStep::Parent => {
                if at.missing > 0 {
                    at.missing -= 1;
                } else if !at.path.is_empty() {
                    at.directory = tree.parent(&at.directory)?;
                }
                at.path.truncate(split(&at.path).0.len());
                walk.marks.retain(|(length, _)| *length <= at.path.len());
                continue;
            }
            PathStep::Name(name) => name,
        };
        let next = join(&at.path, &name);
        if next.len() >= PATH_MAX {
            return Err(Error::Path.into());
        }
        let found = match at.missing {
            0 => tree.look_up(&at.directory, &next, &name)?,
            _ => Found::Nothing,
        };
        match found {
            Found::Directory(directory) => (at.path, at.directory) = (next, directory),
            Found::Nothing => (at.path, at.missing) = (next, at.missing + 1),
            Found::Link(target) => {
                walk.follow(&target, &at.path, budget)?;
                if target.starts_with(b"/") {
                    (at.path, at.directory) = (Vec::new(), tree.root()?);
                    walk.marks.clear();
                }
            }
        }
    }
    Ok(at)
}

/// The remaining steps of a path.
#[derive(Debug, Default)]
struct PathWalk {
    /// The remaining components, the next one last.
    names: Vec<Vec<u8>>,
    /// The number of components so far.
    count: usize,
    /// The number of links followed.
    links: usize,
    /// The number of components that remain at the end of the target of the outermost link that is
    /// being followed.
    outer: Option<usize>,
    /// The links inside that target: the number of components that remain at the ends of their own
    /// targets, and the directories they are in.
    inner: Vec<(usize, Vec<u8>)>,
    /// Whether the last component came from a link's target.
    is_inside: bool,
    /// The lengths of the paths that such links led to, and the directories that the links are in:
    /// these are the parents in a path that still contains the link.
    marks: Vec<(usize, Vec<u8>)>,
}

/// A step of a [`PathWalk`].
#[derive(Debug)]
enum PathStep {
    /// To the child of this name.
    Name(Vec<u8>),
    /// To the parent; from the root to the root.
    Parent,
}

impl PathWalk {
    /// Returns the next step from the directory `at`, or `None` at the end.
    fn next(&mut self, at: &[u8]) -> Result<Option<PathStep>, Error> {
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
                        true => Ok(Some(PathStep::Parent)),
                        false => Err(Error::Parent),
                    };
                }
                _ => return Ok(Some(PathStep::Name(name))),
            }
        }
    }

    /// Continues with the target of the link that the last step found in the directory `at`.
    fn follow(&mut self, target: &[u8], at: &[u8], budget: &mut LookupBudget) -> Result<(), Error> {
        self.links += 1;
        if self.links > LINKS {
            return Err(Error::TooLong);
        }
        let end = self.names.len();
        match self.is_inside {
            true => self.inner.push((end, at.to_vec())),
            false => self.outer = Some(end),
        }
        self.push(target, budget)
    }

    /// Puts the components of `path` before the remaining ones.
    fn push(&mut self, path: &[u8], budget: &mut LookupBudget) -> Result<(), Error> {
        let count = depth(path);
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
