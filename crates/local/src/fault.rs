// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Faults of the work in a store, before it is known what the work was on.

use std::io;

use resnap_core::{Error, Kind};
use rusqlite::ErrorCode;
use rusqlite::ffi::SQLITE_IOERR_SHMSIZE;

/// A fault.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The store refuses the work.
    Refused(Kind, String),
    Database(rusqlite::Error),
    File(io::Error),
}

impl Fault {
    pub(crate) fn missing() -> Self {
        Self::Refused(Kind::NotFound, "it does not exist".to_owned())
    }

    pub(crate) fn taken() -> Self {
        Self::Refused(Kind::AlreadyExists, "it exists".to_owned())
    }

    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Refused(Kind::NotFound, _))
    }

    /// Returns the error of `operation` on `subject`.
    pub(crate) fn of(self, operation: &'static str, subject: &str) -> Error {
        let error = |kind| Error::new(kind, operation, subject);
        match self {
            Self::Refused(kind, reason) => error(kind).with_source(reason),
            Self::Database(fault) => error(database_kind(&fault)).with_source(fault),
            Self::File(fault) => error(Kind::of_io(&fault)).with_source(fault),
        }
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::File(error)
    }
}

impl From<rustix::io::Errno> for Fault {
    fn from(error: rustix::io::Errno) -> Self {
        Self::File(error.into())
    }
}

fn database_kind(error: &rusqlite::Error) -> Kind {
    let Some(failure) = error.sqlite_error() else {
        return Kind::DataLoss;
    };
    match failure.code {
        ErrorCode::DiskFull => Kind::ResourceExhausted,
        _ if failure.extended_code == SQLITE_IOERR_SHMSIZE => Kind::ResourceExhausted,
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Kind::Unavailable,
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Kind::DataLoss,
        ErrorCode::PermissionDenied | ErrorCode::ReadOnly | ErrorCode::CannotOpen => {
            Kind::PermissionDenied
        }
        _ => Kind::Unknown,
    }
}
