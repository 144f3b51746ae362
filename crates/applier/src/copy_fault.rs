// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The reasons why a layer is not copied from another snapshotter.

use resnap_core::Kind;
use resnap_erofs::ImageError;

/// The reason why a layer is not copied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyFault {
    /// Layers of this snapshotter cannot be copied.
    #[error("layers are copied from overlayfs and erofs only, not from {0}")]
    Snapshotter(String),
    /// Attributes of overlayfs cannot be read.
    #[error("layers are not copied in a user namespace")]
    UserNamespace,
    /// The chain is not what a view of overlayfs shows.
    #[error("the chain cannot be read: {0}")]
    Chain(String),
    /// The image of a snapshot cannot be read.
    #[error("the chain cannot be read: the image of the snapshot {snapshot}: {error}")]
    Image {
        /// The name of the snapshot.
        snapshot: String,
        /// The reason.
        error: ImageError,
    },
    /// The chain has no such layer.
    #[error("the chain has no layer {0}")]
    NoLayer(usize),
    /// An image that another program wrote.
    #[error(
        "layer {index} (snapshot {snapshot}) was not written by resnap: images of mkfs.erofs lack some of what the layer has"
    )]
    Foreign {
        /// The index of the layer in the chain, the base being 0.
        index: usize,
        /// The name of the snapshot.
        snapshot: String,
    },
    /// The layer cannot be written to its snapshot in this process.
    #[error("a copy cannot be written to the snapshot: {0}")]
    Target(String),
    /// A file or directory in the snapshot.
    #[error("layer {index} (snapshot {snapshot}), \"{}\": {fault}", String::from_utf8_lossy(path).escape_debug())]
    Entry {
        /// The index of the layer in the chain, the base being 0.
        index: usize,
        /// The name of the snapshot.
        snapshot: String,
        /// The path in the layer.
        path: Vec<u8>,
        /// The reason.
        fault: EntryFault,
    },
}

/// The reason why a file or directory cannot be part of a copy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EntryFault {
    /// The chain was made without its parents.
    #[error(
        "the directory has mode 0755 and owner 0:0, other than the one below that it belongs to: the chain was made without its parents"
    )]
    Parentless,
    /// An attribute that changes what overlayfs shows.
    #[error("it has the attribute {}, which only overlayfs understands", String::from_utf8_lossy(.0).escape_debug())]
    Attribute(Vec<u8>),
    /// The name is that of a marker in a layer.
    #[error("no layer can have a file of that name")]
    Name,
    /// The path is too long for a layer.
    #[error("the path is longer than {0} bytes")]
    Path(usize),
    /// The attributes are too long.
    #[error("its attributes have more than {0} bytes")]
    Attributes(usize),
    /// The layer has too many files.
    #[error("the layer has more than {0} files")]
    Count(usize),
    /// Something is mounted there.
    #[error("another file system is mounted there")]
    Mounted,
    /// It was changed while it was read.
    #[error("it has changed while it was read")]
    Changed,
}

impl CopyFault {
    /// Returns the kind of the port's error.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Snapshotter(_) | Self::UserNamespace => Kind::Unimplemented,
            Self::Entry {
                fault: EntryFault::Parentless,
                ..
            } => Kind::DataLoss,
            Self::Chain(_)
            | Self::Image { .. }
            | Self::NoLayer(_)
            | Self::Foreign { .. }
            | Self::Target(_)
            | Self::Entry { .. } => Kind::FailedPrecondition,
        }
    }
}

/// Refuses a chain.
pub(crate) fn refuse<T>(reason: impl Into<String>) -> Result<T, CopyFault> {
    Err(CopyFault::Chain(reason.into()))
}
