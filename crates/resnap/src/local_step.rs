// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The next step after an error of the local engine, where there is no containerd to ask.

use resnap_api::Failure;
use resnap_core::{Error, Kind, error_chain};

/// The [`Failure::reason`] of an image that is not where its name says.
pub(crate) const PLACE: &str = "PLACE";

/// Returns the failure to find an image in an archive or layout.
pub(crate) fn not_in_archive(name: &str, error: &Error) -> Failure {
    let step = match error.kind() {
        Kind::NotFound => "check the path, which ends at its first colon",
        Kind::InvalidArgument => {
            "oci: takes the directory of an OCI layout, oci-archive: an archive of one, docker-archive: what \
             `docker save` has written; decompress archives before"
        }
        Kind::PermissionDenied => "let this user read it, or run as one who may",
        _ => "see that it can be read, and try again",
    };
    of_place(name, error, step)
}

/// Returns the failure to find an image in a registry.
pub(crate) fn not_in_registry(name: &str, error: &Error) -> Failure {
    let step = match error.kind() {
        Kind::InvalidArgument => "name it as docker://HOST/REPOSITORY:TAG",
        Kind::NotFound => "check the repository and the tag",
        Kind::Unauthenticated | Kind::PermissionDenied => {
            "log in by `docker login` as root, whose credentials are used, or copy it to a layout \
             (`skopeo copy`), and unpack oci:PATH"
        }
        Kind::ResourceExhausted => "the registry limits its clients: try again later",
        _ => {
            "see that the registry answers, and try again; hosts.toml may name another server for it"
        }
    };
    of_place(name, error, step)
}

fn of_place(name: &str, error: &Error, step: &str) -> Failure {
    Failure {
        kind: error.kind(),
        reason: PLACE.to_owned(),
        message: format!("{name}: {}", error_chain(error)),
        next_step: Some(step.to_owned()),
    }
}

/// Returns what to do about an error, if anything is known.
pub(crate) fn next_step(failure: &Failure) -> Option<String> {
    let step = match (failure.reason.as_str(), failure.kind) {
        (PLACE, _) => return failure.next_step.clone(),
        ("NO_SUCH_IMAGE", _) => {
            "`resnap images` lists what is there; unpack another by where it is: oci:PATH, oci-archive:FILE, \
             docker-archive:FILE or docker://REFERENCE"
        }
        ("NO_SUCH_SNAPSHOTTER", _) => "take --snapshotter erofs",
        _ if failure.message.contains("open the store") => return None,
        ("RUNTIME_DIR", _) => "choose another directory with --root",
        (_, Kind::NotFound | Kind::DataLoss) => {
            "name a place that has it, as oci:PATH or docker://REFERENCE: what is missing is fetched from there"
        }
        (_, Kind::PermissionDenied) => {
            "take --snapshotter erofs, which needs no rights, and a --root of this user; or run as root"
        }
        (_, Kind::Unimplemented) => "such an image is not supported: build it again",
        (_, Kind::Unavailable | Kind::Unknown) => {
            "mend that and try again; what is finished is kept"
        }
        (_, Kind::ResourceExhausted) => "make room, or raise the limit if it is one of resnap's",
        _ => return failure.next_step.clone(),
    };
    Some(step.to_owned())
}
