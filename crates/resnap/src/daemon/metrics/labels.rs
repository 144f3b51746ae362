// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The values of labels.

use resnap_core::Kind;
use resnap_cri_proxy::ForwardReason;
use resnap_unpacker::{Phase, UnpackError};

/// Label names with their values.
pub(super) type Labels<const N: usize> = [(&'static str, &'static str); N];

pub(super) const READY: Labels<1> = [("outcome", "ready")];
pub(super) const FAILED: Labels<1> = [("outcome", "failed")];
pub(super) const CANCELLED: Labels<1> = [("outcome", "cancelled")];

pub(super) fn outcome(error: Option<&UnpackError>) -> Labels<1> {
    match error {
        None => READY,
        Some(error) if error.kind() == Kind::Cancelled => CANCELLED,
        Some(_) => FAILED,
    }
}

/// Returns the outcome of a layer, or `None` while it is in progress.
pub(super) fn layer_outcome(phase: Phase) -> Option<&'static str> {
    Some(match phase {
        Phase::Existed => "existed",
        Phase::Committed => "applied",
        Phase::Copied => "copied",
        Phase::Staged => "staged",
        Phase::Remote => "remote",
        Phase::Joined => "joined",
        Phase::Failed => "failed",
        _ => return None,
    })
}

pub(super) fn steered_outcome(followed: bool) -> Labels<1> {
    let outcome = match followed {
        true => "followed",
        false => "ignored",
    };
    [("outcome", outcome)]
}

pub(super) fn reason(why: ForwardReason) -> &'static str {
    match why {
        ForwardReason::Unresolved => "unresolved",
        ForwardReason::Unlabelled => "unlabelled",
        ForwardReason::Failed => "failed",
    }
}

pub(super) fn code_of(kind: Kind) -> Labels<1> {
    [("code", code_name(kind.code().into()))]
}

/// Returns the name of a gRPC code as the Go implementation has it in metrics, and Unknown for other
/// numbers.
pub(super) fn code_name(code: u16) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    NAMES.get(usize::from(code)).copied().unwrap_or("Unknown")
}
