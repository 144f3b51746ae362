// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! gRPC statuses as errors.

use std::error::Error as StdError;
use std::io;

use resnap_core::{Error, Kind};
use tonic::{Code, Status};

/// Returns the kind of a code. `Ok` is not an error: a backend that fails with it violates the protocol.
fn kind(code: Code) -> Kind {
    Kind::of_code(code as i32).unwrap_or(Kind::Internal)
}

/// Returns the error of `operation` on `subject` for a status of containerd or of the connection.
pub(crate) fn error(operation: &'static str, subject: impl Into<String>, status: Status) -> Error {
    // tonic reports a broken or failed connection as Unknown, Cancelled or Internal. The error of the
    // operating system is only in the source chain.
    if let Some(io) = io_error(&status) {
        let kind = match io.kind() {
            io::ErrorKind::PermissionDenied => Kind::PermissionDenied,
            _ => Kind::Unavailable,
        };
        return Error::new(kind, operation, subject)
            .with_source(format!("the connection to containerd failed: {io}"));
    }
    let message = status.message();
    if status.source().is_some() {
        return Error::new(Kind::Unavailable, operation, subject)
            .with_source(format!("the connection to containerd failed: {message}"));
    }
    Error::new(kind(status.code()), operation, subject).with_source(message.to_owned())
}

fn io_error(status: &Status) -> Option<&io::Error> {
    let mut next = status.source();
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_kind_of_its_own() {
        let kinds: Vec<Kind> = (0..17).map(|code| kind(Code::from_i32(code))).collect();
        for (code, kind) in kinds.iter().enumerate().skip(1) {
            let name = format!("{:?}", Code::from_i32(i32::try_from(code).unwrap()));
            assert_eq!(format!("{kind:?}"), name);
        }
    }

    #[test]
    fn a_broken_connection_is_unavailable() {
        let broken = io::Error::from(io::ErrorKind::BrokenPipe);
        let status = Status::from_error(Box::new(broken));
        assert_eq!(error("stat", "x", status).kind(), Kind::Unavailable);
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let status = Status::from_error(Box::new(denied));
        assert_eq!(error("stat", "x", status).kind(), Kind::PermissionDenied);
        let answered = error("stat", "x", Status::not_found("no"));
        assert_eq!(
            (answered.kind(), answered.to_string()),
            (Kind::NotFound, "stat x".to_owned())
        );
    }
}
