// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images on each other, as overlayfs shows them.

use std::error::Error as StdError;

use crate::image::{Image, ImageError, Node, ReadAt};
use crate::lower::{Lower, Metadata};

/// Images of layers, the topmost first.
#[derive(Debug)]
pub struct Stack<R>(pub Vec<Image<R>>);

/// What one image says of a path.
enum Found {
    Directory(Node),
    /// It is something else, or deleted, or hidden.
    Nothing,
    /// The images below decide.
    Below,
}

impl<R: ReadAt> Stack<R> {
    /// The metadata of the directory at `path` in the merged tree; `None` if there is no such
    /// directory.
    ///
    /// # Errors
    ///
    /// An image is malformed or cannot be read.
    pub fn directory(&self, path: &[u8]) -> Result<Option<Metadata>, ImageError> {
        for image in &self.0 {
            match find(image, path)? {
                Found::Directory(node) => return image.metadata(&node).map(Some),
                Found::Nothing => return Ok(None),
                Found::Below => {}
            }
        }
        Ok(None)
    }
}

fn find<R: ReadAt>(image: &Image<R>, path: &[u8]) -> Result<Found, ImageError> {
    let mut node = image.root()?;
    let mut is_opaque = false;
    for name in path
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty())
    {
        match image.child(&node, name)? {
            None if is_opaque => return Ok(Found::Nothing),
            None => return Ok(Found::Below),
            Some(child) if !child.is_directory() => return Ok(Found::Nothing),
            Some(child) => node = child,
        }
        // overlayfs does not look at the root's.
        is_opaque = is_opaque || opaque(image, &node)?;
    }
    Ok(Found::Directory(node))
}

fn opaque<R: ReadAt>(image: &Image<R>, node: &Node) -> Result<bool, ImageError> {
    let xattrs = image.xattrs(node)?;
    Ok(xattrs
        .iter()
        .any(|xattr| xattr.name == b"trusted.overlay.opaque" && xattr.value == b"y"))
}

impl<R: ReadAt> Lower for Stack<R> {
    fn directory(
        &mut self,
        path: &[u8],
    ) -> Result<Option<Metadata>, Box<dyn StdError + Send + Sync>> {
        Ok(Self::directory(self, path)?)
    }
}
