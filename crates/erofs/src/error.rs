// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Why an image could not be written.

use std::error::Error as StdError;
use std::io;

use resnap_layer::way;

use crate::room::Refusal;

/// Why an image could not be written.
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
        /// Why.
        #[source]
        fault: Fault,
    },
    /// The image cannot be written.
    #[error("write the EROFS image")]
    Write(#[source] io::Error),
    /// What the image cannot hold as a whole.
    #[error("write the EROFS image")]
    ErofsReader(#[source] Fault),
    /// Lower layers did not say what they know of a directory.
    #[error("ask lower layers for \"{}\"", String::from_utf8_lossy(path).escape_debug())]
    Lower {
        /// The path of the directory.
        path: Vec<u8>,
        /// Why.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
}

/// Why an entry cannot be in an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// A parent of it is a file or a device.
    #[error("\"{}\" is no directory", String::from_utf8_lossy(.0).escape_debug())]
    NotADirectory(Vec<u8>),
    /// The way to it cannot be gone.
    #[error(transparent)]
    Way(#[from] way::Error),
    /// A hard link to what the layer does not have.
    #[error("its hard link's target \"{}\" is not in the layer", String::from_utf8_lossy(.0).escape_debug())]
    NoTarget(Vec<u8>),
    /// A hard link to a directory.
    #[error("its hard link's target \"{}\" is a directory", String::from_utf8_lossy(.0).escape_debug())]
    DirectoryTarget(Vec<u8>),
    /// A device number that Linux has no room for.
    #[error("Linux has no room for the device {major}:{minor}")]
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// An extended attribute that no inode can have.
    #[error("the extended attribute \"{}\" is too long or malformed", String::from_utf8_lossy(.0).escape_debug())]
    Xattr(Vec<u8>),
    /// A directory that layers set a default access control list of: what is made in it inherits
    /// that from containerd, and would not in an image.
    #[error("its directory has a default access control list, which nothing inherits in an image")]
    Inherits,
    /// The [`Governor`](crate::Governor) says no.
    #[error(transparent)]
    Refused(Refusal),
    /// More than fits.
    #[error("more than {limit} {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much there may be.
        limit: u64,
    },
}

impl Fault {
    pub(crate) fn limit(what: &'static str, limit: u64) -> Self {
        Self::Limit { what, limit }
    }
}
