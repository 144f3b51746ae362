// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Errors of reading a layer.

use std::io;

/// An error at an entry of a layer. Its source is the [`Fault`].
#[derive(Debug, thiserror::Error)]
#[error("read {} at byte {offset} of the layer", shown(.entry))]
pub struct Error {
    /// The offset in the uncompressed stream: of the entry's header, or of the end.
    pub offset: u64,
    /// The path of the entry if it was known, cleaned or as written.
    pub entry: Option<Vec<u8>>,
    /// The reason.
    #[source]
    pub fault: Fault,
}

/// The reason why a layer is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The stream cannot be read.
    #[error("reading failed")]
    Read(#[source] io::Error),
    /// The stream ended inside an entry.
    #[error("the stream ends early")]
    Truncated,
    /// The stream does not start with a header.
    #[error("it is not a tar")]
    NotTar,
    /// The checksum of a header does not match.
    #[error("the checksum of a header is wrong")]
    Checksum,
    /// A block of zeros is followed by something other than the end.
    #[error("a block of zeros is followed by something else")]
    Trailer,
    /// A number is malformed, negative, or too large.
    #[error("bad number in field {0}")]
    Number(&'static str),
    /// An owner or group that Linux cannot represent.
    #[error("the {field} {value} is not between 0 and {}", u32::MAX - 1)]
    Owner {
        /// `uid` or `gid`.
        field: &'static str,
        /// The value in the layer.
        value: i64,
    },
    /// A device number that Linux cannot represent.
    #[error("the device number {major}:{minor} is not between 0:0 and 4095:1048575")]
    Device {
        /// The major number.
        major: i64,
        /// The minor number.
        minor: i64,
    },
    /// Malformed records of an extended header.
    #[error("malformed pax records")]
    Records,
    /// A sparse file with a malformed map.
    #[error("malformed map of a sparse file: {0}")]
    Sparse(&'static str),
    /// An unknown type of entry.
    #[error("entries of type {:?} are not supported", char::from(*.0))]
    Type(u8),
    /// A name that no file can have.
    #[error("{0}")]
    Name(&'static str),
    /// Something that readers of tar interpret in different ways, and that no program writes.
    #[error("what {0} means depends on the reader: build the layer again without it")]
    Ambiguous(&'static str),
    /// A limit of [`Limits`](crate::Limits) is exceeded.
    #[error("more than {limit} {what}")]
    Limit {
        /// The limited quantity.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

/// Returns a path for messages, without control characters.
fn shown(path: &Option<Vec<u8>>) -> String {
    match path {
        Some(path) => {
            let text = String::from_utf8_lossy(path);
            let text: String = text.chars().take(256).collect();
            format!("entry \"{}\"", text.escape_debug())
        }
        None => "an entry".to_owned(),
    }
}

impl Fault {
    pub(crate) fn limit(what: &'static str, limit: usize) -> Self {
        Self::Limit {
            what,
            limit: limit as u64,
        }
    }
}
