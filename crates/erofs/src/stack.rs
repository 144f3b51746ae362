// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images on each other, as overlayfs shows them.

use std::error::Error as StdError;

use crate::image::{ErofsReader, ImageError, Node, ReadAt};
use crate::lower::{Lower, Metadata};

/// Images of layers, the topmost first.
///
/// It keeps the way to the last path: of the next one only the names that differ are looked up, each
/// once in each image that has its directory.
#[derive(Debug)]
pub struct Stack<R> {
    images: Vec<ErofsReader<R>>,
    /// The last path, as far as there were directories.
    path: Vec<u8>,
    /// The way to it: the root, and the directory of each name.
    way: Vec<Merged>,
}

/// A directory of the merged tree.
#[derive(Debug)]
struct Merged {
    /// Where its path ends in the last one.
    end: usize,
    /// Those that it is made of, by the indices of their images, the topmost first. None: there is no
    /// such directory.
    parts: Vec<(usize, Node)>,
}

impl<R: ReadAt> Stack<R> {
    /// Images of layers, the topmost first.
    pub fn new(images: Vec<ErofsReader<R>>) -> Self {
        Self {
            images,
            path: Vec::new(),
            way: Vec::new(),
        }
    }

    /// The metadata of the directory at `path` in the merged tree; `None` if there is no such
    /// directory.
    ///
    /// # Errors
    ///
    /// An image is malformed or cannot be read.
    pub fn directory(&mut self, path: &[u8]) -> Result<Option<Metadata>, ImageError> {
        self.go(path)?;
        let parts = self.way.last().map(|merged| &merged.parts[..]);
        let Some((index, node)) = parts.and_then(<[_]>::first) else {
            return Ok(None);
        };
        let image = self.images.get(*index);
        image.map(|image| image.metadata(node)).transpose()
    }

    /// Makes the way the one to `path`, as far as there are directories.
    fn go(&mut self, path: &[u8]) -> Result<(), ImageError> {
        let both = self.path.iter().zip(path);
        let same = both.take_while(|(old, new)| old == new).count();
        let stays = |end| end <= same && matches!(path.get(end), None | Some(b'/'));
        let count = self
            .way
            .partition_point(|merged| merged.end == 0 || stays(merged.end));
        self.way.truncate(count);
        if self.way.is_empty() {
            let parts = self.images.iter().enumerate();
            let parts = parts.map(|(index, image)| Ok((index, image.root()?)));
            let parts = parts.collect::<Result<_, ImageError>>()?;
            self.way.push(Merged { end: 0, parts });
        }
        let mut at = self.way.last().map_or(0, |merged| merged.end);
        self.path.truncate(at);
        let rest = path.get(at..).unwrap_or_default();
        for name in rest.split(|byte| *byte == b'/') {
            let end = at + name.len();
            at = end + 1;
            let Some(parent) = self.way.last().filter(|merged| !merged.parts.is_empty()) else {
                break;
            };
            if !name.is_empty() {
                let parts = child(&self.images, &parent.parts, name)?;
                self.way.push(Merged { end, parts });
                let new = path.get(self.path.len()..end);
                self.path.extend_from_slice(new.unwrap_or_default());
            }
        }
        Ok(())
    }
}

/// What a directory of these parts has under this name, if that is a directory.
fn child<R: ReadAt>(
    images: &[ErofsReader<R>],
    parts: &[(usize, Node)],
    name: &[u8],
) -> Result<Vec<(usize, Node)>, ImageError> {
    let mut found = Vec::new();
    for (index, node) in parts {
        let Some(image) = images.get(*index) else {
            continue;
        };
        let Some(child) = image.child(node, name)? else {
            continue;
        };
        // A whiteout, or another thing that hides what is below.
        if !child.is_directory() {
            break;
        }
        found.push((*index, child));
        // overlayfs does not look at the root's.
        if opaque(image, &child)? {
            break;
        }
    }
    Ok(found)
}

fn opaque<R: ReadAt>(image: &ErofsReader<R>, node: &Node) -> Result<bool, ImageError> {
    image.has_xattr(node, b"trusted.overlay.opaque", b"y")
}

impl<R: ReadAt> Lower for Stack<R> {
    fn directory(
        &mut self,
        path: &[u8],
    ) -> Result<Option<Metadata>, Box<dyn StdError + Send + Sync>> {
        Ok(Self::directory(self, path)?)
    }
}
