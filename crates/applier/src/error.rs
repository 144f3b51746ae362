// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Errors of writing a layer.

use std::io;
use std::time::Duration;

use resnap_core::{Descriptor, Digest, Kind};
use resnap_erofs::ImageError;
use resnap_layer::resolve;
use resnap_verity::{SidecarError, SignatureError};
use rustix::io::Errno;

use crate::copy_fault::CopyFault;
use crate::memory::StopReason;

/// The reason why a layer was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// This process cannot write the layer. The fallback is tried; an error only if there is none.
    #[error("resnap cannot write it, and no other differ is allowed (differ = \"resnap\"): {0}")]
    Unsupported(String),
    /// The layer cannot be copied from another snapshotter.
    #[error(transparent)]
    Copy(#[from] CopyFault),
    /// The batch has ended.
    #[error("it was cancelled")]
    Cancelled,
    /// A limit is reached.
    #[error(transparent)]
    Stopped(#[from] StopReason),
    /// There was no progress for this time.
    #[error(
        "nothing of it has been read or written for {0:?}: check the disk and containerd, or raise stall"
    )]
    Stalled(Duration),
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] resnap_core::Error),
    /// The layer is malformed.
    #[error(transparent)]
    Layer(#[from] resnap_layer::Error),
    /// The layer cannot be written as an EROFS image.
    #[error(transparent)]
    Erofs(#[from] resnap_erofs::Error),
    /// A layer of that media type is not an EROFS image.
    #[error("the layer is not an EROFS image")]
    NotAnImage(#[source] ImageError),
    /// An EROFS image with data on other devices.
    #[error("the EROFS image has data on {0} other devices, which a layer cannot have")]
    Devices(u16),
    /// An EROFS image that is truncated.
    #[error("the layer ends after {found} bytes, and is an EROFS image of {size}")]
    ShortImage {
        /// Bytes of the layer.
        found: u64,
        /// Bytes that the image claims.
        size: u64,
    },
    /// An entry cannot be written.
    #[error("write \"{}\"", String::from_utf8_lossy(path).escape_debug())]
    Entry {
        /// The path of the entry.
        path: Vec<u8>,
        /// The reason.
        #[source]
        fault: Fault,
    },
    /// The layer cannot have the proof that it needs.
    #[error("it gets no proof: {0}")]
    Unproven(String),
    /// The index or the root hash that the publisher has signed is not the layer's.
    #[error("its publisher's artifact is wrong: {0}")]
    WrongArtifact(String),
    /// The snapshot has some of the layer's files, so that the backend cannot write it any more.
    #[error("it is half written, and cannot be left to containerd any more")]
    HalfWritten(#[source] Box<Error>),
    /// The committed layer cannot be compared with what proves it.
    #[error("it cannot be verified: {0}")]
    Unverifiable(String),
    /// The committed layer has no tree, and its blob cannot be opened.
    #[error("it has no dm-verity tree, and its blob is not on the node")]
    NoEvidence(#[source] resnap_core::Error),
    /// The blob that a committed layer is compared with is another.
    #[error("its blob is damaged: uncompressed it has the digest {found} instead of {expected}")]
    WrongBlob {
        /// The digest of the uncompressed blob.
        found: Digest,
        /// The diff ID.
        expected: Digest,
    },
    /// The dm-verity tree of the layer could not be written, or is wrong.
    #[error("the dm-verity tree of the layer")]
    Verity(#[from] resnap_verity::Error),
    /// The signature of the layer's root hash is not accepted.
    #[error("the signature of the layer's root hash is not accepted")]
    Signature(#[source] Box<SignatureError>),
    /// The sidecar of the layer's image cannot be used.
    #[error("the sidecar of the layer's image")]
    Sidecar(#[source] SidecarError),
    /// A system call failed that concerns no entry.
    #[error("{0}")]
    Io(&'static str, #[source] io::Error),
    /// The layer was not written because the blob does not match its digest.
    #[error("the blob's bytes have the digest {0}")]
    Damaged(Digest, #[source] Box<Error>),
    /// A thread panicked.
    #[error("a thread that {0} panicked")]
    Panicked(&'static str),
}

/// The reason why an entry cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// A parent of the entry is a file or a device.
    #[error("\"{}\" is not a directory", String::from_utf8_lossy(.0).escape_debug())]
    NotADirectory(Vec<u8>),
    /// The path of the entry cannot be resolved.
    #[error(transparent)]
    Path(#[from] resolve::Error),
    /// The target of a hard link does not exist.
    #[error("its hard link's target \"{}\" does not exist", String::from_utf8_lossy(.0).escape_debug())]
    NoTarget(Vec<u8>),
    /// The target of a hard link is a directory.
    #[error("its hard link's target \"{}\" is a directory", String::from_utf8_lossy(.0).escape_debug())]
    DirectoryTarget(Vec<u8>),
    /// The layers set a default access control list on the directory of the entry. Entries inherit it
    /// from containerd's differ, and would not inherit it here.
    #[error("its directory has a default access control list, which resnap lets nothing inherit")]
    DefaultAcl,
    /// A directory in a full copy whose lower directory was replaced before. Its content should show
    /// again.
    #[error(
        "the content of lower layers would show again in it, and is removed from a full copy: use overlayfs or erofs"
    )]
    Replaced,
    /// A limit is reached.
    #[error(transparent)]
    Stopped(#[from] StopReason),
    /// A system call failed.
    #[error("{0}")]
    System(&'static str, #[source] io::Error),
}

/// Adds the failed operation to an I/O error.
pub(crate) trait IoContext<T> {
    /// Returns the fault of an entry.
    fn entry_context(self, operation: &'static str) -> Result<T, Fault>;
    /// Returns an error that concerns no entry.
    fn context(self, operation: &'static str) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> IoContext<T> for Result<T, E> {
    fn entry_context(self, operation: &'static str) -> Result<T, Fault> {
        self.map_err(|error| Fault::System(operation, error.into()))
    }

    fn context(self, operation: &'static str) -> Result<T, Error> {
        self.map_err(|error| Error::Io(operation, error.into()))
    }
}

impl Error {
    /// Replaces an error whose cause is a [`StopReason`] by that reason.
    pub(crate) fn unwrap_stop_reason(self) -> Self {
        let reason = match &self {
            Self::Stopped(reason) => Some(reason),
            error => stop_reason(error),
        };
        match reason.cloned() {
            Some(StopReason::Cancelled) => Self::Cancelled,
            Some(reason @ StopReason::Window(_)) => Self::Unsupported(reason.to_string()),
            Some(reason) => Self::Stopped(reason),
            None => self,
        }
    }

    /// Returns whether the content of the layer is the reason. The blob may not match its digest then.
    pub(crate) fn is_content_error(&self) -> bool {
        matches!(self.kind(), Kind::InvalidArgument | Kind::Unimplemented)
    }

    /// Returns the kind of the port's error.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Unsupported(_)
            | Self::Unproven(_)
            | Self::Unverifiable(_)
            | Self::HalfWritten(_) => Kind::FailedPrecondition,
            Self::Copy(fault) => fault.kind(),
            Self::Cancelled => Kind::Cancelled,
            Self::Stalled(_) => Kind::DeadlineExceeded,
            Self::Backend(error) | Self::NoEvidence(error) => error.kind(),
            Self::Stopped(_) => Kind::ResourceExhausted,
            Self::NotAnImage(error) => kind_of_image_error(error),
            Self::Devices(_) => Kind::InvalidArgument,
            Self::ShortImage { .. } => Kind::InvalidArgument,
            Self::Damaged(..) | Self::Sidecar(_) | Self::WrongBlob { .. } => Kind::DataLoss,
            Self::Signature(_) | Self::WrongArtifact(_) => Kind::PermissionDenied,
            Self::Verity(error) => kind_of_verity_error(error),
            _ => find_kind(self).unwrap_or(Kind::Internal),
        }
    }

    /// Returns the port's error.
    pub(crate) fn into_core(self, layer: &Descriptor) -> resnap_core::Error {
        match self {
            Self::Backend(error) => error,
            error => resnap_core::Error::new(error.kind(), "apply layer", layer.digest.as_str())
                .with_source(error),
        }
    }
}

/// Returns the stop reason behind an error, through the errors of this crate, of streams and of images.
fn stop_reason<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a StopReason> {
    let through = |error: &'a io::Error| match error.get_ref()?.downcast_ref()? {
        StreamError::Stopped(reason) => Some(reason),
        StreamError::Cancelled => Some(&StopReason::Cancelled),
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
        if let Some(Fault::Stopped(reason)) = error.downcast_ref() {
            return Some(reason);
        }
        next = match error.downcast_ref() {
            Some(resnap_erofs::Fault::Refused(refusal)) => Some(&**refusal),
            _ => match error.downcast_ref() {
                Some(resnap_verity::Error::Stopped(reason)) => Some(&**reason),
                _ => error.source(),
            },
        };
    }
    None
}

/// Returns the kind of the first cause that has one.
///
/// | kind | |
/// |---|---|
/// | `InvalidArgument` | the layer cannot be decompressed, is truncated, or contains what is refused |
/// | `ResourceExhausted` | a limit of the settings or of the system is reached |
/// | `Unimplemented` | the image has unknown features |
fn find_kind(error: &(dyn std::error::Error + 'static)) -> Option<Kind> {
    let mut next = Some(error);
    while let Some(error) = next {
        let kind = if let Some(fault) = error.downcast_ref() {
            kind_of_layer_fault(fault)
        } else if let Some(fault) = error.downcast_ref::<Fault>() {
            fault.kind()
        } else if let Some(fault) = error.downcast_ref::<resnap_erofs::Fault>() {
            kind_of_erofs_fault(fault)
        } else if let Some(error) = error.downcast_ref() {
            Some(kind_of_io_error(error))
        } else {
            error
                .downcast_ref()
                .map(|_: &StopReason| Kind::ResourceExhausted)
        };
        if kind.is_some() {
            return kind;
        }
        next = error.source();
    }
    None
}

/// Returns the kind of a fault, or `None` if its source has one.
fn kind_of_layer_fault(fault: &resnap_layer::Fault) -> Option<Kind> {
    use resnap_layer::Fault;

    match fault {
        Fault::Read(_) => None,
        Fault::Limit { .. } => Some(Kind::ResourceExhausted),
        Fault::Type(_) => Some(Kind::Unimplemented),
        _ => Some(Kind::InvalidArgument),
    }
}

impl Fault {
    /// Returns the kind of a fault, or `None` if its source has one.
    fn kind(&self) -> Option<Kind> {
        match self {
            Self::System(..) => None,
            Self::Stopped(_) => Some(Kind::ResourceExhausted),
            Self::Path(error) => Some(kind_of_path_error(error)),
            Self::NotADirectory(_) | Self::NoTarget(_) | Self::DirectoryTarget(_) => {
                Some(Kind::InvalidArgument)
            }
            Self::DefaultAcl | Self::Replaced => Some(Kind::Unimplemented),
        }
    }
}

/// Returns the kind of a fault, or `None` if its source has one.
fn kind_of_erofs_fault(fault: &resnap_erofs::Fault) -> Option<Kind> {
    use resnap_erofs::Fault;

    match fault {
        // The refusal comes from this crate.
        Fault::Refused(refusal) => find_kind(&**refusal),
        Fault::Limit { .. } => Some(Kind::ResourceExhausted),
        Fault::Path(error) => Some(kind_of_path_error(error)),
        Fault::DefaultAcl => Some(Kind::Unimplemented),
        _ => Some(Kind::InvalidArgument),
    }
}

/// Returns the kind of an error in a layer that is an EROFS image already.
fn kind_of_image_error(error: &ImageError) -> Kind {
    match error {
        ImageError::Read { source, .. } => kind_of_io_error(source),
        ImageError::Features(_) | ImageError::Unsupported(_) => Kind::Unimplemented,
        _ => Kind::InvalidArgument,
    }
}

/// Returns the kind of an error in a tree, or of writing one.
fn kind_of_verity_error(error: &resnap_verity::Error) -> Kind {
    use resnap_verity::Error;

    match error {
        Error::Read { source, .. } | Error::Write { source, .. } => kind_of_io_error(source),
        Error::Stopped(reason) => find_kind(&**reason).unwrap_or(Kind::Internal),
        Error::Corrupt(_) | Error::Superblock { .. } | Error::Padding(_) | Error::Short { .. } => {
            Kind::DataLoss
        }
        _ => Kind::Internal,
    }
}

fn kind_of_path_error(error: &resolve::Error) -> Kind {
    match error {
        resolve::Error::Budget(_) => Kind::ResourceExhausted,
        _ => Kind::InvalidArgument,
    }
}

fn kind_of_io_error(error: &io::Error) -> Kind {
    // An error of this crate that passed through a reader.
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    if let Some(error) = inner {
        return StreamError::kind(error);
    }
    match Errno::from_io_error(error) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE | Errno::NOMEM) => {
            Kind::ResourceExhausted
        }
        Some(Errno::PERM | Errno::ACCESS | Errno::ROFS) => Kind::PermissionDenied,
        // A property that no file on Linux can have.
        Some(Errno::TOOBIG | Errno::NAMETOOLONG | Errno::MLINK | Errno::FBIG) => {
            Kind::InvalidArgument
        }
        Some(_) => Kind::Unknown,
        // An error of a decompressor, or the early end of an image.
        None => Kind::InvalidArgument,
    }
}

/// The reason why a stream ends, wrapped in an [`io::Error`] for its reader.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("it was cancelled")]
    Cancelled,
    #[error("it has more than {0} bytes decompressed, the limit (max_layer_bytes)")]
    Limit(u64),
    #[error(transparent)]
    Stopped(StopReason),
    #[error(transparent)]
    Backend(resnap_core::Error),
    /// The layer cannot be copied.
    #[error(transparent)]
    Copy(CopyFault),
    /// The tar of a layer cannot be written.
    #[error("write the tar of the layer behind its index (erofs_mode = \"tar-index\")")]
    Tar(#[source] io::Error),
    /// A file of a layer that is copied cannot be read.
    #[error("read \"{}\" of the snapshot that is copied", String::from_utf8_lossy(.0).escape_debug())]
    Source(Vec<u8>, #[source] io::Error),
}

impl StreamError {
    fn kind(&self) -> Kind {
        match self {
            Self::Cancelled => Kind::Cancelled,
            Self::Limit(_) | Self::Stopped(_) => Kind::ResourceExhausted,
            Self::Backend(error) => error.kind(),
            Self::Copy(fault) => fault.kind(),
            Self::Source(_, error) | Self::Tar(error) => kind_of_io_error(error),
        }
    }
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        Self::other(error)
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
    fn errors_have_kinds() {
        use resnap_layer::Fault as Read;

        let layer = Descriptor {
            media_type: String::new(),
            digest: Digest::sha256(b""),
            size: 0,
            annotations: Default::default(),
            platform: None,
        };
        let limit = StopReason::LayerMemory(1);
        let garbled = || io::Error::new(io::ErrorKind::InvalidData, "no gzip");
        let through = || io::Error::from(StreamError::Limit(1));
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
            (entry(resolve::Error::Parent.into()), Kind::InvalidArgument),
            (
                entry(resolve::Error::Budget(1).into()),
                Kind::ResourceExhausted,
            ),
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
            (
                of_image(resolve::Error::TooLong.into()),
                Kind::InvalidArgument,
            ),
            (Error::Stopped(limit), Kind::ResourceExhausted),
            (
                Error::Stalled(Duration::from_secs(1)),
                Kind::DeadlineExceeded,
            ),
            (Error::Cancelled, Kind::Cancelled),
            (Error::Unsupported(String::new()), Kind::FailedPrecondition),
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
