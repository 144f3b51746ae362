// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Errors of writing an image.

use std::error::Error as StdError;
use std::io;

use resnap_layer::resolve;

use crate::governor::Refusal;
use crate::source::ImageError;

/// The reason why an image was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The layer is malformed.
    #[error(transparent)]
    Layer(#[from] resnap_layer::Error),
    /// An entry of the layer cannot be in an image.
    #[error("add \"{}\" to the EROFS image", String::from_utf8_lossy(path).escape_debug())]
    Entry {
        /// The path of the entry.
        path: Vec<u8>,
        /// The reason.
        #[source]
        fault: Fault,
    },
    /// The file of the image cannot be written.
    #[error("write the EROFS image")]
    Write(#[source] io::Error),
    /// The image as a whole exceeds a limit.
    #[error("write the EROFS image")]
    Image(#[source] Fault),
    /// The metadata of a directory in the layers below is not known.
    #[error("look up \"{}\" in the lower layers", String::from_utf8_lossy(path).escape_debug())]
    Lower {
        /// The path of the directory.
        path: Vec<u8>,
        /// The reason.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
}

/// The reason why an entry cannot be in an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// A parent of the entry is a file or a device.
    #[error("\"{}\" is not a directory", String::from_utf8_lossy(.0).escape_debug())]
    NotADirectory(Vec<u8>),
    /// The path of the entry cannot be resolved.
    #[error(transparent)]
    Path(#[from] resolve::Error),
    /// The target of a hard link does not exist.
    #[error("its hard link's target \"{}\" is not in the layer", String::from_utf8_lossy(.0).escape_debug())]
    NoTarget(Vec<u8>),
    /// The target of a hard link is a directory.
    #[error("its hard link's target \"{}\" is a directory", String::from_utf8_lossy(.0).escape_debug())]
    DirectoryTarget(Vec<u8>),
    /// A device number that Linux cannot represent.
    #[error("Linux cannot represent the device {major}:{minor}")]
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// An extended attribute that no inode can have.
    #[error("the extended attribute \"{}\" is too long or malformed", String::from_utf8_lossy(.0).escape_debug())]
    Xattr(Vec<u8>),
    /// The layers set a default access control list on the directory of the entry. Entries inherit it
    /// from containerd's differ, and would not inherit it in an image.
    #[error("its directory has a default access control list, which nothing inherits in an image")]
    DefaultAcl,
    /// The image of a layer that is merged is malformed or cannot be read.
    #[error("read the image of layer {number}, counted from the lowest")]
    Layer {
        /// The position of the layer, counted from 1.
        number: usize,
        /// The reason.
        #[source]
        source: ImageError,
    },
    /// An attribute of overlayfs in a layer that is merged.
    #[error("the attribute \"{}\" is not supported", String::from_utf8_lossy(.0).escape_debug())]
    Overlay(Vec<u8>),
    /// The [`Governor`](crate::Governor) stopped the writer.
    #[error(transparent)]
    Refused(Refusal),
    /// A limit of the format is exceeded.
    #[error("more than {limit} {what}")]
    Limit {
        /// The limited quantity.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

impl Fault {
    pub(crate) fn limit(what: &'static str, limit: u64) -> Self {
        Self::Limit { what, limit }
    }
}
