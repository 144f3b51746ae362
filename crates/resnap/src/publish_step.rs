// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The next step after an error of the commands that make something of images, which need no containerd.

use resnap_api::Failure;
use resnap_core::{Error, Kind, error_chain};

use crate::local_step::PLACE;

/// Returns the failure to make or to publish something.
pub(crate) fn failure(error: Error) -> Failure {
    let step = match error.kind() {
        Kind::Unavailable | Kind::DeadlineExceeded => {
            Some("see that it answers, and try again: what is there already is not written again")
        }
        Kind::Unauthenticated => Some(
            "log in by `docker login` as this user, with rights to push if the image is pushed",
        ),
        Kind::PermissionDenied => Some(
            "run as a user who may; for a registry, log in by `docker login` as one who may push",
        ),
        Kind::ResourceExhausted => {
            Some("make room, or raise the limit; TMPDIR names another place for temporary files")
        }
        Kind::DataLoss => Some("get the image again, as by `skopeo copy`: this copy is damaged"),
        _ => None,
    };
    Failure {
        kind: error.kind(),
        reason: PLACE.to_owned(),
        message: error_chain(&error),
        next_step: step.map(str::to_owned),
    }
}
