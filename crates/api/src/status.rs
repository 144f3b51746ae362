// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Failures as gRPC tells them: a status, and in its details a `google.rpc.ErrorInfo`.

use std::collections::HashMap;
use std::error::Error as _;

use resnap_core::Kind;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{Failure, Malformed, v1};

const DOMAIN: &str = "resnap.v1";

const NEXT_STEP: &str = "next_step";

pub(crate) fn status(failure: Failure) -> Status {
    let next_step = failure.next_step.into_iter();
    let metadata: HashMap<String, String> = next_step
        .map(|next_step| (NEXT_STEP.to_owned(), next_step))
        .collect();
    let details = ErrorDetails::with_error_info(failure.reason, DOMAIN, metadata);
    let code = Code::from_i32(failure.kind.code().into());
    Status::with_error_details(code, failure.message, details)
}

/// What a daemon answered, or what kept it from answering.
pub(crate) fn failure(status: &Status) -> Failure {
    let message = status.message();
    // A status of our own making: the daemon did not send one.
    if status.source().is_some() {
        return Failure {
            kind: Kind::Unavailable,
            reason: "DAEMON_GONE".to_owned(),
            message: format!("the connection to the daemon broke off: {message}"),
            next_step: Some(
                "is `resnap serve` running? the same command goes on from what is done".to_owned(),
            ),
        };
    }
    let info = status.get_details_error_info();
    let mut info = info.filter(|info| info.domain == DOMAIN);
    Failure {
        kind: kind(status.code() as i32),
        message: message.to_owned(),
        next_step: info
            .as_mut()
            .and_then(|info| info.metadata.remove(NEXT_STEP)),
        reason: info.map(|info| info.reason).unwrap_or_default(),
    }
}

fn kind(code: i32) -> Kind {
    Kind::of_code(code).unwrap_or(Kind::Unknown)
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Self {
        Self {
            kind: Kind::Internal,
            reason: "MALFORMED".to_owned(),
            message: format!("the daemon's answer has {malformed}"),
            next_step: Some("restart the daemon after an update".to_owned()),
        }
    }
}

impl From<Failure> for v1::Failure {
    fn from(failure: Failure) -> Self {
        Self {
            code: failure.kind.code().into(),
            reason: failure.reason,
            message: failure.message,
            next_step: failure.next_step,
        }
    }
}

impl From<v1::Failure> for Failure {
    fn from(failure: v1::Failure) -> Self {
        Self {
            kind: kind(failure.code),
            reason: failure.reason,
            message: failure.message,
            next_step: failure.next_step,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_its_status() {
        for next_step in [None, Some("pull \"it\" again: `ctr …`\nor not".to_owned())] {
            let told = Failure {
                kind: Kind::DataLoss,
                reason: "WRONG_DIFF_ID".to_owned(),
                message: "50 % of \"ü\"\nare there".to_owned(),
                next_step,
            };
            let status = status(told.clone());
            // As it travels.
            let headers = status.into_http::<()>().into_parts().0.headers;
            let status = Status::from_header_map(&headers).unwrap();
            assert_eq!(failure(&status), told);
            assert_eq!(Failure::from(v1::Failure::from(told.clone())), told);
        }
    }

    #[test]
    fn a_status_of_others_is_a_failure_too() {
        let plain = failure(&Status::invalid_argument("no"));
        assert_eq!((plain.kind, &*plain.message), (Kind::InvalidArgument, "no"));
        assert_eq!((&*plain.reason, plain.next_step), ("", None));
        let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let broken = failure(&Status::from_error(Box::new(broken)));
        assert_eq!(broken.kind, Kind::Unavailable);
    }
}
