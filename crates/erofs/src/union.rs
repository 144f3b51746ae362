// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The names of directories of several images, together in order.

use crate::image::Node;
use crate::overlay::Indexed;
use crate::reader::{Entries, ErofsReader, Named};
use crate::source::{ImageError, ReadAt};

/// The names of the directories that are merged. A block of each directory is in memory.
#[derive(Debug)]
pub(crate) struct Union<'a, R> {
    parts: Vec<Part<'a, R>>,
}

/// A name that some of the directories have.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) name: Vec<u8>,
    /// The node IDs that it has, in the order of the directories, with the indices of their images.
    pub(crate) nodes: Vec<(usize, u64)>,
}

/// The names of a directory of one image.
#[derive(Debug)]
struct Part<'a, R> {
    /// The index of the image.
    image: usize,
    directory: Node,
    entries: Entries<'a, R>,
    next: Option<Named>,
}

impl<'a, R: ReadAt> Union<'a, R> {
    /// Starts at the first name of these directories, which come with the indices of their images.
    pub(crate) fn new(
        images: &'a [ErofsReader<R>],
        directories: &[(usize, Node)],
    ) -> Indexed<Self> {
        let mut parts = Vec::new();
        for (image, directory) in directories {
            let Some(reader) = images.get(*image) else {
                continue;
            };
            let mut part = Part {
                image: *image,
                directory: *directory,
                entries: reader.entries(directory),
                next: None,
            };
            part.advance(b"")?;
            parts.push(part);
        }
        Ok(Self { parts })
    }

    /// Returns the next name.
    pub(crate) fn next(&mut self) -> Indexed<Option<Shared>> {
        let next = self.parts.iter().filter_map(|part| part.next.as_ref());
        let Some(name) = next.map(|next| &next.name).min().cloned() else {
            return Ok(None);
        };
        let mut nodes = Vec::new();
        for part in &mut self.parts {
            if let Some(found) = part.next.take_if(|next| next.name == name) {
                nodes.push((part.image, found.id));
                part.advance(&name)?;
            }
        }
        Ok(Some(Shared { name, nodes }))
    }
}

impl<R: ReadAt> Part<'_, R> {
    /// Reads the name after `last`.
    fn advance(&mut self, last: &[u8]) -> Indexed<()> {
        let next = self.entries.next().transpose();
        let next = next.and_then(|next| match next {
            Some(next) if next.name[..] <= *last => Err(ImageError::Corrupt {
                what: "order of names in a directory",
                offset: self.directory.offset,
            }),
            next => Ok(next),
        });
        self.next = next.map_err(|error| (self.image, error))?;
        Ok(())
    }
}
