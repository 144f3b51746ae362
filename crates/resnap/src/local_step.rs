// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The next step after an error of the local engine, where there is no containerd to ask.

use resnap_api::Failure;
use resnap_core::Kind;

/// Returns what to do about an error, if anything is known.
pub(crate) fn next_step(failure: &Failure) -> Option<String> {
    let step = match (failure.reason.as_str(), failure.kind) {
        ("NO_SUCH_IMAGE", _) => {
            "`resnap images` lists what is there; unpack another by where it is, as oci:PATH or docker://REFERENCE"
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
