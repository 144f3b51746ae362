// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Why a layer was not written.

use std::io;

use resnap_core::{Descriptor, Kind};
use rustix::io::Errno;

/// Why a layer was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It is none of ours: the fallback may know. It is told where there is none.
    #[error("resnap cannot write it, and nobody else may (differ = \"resnap\"): {0}")]
    Unfit(String),
    /// Nobody wants it any more.
    #[error("it was stopped")]
    Stopped,
    /// The backend says so.
    #[error(transparent)]
    Backend(#[from] resnap_core::Error),
    /// The layer is malformed.
    #[error(transparent)]
    Layer(#[from] resnap_layer::Error),
    /// It cannot be an EROFS image.
    #[error(transparent)]
    Erofs(#[from] resnap_erofs::Error),
    /// The layer says it is an EROFS image.
    #[error("the layer is no EROFS image")]
    NoImage(#[source] resnap_erofs::ImageError),
    /// An EROFS image whose end is missing.
    #[error("the layer ends after {found} bytes, and is an EROFS image of {size}")]
    ShortImage {
        /// What the layer has.
        found: u64,
        /// What the image says.
        size: u64,
    },
    /// An entry cannot be written.
    #[error("write \"{}\"", String::from_utf8_lossy(path).escape_debug())]
    Entry {
        /// Its path.
        path: Vec<u8>,
        /// Why.
        #[source]
        fault: Fault,
    },
    /// Another call of the system failed.
    #[error("{0}")]
    Io(&'static str, #[source] io::Error),
    /// A thread ended by a panic.
    #[error("a thread that {0} panicked")]
    Panicked(&'static str),
}

/// Why an entry cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// A parent of it is a file or a device.
    #[error("\"{}\" is no directory", String::from_utf8_lossy(.0).escape_debug())]
    NotADirectory(Vec<u8>),
    /// Symbolic links lead to each other, or far.
    #[error("too many symbolic links on the way")]
    Links,
    /// A hard link to what is not there.
    #[error("its hard link's target \"{}\" is not there", String::from_utf8_lossy(.0).escape_debug())]
    NoTarget(Vec<u8>),
    /// A hard link to a directory.
    #[error("its hard link's target \"{}\" is a directory", String::from_utf8_lossy(.0).escape_debug())]
    DirectoryTarget(Vec<u8>),
    /// There is more to remember of the layer than is kept in memory.
    #[error("more than {0} bytes of memory for what it says of directories")]
    Memory(u64),
    /// The system refused.
    #[error("{0}")]
    System(&'static str, #[source] io::Error),
}

/// Names what was tried in an error of the system.
pub(crate) trait Doing<T> {
    fn doing(self, what: &'static str) -> Result<T, Fault>;
    fn when(self, what: &'static str) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: &'static str) -> Result<T, Fault> {
        self.map_err(|error| Fault::System(what, error.into()))
    }

    fn when(self, what: &'static str) -> Result<T, Error> {
        self.map_err(|error| Error::Io(what, error.into()))
    }
}

impl Error {
    /// The same as the port has it.
    pub(crate) fn into_core(self, layer: &Descriptor) -> resnap_core::Error {
        let kind = match &self {
            Self::Unfit(_) => Kind::FailedPrecondition,
            Self::Stopped => Kind::Cancelled,
            Self::Backend(error) => return error.clone(),
            _ => find(&self).unwrap_or(Kind::DataLoss),
        };
        resnap_core::Error::new(kind, "apply layer", layer.digest.as_str()).because(self)
    }
}

/// What kind of error of the system is behind one; `None` if the layer itself is to blame.
fn find(error: &(dyn std::error::Error + 'static)) -> Option<Kind> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(resnap_layer::Fault::Limit { .. }) = error.downcast_ref() {
            return Some(Kind::ResourceExhausted);
        }
        if let Some(Fault::Memory(_)) = error.downcast_ref() {
            return Some(Kind::ResourceExhausted);
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            // One of ours that went through a reader.
            if let Some(inner) = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<Through>())
            {
                return Some(inner.kind());
            }
            return match Errno::from_io_error(error) {
                Some(Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE | Errno::NOMEM) => {
                    Some(Kind::ResourceExhausted)
                }
                Some(Errno::PERM | Errno::ACCESS | Errno::ROFS) => Some(Kind::PermissionDenied),
                Some(_) => Some(Kind::Unknown),
                // What a decompressor says of its input.
                None => Some(Kind::DataLoss),
            };
        }
        next = error.source();
    }
    None
}

/// What ends a stream, as the reader at its other end gets it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Through {
    #[error("it was stopped")]
    Stopped,
    #[error("it has more than {0} bytes decompressed, the limit (max_layer_bytes)")]
    Limit(u64),
    #[error(transparent)]
    Backend(resnap_core::Error),
}

impl Through {
    fn kind(&self) -> Kind {
        match self {
            Self::Stopped => Kind::Cancelled,
            Self::Limit(_) => Kind::ResourceExhausted,
            Self::Backend(error) => error.kind(),
        }
    }
}

impl From<Through> for io::Error {
    fn from(through: Through) -> Self {
        Self::other(through)
    }
}
