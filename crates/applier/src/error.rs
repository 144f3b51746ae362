// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Why a layer was not written.

use std::io;
use std::time::Duration;

use resnap_core::{Descriptor, Digest, Kind};
use resnap_erofs::ImageError;
use resnap_layer::way;
use rustix::io::Errno;

use crate::memory::Denied;

/// Why a layer was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It is none of ours: the fallback may know. It is told where there is none.
    #[error("resnap cannot write it, and nobody else may (differ = \"resnap\"): {0}")]
    Unfit(String),
    /// Nobody wants it any more.
    #[error("it was stopped")]
    Stopped,
    /// There is no memory for it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Nothing of it has been read or written for so long.
    #[error(
        "nothing of it has been read or written for {0:?}: see to the disk or containerd, or raise stall"
    )]
    Stalled(Duration),
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
    NoImage(#[source] ImageError),
    /// An EROFS image that is not all there is.
    #[error("the EROFS image has data on {0} other devices, which a layer has no use for")]
    Devices(u16),
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
    /// The blob's bytes are not those of its digest, which is why the layer was not written.
    #[error("the blob's bytes have the digest {0}")]
    Damaged(Digest, #[source] Box<Error>),
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
    /// The way to it cannot be gone.
    #[error(transparent)]
    Way(#[from] way::Error),
    /// A hard link to what is not there.
    #[error("its hard link's target \"{}\" is not there", String::from_utf8_lossy(.0).escape_debug())]
    NoTarget(Vec<u8>),
    /// A hard link to a directory.
    #[error("its hard link's target \"{}\" is a directory", String::from_utf8_lossy(.0).escape_debug())]
    DirectoryTarget(Vec<u8>),
    /// A directory that layers set a default access control list of: what is made in it inherits
    /// that from containerd's differ, and would not from ours.
    #[error("its directory has a default access control list, which resnap lets nothing inherit")]
    Inherits,
    /// A directory in the place of what took the place of one of a lower layer, in a copy of that.
    #[error(
        "what lower layers have in it would show again, and is gone from a full copy: use overlayfs or erofs"
    )]
    Replaced,
    /// There is more to remember of the layer than there is memory for.
    #[error(transparent)]
    Denied(#[from] Denied),
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
    /// The same, if that there is no memory is why, or that nobody wants it, as just that.
    pub(crate) fn settled(self) -> Self {
        let denied = match &self {
            Self::Denied(denied) => Some(denied),
            error => denied(error),
        };
        match denied.cloned() {
            Some(Denied::Stopped) => Self::Stopped,
            Some(denied @ Denied::Window(_)) => Self::Unfit(denied.to_string()),
            Some(denied) => Self::Denied(denied),
            None => self,
        }
    }

    /// Returns whether the bytes of the layer are the reason, be they those of its digest or not.
    pub(crate) fn is_of_bytes(&self) -> bool {
        matches!(self.kind(), Kind::InvalidArgument | Kind::Unimplemented)
    }

    /// Returns its kind as the port has it.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Unfit(_) => Kind::FailedPrecondition,
            Self::Stopped => Kind::Cancelled,
            Self::Stalled(_) => Kind::DeadlineExceeded,
            Self::Backend(error) => error.kind(),
            Self::Denied(_) => Kind::ResourceExhausted,
            Self::NoImage(error) => of_foreign(error),
            Self::Devices(_) => Kind::InvalidArgument,
            Self::ShortImage { .. } => Kind::InvalidArgument,
            Self::Damaged(..) => Kind::DataLoss,
            _ => find(self).unwrap_or(Kind::Internal),
        }
    }

    /// The same as the port has it.
    pub(crate) fn into_core(self, layer: &Descriptor) -> resnap_core::Error {
        match self {
            Self::Backend(error) => error,
            error => resnap_core::Error::new(error.kind(), "apply layer", layer.digest.as_str())
                .with_source(error),
        }
    }
}

/// Returns the denial behind an error, through the errors of this crate, of streams and of images.
fn denied<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Denied> {
    let through = |error: &'a io::Error| match error.get_ref()?.downcast_ref()? {
        Through::Denied(denied) => Some(denied),
        Through::Stopped => Some(&Denied::Stopped),
        _ => None,
    };
    let mut next = Some(error);
    while let Some(error) = next {
        let found = match error.downcast_ref::<io::Error>() {
            Some(error) => through(error),
            None => error.downcast_ref(),
        };
        if found.is_some() {
            return found;
        }
        // Transparent errors are not among their own sources.
        if let Some(Fault::Denied(denied)) = error.downcast_ref() {
            return Some(denied);
        }
        next = match error.downcast_ref() {
            Some(resnap_erofs::Fault::Refused(refusal)) => Some(&**refusal),
            _ => error.source(),
        };
    }
    None
}

/// Returns the kind of the error behind one; `None` if nothing tells.
///
/// | kind | |
/// |---|---|
/// | `InvalidArgument` | the layer cannot be decompressed, is no whole archive, or says what is refused |
/// | `ResourceExhausted` | more than a limit allows, or than the system has |
/// | `Unimplemented` | the image has what is not known here |
fn find(error: &(dyn std::error::Error + 'static)) -> Option<Kind> {
    let mut next = Some(error);
    while let Some(error) = next {
        let kind = if let Some(fault) = error.downcast_ref() {
            of_layer(fault)
        } else if let Some(fault) = error.downcast_ref::<Fault>() {
            fault.kind()
        } else if let Some(fault) = error.downcast_ref::<resnap_erofs::Fault>() {
            of_image(fault)
        } else if let Some(error) = error.downcast_ref() {
            Some(of_system(error))
        } else {
            error
                .downcast_ref()
                .map(|_: &Denied| Kind::ResourceExhausted)
        };
        if kind.is_some() {
            return kind;
        }
        next = error.source();
    }
    None
}

/// `None` if what it comes from says it.
fn of_layer(fault: &resnap_layer::Fault) -> Option<Kind> {
    use resnap_layer::Fault;

    match fault {
        Fault::Read(_) => None,
        Fault::Limit { .. } => Some(Kind::ResourceExhausted),
        Fault::Type(_) => Some(Kind::Unimplemented),
        _ => Some(Kind::InvalidArgument),
    }
}

impl Fault {
    /// `None` if what it comes from says it.
    fn kind(&self) -> Option<Kind> {
        match self {
            Self::System(..) => None,
            Self::Denied(_) => Some(Kind::ResourceExhausted),
            Self::Way(error) => Some(of_way(error)),
            Self::NotADirectory(_) | Self::NoTarget(_) | Self::DirectoryTarget(_) => {
                Some(Kind::InvalidArgument)
            }
            Self::Inherits | Self::Replaced => Some(Kind::Unimplemented),
        }
    }
}

/// `None` if what it comes from says it.
fn of_image(fault: &resnap_erofs::Fault) -> Option<Kind> {
    use resnap_erofs::Fault;

    match fault {
        // Of ours.
        Fault::Refused(denied) => find(&**denied),
        Fault::Limit { .. } => Some(Kind::ResourceExhausted),
        Fault::Way(error) => Some(of_way(error)),
        Fault::Inherits => Some(Kind::Unimplemented),
        _ => Some(Kind::InvalidArgument),
    }
}

/// Returns the kind of an error in a layer that is an EROFS image already.
fn of_foreign(error: &ImageError) -> Kind {
    match error {
        ImageError::Read { source, .. } => of_system(source),
        ImageError::Features(_) | ImageError::Unsupported(_) => Kind::Unimplemented,
        _ => Kind::InvalidArgument,
    }
}

fn of_way(error: &way::Error) -> Kind {
    match error {
        way::Error::Budget(_) => Kind::ResourceExhausted,
        _ => Kind::InvalidArgument,
    }
}

fn of_system(error: &io::Error) -> Kind {
    // One of ours that went through a reader.
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    if let Some(through) = inner {
        return Through::kind(through);
    }
    match Errno::from_io_error(error) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE | Errno::NOMEM) => {
            Kind::ResourceExhausted
        }
        Some(Errno::PERM | Errno::ACCESS | Errno::ROFS) => Kind::PermissionDenied,
        // What no file of Linux can be or have.
        Some(Errno::TOOBIG | Errno::NAMETOOLONG | Errno::MLINK | Errno::FBIG) => {
            Kind::InvalidArgument
        }
        Some(_) => Kind::Unknown,
        // What a decompressor says of its input, or that an image ends too soon.
        None => Kind::InvalidArgument,
    }
}

/// What ends a stream, as the reader at its other end gets it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Through {
    #[error("it was stopped")]
    Stopped,
    #[error("it has more than {0} bytes decompressed, the limit (max_layer_bytes)")]
    Limit(u64),
    #[error(transparent)]
    Denied(Denied),
    #[error(transparent)]
    Backend(resnap_core::Error),
}

impl Through {
    fn kind(&self) -> Kind {
        match self {
            Self::Stopped => Kind::Cancelled,
            Self::Limit(_) | Self::Denied(_) => Kind::ResourceExhausted,
            Self::Backend(error) => error.kind(),
        }
    }
}

impl From<Through> for io::Error {
    fn from(through: Through) -> Self {
        Self::other(through)
    }
}

#[cfg(test)]
mod tests {
    use resnap_core::Digest;

    use super::*;

    fn of_entry(fault: resnap_layer::Fault) -> Error {
        Error::Layer(resnap_layer::Error {
            offset: 0,
            entry: None,
            fault,
        })
    }

    fn entry(fault: Fault) -> Error {
        let path = b"a".to_vec();
        Error::Entry { path, fault }
    }

    fn of_image(fault: resnap_erofs::Fault) -> Error {
        let path = b"a".to_vec();
        resnap_erofs::Error::Entry { path, fault }.into()
    }

    fn system(errno: Errno) -> io::Error {
        errno.into()
    }

    #[test]
    fn kinds_say_whose_fault_it_is() {
        use resnap_layer::Fault as Read;

        let layer = Descriptor {
            media_type: String::new(),
            digest: Digest::sha256(b""),
            size: 0,
            annotations: Default::default(),
            platform: None,
        };
        let limit = Denied::Layer(1);
        let garbled = || io::Error::new(io::ErrorKind::InvalidData, "no gzip");
        let through = || io::Error::from(Through::Limit(1));
        for (error, kind) in [
            (of_entry(Read::Truncated), Kind::InvalidArgument),
            (of_entry(Read::Number("checksum")), Kind::InvalidArgument),
            (of_entry(Read::Read(garbled())), Kind::InvalidArgument),
            (of_entry(Read::Read(through())), Kind::ResourceExhausted),
            (of_entry(Read::Number("size")), Kind::InvalidArgument),
            (of_entry(Read::Name("long")), Kind::InvalidArgument),
            (of_entry(Read::Type(b'Z')), Kind::Unimplemented),
            (
                of_entry(Read::Limit { what: "", limit: 1 }),
                Kind::ResourceExhausted,
            ),
            (entry(Fault::NoTarget(Vec::new())), Kind::InvalidArgument),
            (entry(way::Error::Parent.into()), Kind::InvalidArgument),
            (entry(way::Error::Budget(1).into()), Kind::ResourceExhausted),
            (entry(limit.clone().into()), Kind::ResourceExhausted),
            (
                entry(Fault::System("", system(Errno::NOSPC))),
                Kind::ResourceExhausted,
            ),
            (
                entry(Fault::System("", system(Errno::TOOBIG))),
                Kind::InvalidArgument,
            ),
            (entry(Fault::System("", system(Errno::IO))), Kind::Unknown),
            (
                of_image(resnap_erofs::Fault::Refused(Box::new(limit.clone()))),
                Kind::ResourceExhausted,
            ),
            (
                of_image(resnap_erofs::Fault::Xattr(Vec::new())),
                Kind::InvalidArgument,
            ),
            (of_image(way::Error::TooLong.into()), Kind::InvalidArgument),
            (Error::Denied(limit), Kind::ResourceExhausted),
            (
                Error::Stalled(Duration::from_secs(1)),
                Kind::DeadlineExceeded,
            ),
            (Error::Stopped, Kind::Cancelled),
            (Error::Unfit(String::new()), Kind::FailedPrecondition),
            (Error::Panicked("writes"), Kind::Internal),
            (
                Error::Damaged(Digest::sha256(b"x"), Box::new(of_entry(Read::Truncated))),
                Kind::DataLoss,
            ),
        ] {
            let text = format!("{error:?}");
            assert_eq!(error.into_core(&layer).kind(), kind, "{text}");
        }
    }
}
