// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What can be wrong with a layer.

use std::io;

/// Where a layer is wrong, and at which entry; its source says what is wrong.
#[derive(Debug, thiserror::Error)]
#[error("read {} at byte {offset} of the layer", shown(.entry))]
pub struct Error {
    /// Where in the uncompressed stream, in bytes: the header of the entry, or the end.
    pub offset: u64,
    /// The path of the entry as far as it was known, cleaned or as written.
    pub entry: Option<Vec<u8>>,
    /// What it is.
    #[source]
    pub fault: Fault,
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The stream below failed.
    #[error("reading failed")]
    Read(#[source] io::Error),
    /// The stream ended inside an entry.
    #[error("the stream ends early")]
    Truncated,
    /// What the stream begins with is no header.
    #[error("it is not a tar")]
    NotTar,
    /// A header's checksum is not that of its bytes.
    #[error("the checksum of a header is wrong")]
    Checksum,
    /// One block of zeros, which nothing but the end may follow.
    #[error("a block of zeros is followed by something else")]
    Trailer,
    /// A number is none, or negative, or too large.
    #[error("bad number in field {0}")]
    Number(&'static str),
    /// An owner or group that Linux has no room for.
    #[error("the {field} {value} is not between 0 and {}", u32::MAX - 1)]
    Owner {
        /// Which of both.
        field: &'static str,
        /// What the layer says.
        value: i64,
    },
    /// A number of a device that Linux has no room for.
    #[error("the device number {major}:{minor} is not between 0:0 and 4095:1048575")]
    Device {
        /// The major number.
        major: i64,
        /// The minor number.
        minor: i64,
    },
    /// Extended headers that are not made of records.
    #[error("malformed pax records")]
    Records,
    /// A sparse file whose map does not fit.
    #[error("malformed map of a sparse file: {0}")]
    Sparse(&'static str),
    /// A type of entry that nobody knows.
    #[error("entries of type {:?} are not supported", char::from(*.0))]
    Type(u8),
    /// A name that no file can have.
    #[error("{0}")]
    Name(&'static str),
    /// What readers of tar understand in different ways, and no program writes.
    #[error("what {0} means depends on who reads it: build the layer again without it")]
    Ambiguous(&'static str),
    /// More than [`Limits`](crate::Limits) allow.
    #[error("more than {limit} {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much there may be.
        limit: u64,
    },
}

/// No control character of a layer gets into a log.
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
