// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The faults, and the list of all that a request can meet.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use resnap_integration::tap::{Action, Call, Method, Point, Side, Tap};
use tonic::{Code, Status};

use super::syscalls::{Effect, Syscall};

/// The time that a call waits while its lease is taken away.
const PAUSE: Duration = Duration::from_millis(300);

/// The errors of calls. containerd reports a full disk as `UNKNOWN`.
const CODES: [Code; 9] = [
    Code::Cancelled,
    Code::Unknown,
    Code::DeadlineExceeded,
    Code::NotFound,
    Code::AlreadyExists,
    Code::ResourceExhausted,
    Code::FailedPrecondition,
    Code::Internal,
    Code::Unavailable,
];

const POINTS: [Point; 3] = [Point::Before, Point::During, Point::After];

/// A fault and the moment at which it happens, counted from the beginning of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// At a call to containerd.
    Call {
        nth: u64,
        point: Point,
        fault: CallFault,
    },
    /// At a system call of resnap.
    Syscall { call: Syscall, effect: Effect },
}

/// A fault of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallFault {
    /// It is answered with an error.
    Fail(Code),
    /// The connection ends without an answer.
    Cut,
    /// It is never answered.
    Hang,
    /// The process on this side is killed.
    Kill(Side),
    /// containerd collects the leases, as it does when the clock is set forward.
    Expire,
}

impl Fault {
    /// Returns all faults of a request that makes these calls and system calls.
    pub(crate) fn all(calls: &[Call], syscalls: &BTreeSet<Syscall>) -> Vec<Self> {
        let mut all = Vec::new();
        for (nth, call) in (1..).zip(calls) {
            // A write waits for answers before it ends its side.
            let has_during = !call.path.ends_with("/Write");
            let mut add = |points: &[Point], fault| {
                let points = points
                    .iter()
                    .filter(|point| has_during || **point != Point::During);
                let faults = points.map(|&point| Self::Call { nth, point, fault });
                all.extend(faults);
            };
            for code in CODES {
                add(&[Point::Before, Point::After], CallFault::Fail(code));
            }
            add(&POINTS, CallFault::Cut);
            add(&POINTS, CallFault::Hang);
            add(&POINTS, CallFault::Kill(Side::Client));
            add(&POINTS, CallFault::Kill(Side::Backend));
            add(&[Point::Before], CallFault::Expire);
        }
        for call in syscalls {
            let effects = call.effects().into_iter();
            all.extend(effects.map(|effect| Self::Syscall {
                call: call.clone(),
                effect,
            }));
        }
        all
    }

    /// Returns what the fault is, for the count of each kind.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::Call { fault, .. } => match fault {
                CallFault::Fail(code) => format!("error {code:?}"),
                CallFault::Cut => "connection cut".to_owned(),
                CallFault::Hang => "call hangs".to_owned(),
                CallFault::Kill(Side::Client) => "resnap killed at a call".to_owned(),
                CallFault::Kill(Side::Backend) => "containerd killed".to_owned(),
                CallFault::Expire => "leases expired".to_owned(),
            },
            Self::Syscall { effect, .. } => match effect {
                Effect::Once(error) => (*error).to_owned(),
                Effect::Always(error) => format!("{error} from then on"),
                Effect::Kill => "resnap killed at a system call".to_owned(),
            },
        }
    }

    /// Has the tap do it, if it is at a call.
    pub(crate) fn arm(&self, tap: &Tap) {
        let &Self::Call { nth, point, fault } = self else {
            return;
        };
        let action = match fault {
            CallFault::Fail(code) => Action::Fail(Status::new(code, "an injected fault")),
            CallFault::Cut => Action::Cut,
            CallFault::Hang => Action::Hang,
            CallFault::Kill(side) => Action::Kill(side),
            CallFault::Expire => Action::Delay(PAUSE),
        };
        tap.on(Method::ANY, nth, point, action);
    }

    /// Returns where it happened, for messages.
    pub(crate) fn place(&self, tap: &Tap) -> String {
        let nth = match self {
            Self::Call { nth, .. } => usize::try_from(*nth).unwrap_or(usize::MAX),
            Self::Syscall { .. } => return String::new(),
        };
        let call = tap.calls().into_iter().nth(nth.saturating_sub(1));
        call.map(|call| call.path).unwrap_or_default()
    }

    /// Returns whether it is this fault of a call.
    pub(crate) fn is(&self, kind: CallFault) -> bool {
        matches!(self, Self::Call { fault, .. } if *fault == kind)
    }

    /// Returns whether resnap is killed by it.
    pub(crate) fn kills_resnap(&self) -> bool {
        let effect = Effect::Kill;
        let by_syscall = matches!(self, Self::Syscall { effect: have, .. } if *have == effect);
        by_syscall || self.is(CallFault::Kill(Side::Client))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, ", self.kind())?;
        match self {
            Self::Call { nth, point, .. } => write!(f, "{point:?} call {nth}"),
            Self::Syscall { call, .. } => write!(f, "at {call}"),
        }
    }
}
