// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Walks through layers of all forms. Parents come before their children, the files of a directory before
//! its directories, all ordered by name.

use super::chain::Layers;
use super::directory_walk::DirectoryWalk;
use super::fault::Fault;
use super::image_walk::ImageWalk;
use super::item::Item;
use super::place::Place;
use crate::copy_fault::CopyFault;
use crate::error::StreamError;
use crate::guard::Guard;

/// A walk through a layer.
pub(crate) enum Walk {
    Directory(Box<DirectoryWalk>),
    Image(Box<ImageWalk>),
}

impl Walk {
    /// Starts a walk through the layer at `index` of a chain.
    pub(super) fn new(chain: &Layers, index: usize, guard: Guard) -> Result<Self, CopyFault> {
        Ok(match chain {
            Layers::Directories(layers) => {
                Self::Directory(Box::new(DirectoryWalk::new(layers, index, guard)?))
            }
            Layers::Images(layers) => Self::Image(Box::new(ImageWalk::new(layers, index, guard)?)),
        })
    }

    /// Makes the walk return every directory once, as it is: also those that the layer does not state, and with
    /// their access control lists before what is in them.
    pub(super) fn plain(mut self) -> Self {
        match &mut self {
            Self::Directory(walk) => walk.set_plain(),
            Self::Image(walk) => walk.is_plain = true,
        }
        self
    }

    /// Returns the next item, or `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Item>, StreamError> {
        let next = match self {
            Self::Directory(walk) => walk.next(),
            Self::Image(walk) => walk.next(),
        };
        next.map_err(|fault| self.error(fault))
    }

    /// Returns the error of a fault at the current path.
    fn error(&self, fault: Fault) -> StreamError {
        let path = match self {
            Self::Directory(walk) => walk.path(),
            Self::Image(walk) => walk.path(),
        };
        self.place().error(path, fault)
    }

    /// Returns the place of the layer.
    pub(super) fn place(&self) -> &Place {
        match self {
            Self::Directory(walk) => walk.place(),
            Self::Image(walk) => walk.place(),
        }
    }
}
