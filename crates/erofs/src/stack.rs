// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The merged tree of several images, as overlayfs shows it.

use std::error::Error as StdError;

use resnap_layer::Metadata;

use crate::image::Node;
use crate::lower::Lower;
use crate::overlay::visible;
use crate::reader::ErofsReader;
use crate::source::{ImageError, ReadAt};

/// The merged tree of images of layers.
///
/// The directories of the last path are cached: only the components in which the next path differs are
/// looked up, each once in each image that has the directory.
#[derive(Debug)]
pub struct Stack<R> {
    images: Vec<ErofsReader<R>>,
    /// The last path, as far as its directories exist.
    path: Vec<u8>,
    /// The directories of that path, from the root on.
    directories: Vec<Merged>,
}

/// A directory of the merged tree.
#[derive(Debug)]
struct Merged {
    /// The length of its path.
    end: usize,
    /// The directories that are merged, with the indices of their images, the topmost first. Empty if
    /// there is no such directory.
    parts: Vec<(usize, Node)>,
}

impl<R: ReadAt> Stack<R> {
    /// Returns the merged tree of these images, the topmost first.
    pub fn new(images: Vec<ErofsReader<R>>) -> Self {
        Self {
            images,
            path: Vec::new(),
            directories: Vec::new(),
        }
    }

    /// Returns the metadata of the directory at `path` in the merged tree, or `None` if there is no such
    /// directory.
    ///
    /// # Errors
    ///
    /// An image is malformed or cannot be read.
    pub fn directory(&mut self, path: &[u8]) -> Result<Option<Metadata>, ImageError> {
        self.walk_to(path)?;
        let parts = self.directories.last().map(|merged| &merged.parts[..]);
        let Some((index, node)) = parts.and_then(<[_]>::first) else {
            return Ok(None);
        };
        let image = self.images.get(*index);
        image.map(|image| image.metadata(node)).transpose()
    }

    /// Caches the directories of `path`, as far as they exist.
    fn walk_to(&mut self, path: &[u8]) -> Result<(), ImageError> {
        let both = self.path.iter().zip(path);
        let same = both.take_while(|(old, new)| old == new).count();
        let stays = |end| end <= same && matches!(path.get(end), None | Some(b'/'));
        let count = self
            .directories
            .partition_point(|merged| merged.end == 0 || stays(merged.end));
        self.directories.truncate(count);
        if self.directories.is_empty() {
            let parts = self.images.iter().enumerate();
            let parts = parts.map(|(index, image)| Ok((index, image.root()?)));
            let parts = parts.collect::<Result<_, ImageError>>()?;
            self.directories.push(Merged { end: 0, parts });
        }
        let mut at = self.directories.last().map_or(0, |merged| merged.end);
        self.path.truncate(at);
        let rest = path.get(at..).unwrap_or_default();
        for name in rest.split(|byte| *byte == b'/') {
            let end = at + name.len();
            at = end + 1;
            let Some(parent) = self
                .directories
                .last()
                .filter(|merged| !merged.parts.is_empty())
            else {
                break;
            };
            if !name.is_empty() {
                let parts = child(&self.images, &parent.parts, name)?;
                self.directories.push(Merged { end, parts });
                let new = path.get(self.path.len()..end);
                self.path.extend_from_slice(new.unwrap_or_default());
            }
        }
        Ok(())
    }
}

/// Returns the child of a merged directory with this name, without parts if it is not a directory.
fn child<R: ReadAt>(
    images: &[ErofsReader<R>],
    parts: &[(usize, Node)],
    name: &[u8],
) -> Result<Vec<(usize, Node)>, ImageError> {
    let nodes = parts.iter().filter_map(|(index, node)| {
        let child = images.get(*index)?.child(node, name).transpose()?;
        let child = child.map(|child| (*index, child));
        Some(child.map_err(|error| (*index, error)))
    });
    let mut shown = visible(images, nodes).map_err(|(_, error)| error)?;
    shown.retain(|(_, node)| node.is_directory());
    Ok(shown)
}

impl<R: ReadAt> Lower for Stack<R> {
    fn directory(
        &mut self,
        path: &[u8],
    ) -> Result<Option<Metadata>, Box<dyn StdError + Send + Sync>> {
        Ok(Self::directory(self, path)?)
    }
}
